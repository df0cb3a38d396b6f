"""Every error a user can cause or meet: what is wrong, and what to do about it.

The command line prints the two sentences and leaves with `exit_code`; a caller in Python
catches `OnebaseError`, one of its leaves, or the built-in error that the leaf also is.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from onebase.language import say


class OnebaseError(Exception):
    """The root. `message` states the fact, `remedy` the way out."""

    code = "failed"
    exit_code = 1

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message} {remedy}")
        self.message = message
        self.remedy = remedy


class UsageError(OnebaseError, ValueError):
    """A wrong name, option or value."""

    code = "usage"
    exit_code = 2


class DataError(OnebaseError, ValueError):
    """A data file that can't be learned from."""

    code = "data"
    exit_code = 3


class CapacityError(OnebaseError, MemoryError):
    """What was asked for does not fit this machine."""

    code = "capacity"
    exit_code = 4


class MissingBaseError(OnebaseError, FileNotFoundError):
    """A base model that can't be found or fetched."""

    code = "missing_base"


class FolderError(OnebaseError, OSError):
    """A folder of ours, the cache or the workspace, that can't be found or written to."""

    code = "folder"


class CorruptFileError(OnebaseError, ValueError):
    """A file of ours, or of PEFT's, that is damaged or does not fit its base."""

    code = "corrupt"


def unknown(what: str, what_zh: str, value: object, valid: Iterable[str]) -> UsageError:
    """The error for a name that is none of `valid`; names the nearest, then all of them."""
    names = sorted(valid)
    near = get_close_matches(str(value), names, n=1)
    listed = ", ".join(names) or say("none yet", "暂无")
    hint = say(f"Did you mean {near[0]!r}? ", f"是否想用 {near[0]!r}？") if near else ""
    return UsageError(
        say(f"Unknown {what}: {value!r}.", f"未知的{what_zh}：{value!r}。"),
        hint + say(f"Valid: {listed}.", f"可用：{listed}。"),
    )
