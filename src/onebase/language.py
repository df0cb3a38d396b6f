"""The language of messages to the user: English or Chinese."""

import locale
import os
from contextvars import ContextVar
from typing import Literal

Language = Literal["en", "zh"]

_current: ContextVar[Language | None] = ContextVar("language", default=None)


def set_language(language: Language) -> None:
    """Use this language from now on, in this context."""
    _current.set(language)


def language() -> Language:
    """The current language: the one that was set, or else the locale's."""
    return _current.get() or _from_locale()


def say(en: str, zh: str) -> str:
    """The wording of a message in the current language."""
    return zh if language() == "zh" else en


def _from_locale() -> Language:
    for variable in ("LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(variable)
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    name = locale.getlocale()[0] or ""
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"
