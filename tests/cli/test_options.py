"""Options that commands share: the same ones everywhere, handed over as one value."""

from dataclasses import fields
from typing import Annotated, Any

import pytest
import typer

from onebase.cli.app import app
from onebase.cli.options import (
    BaseFlags,
    LearningFlags,
    SamplingFlags,
    SessionFlags,
    with_options_of_groups,
)

TRAINING = ["train", "plan", "race", "align reward", "align dpo", "align kto", "align ppo"]


def command(words: str) -> Any:
    """A command as typer builds it."""
    group: Any = typer.main.get_command(app)
    for word in words.split():
        group = group.get_command(None, word)
    return group


def options(words: str) -> dict[str, Any]:
    return {option.name: option for option in command(words).params}


@pytest.mark.parametrize("words", TRAINING)
@pytest.mark.parametrize("group", [BaseFlags, LearningFlags, SessionFlags])
def test_a_command_has_the_options_of_its_groups(words: str, group: Any) -> None:
    options_by_name = options(words)
    for field in fields(group):
        assert options_by_name[field.name].default == field.default
        assert not options_by_name[field.name].required
        assert options_by_name[field.name].help


def test_an_option_without_a_default_is_required() -> None:
    options_by_name = options("align dpo")
    assert [name for name, option in options_by_name.items() if option.required] == ["task", "data"]
    assert not options("train")["task"].required


def test_options_are_listed_in_the_order_of_the_command() -> None:
    assert list(options("train")) == [
        *("config", "task", "data", "method", "base", "precision", "instruction", "held_out"),
        *("template", "columns", "encoding", "set_", "seed", "skip_bad", "restart"),
        *("workspace", "as_json", "lang"),
    ]


def test_a_command_gets_each_group_as_one_value() -> None:
    taken: list[Any] = []

    def answer(
        prompt: Annotated[str, typer.Option()], *, sampling: SamplingFlags, flags: SessionFlags
    ) -> None:
        """Answer."""
        taken.extend([prompt, sampling, flags])

    single = typer.Typer(add_completion=False)
    single.command()(with_options_of_groups(answer))
    arguments = ["--prompt", "Hi", "--top-k", "5", "--seed", "7", "--json"]
    typer.main.get_command(single)(arguments, standalone_mode=False)
    assert taken == ["Hi", SamplingFlags(top_k=5, seed=7), SessionFlags(as_json=True)]


@pytest.mark.parametrize("words", TRAINING)
def test_an_unknown_option_is_refused(words: str, onebase: Any) -> None:
    result = onebase(*words.split(), "--task", "t", "--no-such-option")
    assert result.code == 2
    assert "--no-such-option" in result.err


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--task", "t"), "--task"),
        (("--seed", "3", "--skip-bad"), "--seed, --skip-bad"),
        (("--held-out", "f", "--set", "rank=4"), "--held-out, --set"),
        (("--method", "ia3", "--template", "plain"), "--method, --template"),
    ],
)
def test_flags_beside_a_tasks_file_are_refused(
    given: tuple[str, ...], named: str, onebase: Any
) -> None:
    result = onebase("train", "-c", "tasks.yaml", *given)
    assert result.code == 2
    assert f"Both -c and {named} were given." in result.err


def test_default_flags_beside_a_tasks_file_are_allowed(onebase: Any) -> None:
    result = onebase("train", "-c", "tasks.yaml", "--seed", "0", "--method", "lora")
    assert "Both -c" not in result.err
    assert "tasks.yaml" in result.err  # which is not there
