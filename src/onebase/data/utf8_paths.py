"""Paths whose bytes are not UTF-8, which JSON and YAML can't hold."""

from pathlib import Path


def shown_if_not_utf8(path: str | Path) -> str:
    """The absolute path with `?` for bytes that are not UTF-8; empty if the path is UTF-8."""
    absolute = str(Path(path).absolute())
    shown = absolute.encode("utf-8", "replace").decode("utf-8")
    return "" if shown == absolute else shown
