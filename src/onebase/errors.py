"""The errors that a user can cause or meet: what is wrong, and how to fix it.

The command line prints both sentences and exits with `exit_code`. A caller in Python catches
`OnebaseError`, one of its subclasses, or the built-in error that the subclass also derives from.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from onebase.language import say


class OnebaseError(Exception):
    """The base class. `message` states what is wrong, `remedy` how to fix it."""

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
    """A data file that can't be trained on."""

    code = "data"
    exit_code = 3


class CapacityError(OnebaseError, MemoryError):
    """A request that does not fit this machine."""

    code = "capacity"
    exit_code = 4


class MissingBaseError(OnebaseError, FileNotFoundError):
    """A base model that can't be found or fetched."""

    code = "missing_base"


class FolderError(OnebaseError, OSError):
    """The cache or the workspace, where it can't be found or written to."""

    code = "folder"


class CorruptFileError(OnebaseError, ValueError):
    """A file of onebase or of PEFT that is damaged or does not fit its base."""

    code = "corrupt"


def error_as_values(error: OnebaseError) -> dict[str, str]:
    """An error in values that JSON has, for another process."""
    return {"code": error.code, "message": error.message, "remedy": error.remedy}


def error_from_values(values: Mapping[str, str]) -> OnebaseError:
    """The error that another process has met, in its class."""
    kinds = (UsageError, DataError, CapacityError, MissingBaseError, CorruptFileError)
    known = {kind.code: kind for kind in kinds}
    return known.get(values["code"], OnebaseError)(values["message"], values["remedy"])


def unknown(what: str, what_zh: str, value: object, valid: Iterable[str]) -> UsageError:
    """The error for a name that is not in `valid`: it suggests the nearest one, then lists all."""
    names = sorted(valid)
    closest = get_close_matches(str(value), names, n=1)
    listed = ", ".join(names) or say("none yet", "暂无")
    hint = say(f"Did you mean {closest[0]!r}? ", f"是否想用 {closest[0]!r}？") if closest else ""
    return UsageError(
        say(f"Unknown {what}: {value!r}.", f"未知的{what_zh}：{value!r}。"),
        hint + say(f"Valid: {listed}.", f"可用：{listed}。"),
    )
