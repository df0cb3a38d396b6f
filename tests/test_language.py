"""Which language is spoken, by what was set and by the locale."""

import locale
from contextvars import Context, copy_context

import pytest

from onebase.language import language, say, set_language

VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")


@pytest.fixture(autouse=True)
def no_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """No locale in the environment."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("zh_CN.UTF-8", "zh"),
        ("ZH_TW", "zh"),
        ("zh-Hans", "zh"),
        ("en_GB.UTF-8", "en"),
        ("C", "en"),
        ("de_DE.UTF-8", "en"),
    ],
)
def test_the_locale_decides(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert Context().run(language) == expected


def test_lc_all_comes_before_lang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    assert Context().run(language) == "en"


def test_an_empty_variable_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "")
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert Context().run(language) == "zh"


@pytest.mark.parametrize(
    ("name", "expected"),
    [(None, "en"), ("en_US", "en"), ("zh_CN", "zh"), ("Chinese (Simplified)_China", "zh")],
)
def test_without_variables_the_system_decides(
    monkeypatch: pytest.MonkeyPatch, name: str | None, expected: str
) -> None:
    monkeypatch.setattr(locale, "getlocale", lambda: (name, "UTF-8"))
    assert Context().run(language) == expected


def test_what_was_set_comes_before_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "en_US.UTF-8")

    def speak() -> str:
        set_language("zh")
        return say("hello", "你好")

    assert copy_context().run(speak) == "你好"


def test_a_language_is_set_for_its_own_context_only() -> None:
    first, second = Context(), Context()
    first.run(set_language, "zh")
    second.run(set_language, "en")
    assert (first.run(say, "yes", "是"), second.run(say, "yes", "是")) == ("是", "yes")
