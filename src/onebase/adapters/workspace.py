"""The workspace: the folder that holds what a user's training has made."""

import os
import shlex
from pathlib import Path

from onebase.data.paths import shown_if_not_utf8
from onebase.errors import FolderError
from onebase.language import say


class Workspace:
    """`root`, or else `$ONEBASE_WORKSPACE`, or else `./workspace`.

    Nothing is created here: each folder appears with the first thing written into it.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        chosen = root or os.environ.get("ONEBASE_WORKSPACE") or "workspace"
        self.root = Path(chosen).expanduser()

    @property
    def adapters(self) -> Path:
        """Where the versions of every task's adapter are."""
        return self.root / "adapters"

    @property
    def runs(self) -> Path:
        """Where every run has its folder."""
        return self.root / "runs"

    @property
    def option(self) -> str:
        """What a command needs behind it to work on this workspace: nothing, where that is the usual
        one.
        """
        if self.root.absolute() == Workspace().root.absolute():
            return ""
        return f" --workspace {shlex.quote(str(self.root))}"

    def require_writable(self) -> None:
        """Raise FolderError unless something can be written into it; nothing is."""
        if shown := shown_if_not_utf8(self.root):
            raise FolderError(
                say(
                    f"The path of the workspace {shown} is not UTF-8: no adapter could be written "
                    "into it.",
                    f"工作区 {shown} 的路径不是 UTF-8，无法写入适配器。",
                ),
                say(
                    "Choose another folder with --workspace or ONEBASE_WORKSPACE.",
                    "请用 --workspace 或 ONEBASE_WORKSPACE 指定其他目录。",
                ),
            )
        there = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        if there.is_dir() and os.access(there, os.W_OK):
            return
        raise FolderError(
            say(
                f"Nothing can be written into the workspace {self.root}: {there} "
                + ("is read-only." if there.is_dir() else "is a file."),
                f"无法写入工作区 {self.root}：{there} "
                + ("只读。" if there.is_dir() else "是文件。"),
            ),
            say(
                "Choose another folder with --workspace or ONEBASE_WORKSPACE.",
                "请用 --workspace 或 ONEBASE_WORKSPACE 指定其他目录。",
            ),
        )


def write_whole(file: Path, text: str) -> None:
    """Put `text` in place of what `file` held: a reader sees the old text or the new, never half.

    One writer at a time.
    """
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
