"""Paths that JSON and YAML can hold: those whose bytes are UTF-8."""

from pathlib import Path


def shown_if_not_utf8(path: str | Path) -> str:
    """The absolute path with `?` in place of the bytes that are not UTF-8; empty where all of them are."""
    absolute = str(Path(path).absolute())
    shown = absolute.encode("utf-8", "replace").decode("utf-8")
    return "" if shown == absolute else shown
