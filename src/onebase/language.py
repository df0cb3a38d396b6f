"""Which of the two languages, English or Chinese, the product speaks to its user."""

import locale
import os
from contextvars import ContextVar
from typing import Literal

Language = Literal["en", "zh"]

_current: ContextVar[Language | None] = ContextVar("language", default=None)


def set_language(language: Language) -> None:
    """Speak this language from here on, in this context."""
    _current.set(language)


def language() -> Language:
    """The language in force: the one set, or else the locale's."""
    return _current.get() or _from_locale()


def say(en: str, zh: str) -> str:
    """Of two wordings of one message, the one in the language in force."""
    return zh if language() == "zh" else en


def _from_locale() -> Language:
    for variable in ("LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(variable)
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    name = locale.getlocale()[0] or ""
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"
