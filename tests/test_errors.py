"""Each error: its exit code, the built-in error that it also is, its two sentences."""

from contextvars import Context, ContextVar

import pytest

from onebase import language
from onebase.align.rewards import RewardError
from onebase.errors import (
    CapacityError,
    CorruptFileError,
    DataError,
    MissingBaseError,
    OnebaseError,
    UsageError,
    unknown,
)
from onebase.language import Language, set_language
from onebase.runs.interruption import Interrupted
from onebase.training.trainable_adapter import NotFinite

LEAVES = {
    UsageError: (2, "usage", ValueError),
    DataError: (3, "data", ValueError),
    CapacityError: (4, "capacity", MemoryError),
    MissingBaseError: (1, "missing_base", FileNotFoundError),
    CorruptFileError: (1, "corrupt", ValueError),
    Interrupted: (130, "interrupted", KeyboardInterrupt),
    RewardError: (1, "reward", RuntimeError),
    NotFinite: (1, "not_finite", ArithmeticError),
}


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    """English, whatever the locale and whatever another test has set."""
    fresh: ContextVar[Language | None] = ContextVar("language", default="en")
    monkeypatch.setattr(language, "_current", fresh)


def leaves(kind: type[OnebaseError]) -> set[type[OnebaseError]]:
    below = kind.__subclasses__()
    return {kind} if not below else {leaf for each in below for leaf in leaves(each)}


@pytest.mark.parametrize("kind", LEAVES)
def test_exit_code_code_and_built_in(kind: type[OnebaseError]) -> None:
    exit_code, code, built_in = LEAVES[kind]
    error = kind("It is broken.", "Mend it.")
    assert (error.exit_code, error.code) == (exit_code, code)
    assert isinstance(error, OnebaseError)
    assert isinstance(error, built_in)


@pytest.mark.parametrize("kind", [OnebaseError, *LEAVES])
def test_message_and_remedy(kind: type[OnebaseError]) -> None:
    error = kind("It is broken.", "Mend it.")
    assert (error.message, error.remedy) == ("It is broken.", "Mend it.")
    assert str(error) == "It is broken. Mend it."


def test_codes_tell_the_errors_apart() -> None:
    # The command line wraps one that is a KeyboardInterrupt too, under the same code.
    kinds = [k for k in leaves(OnebaseError) if not k.__module__.startswith("onebase.cli")]
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)


def test_unknown_names_the_nearest_and_every_valid_name() -> None:
    error = unknown("method", "方法", "lorra", ["qlora", "lora", "ia3"])
    assert isinstance(error, UsageError)
    assert error.message == "Unknown method: 'lorra'."
    assert error.remedy == "Did you mean 'lora'? Valid: ia3, lora, qlora."


def test_unknown_guesses_nothing_far_off() -> None:
    assert unknown("method", "方法", "zzz", ["lora"]).remedy == "Valid: lora."


def test_unknown_where_nothing_is_valid_yet() -> None:
    assert unknown("task", "任务", "support", []).remedy == "Valid: none yet."


def test_unknown_takes_a_value_of_any_type() -> None:
    assert unknown("version", "版本", 7, ["1", "2"]).message == "Unknown version: 7."


def test_unknown_in_chinese() -> None:
    def made() -> UsageError:
        set_language("zh")
        return unknown("method", "方法", "lorra", ["lora"])

    error = Context().run(made)
    assert error.message == "未知的方法：'lorra'。"
    assert error.remedy == "是否想用 'lora'？可用：lora。"
