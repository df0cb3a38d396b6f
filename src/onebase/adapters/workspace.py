"""The workspace: the folder that holds a user's adapters and runs."""

import os
import shlex
from pathlib import Path

from onebase.data.utf8_paths import shown_if_not_utf8
from onebase.errors import FolderError
from onebase.language import say


class Workspace:
    """The folder `root`, by default `$ONEBASE_WORKSPACE`, else `./workspace`.

    Creates nothing: each folder is made when something is first written into it.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        chosen = root or os.environ.get("ONEBASE_WORKSPACE") or "workspace"
        self.root = Path(chosen).expanduser()

    @property
    def adapters(self) -> Path:
        """The folder of all adapters, by task and version."""
        return self.root / "adapters"

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.root / "runs"

    @property
    def option(self) -> str:
        """The option that makes a command use this workspace; empty for the default workspace."""
        if self.root.absolute() == Workspace().root.absolute():
            return ""
        return f" --workspace {shlex.quote(str(self.root))}"

    def require_writable(self) -> None:
        """Raise FolderError unless the workspace can be written to; writes nothing."""
        if shown := shown_if_not_utf8(self.root):
            raise FolderError(
                say(
                    f"The path of the workspace {shown} is not UTF-8, so no adapter can be written "
                    "to it.",
                    f"工作区 {shown} 的路径不是 UTF-8，无法写入适配器。",
                ),
                say(
                    "Choose another folder with --workspace or ONEBASE_WORKSPACE.",
                    "请用 --workspace 或 ONEBASE_WORKSPACE 指定其他目录。",
                ),
            )
        nearest = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        if nearest.is_dir() and os.access(nearest, os.W_OK):
            return
        raise FolderError(
            say(
                f"The workspace {self.root} can't be written to: {nearest} "
                + ("is read-only." if nearest.is_dir() else "is a file."),
                f"无法写入工作区 {self.root}：{nearest} "
                + ("只读。" if nearest.is_dir() else "是文件。"),
            ),
            say(
                "Choose another folder with --workspace or ONEBASE_WORKSPACE.",
                "请用 --workspace 或 ONEBASE_WORKSPACE 指定其他目录。",
            ),
        )


def write_whole(file: Path, text: str) -> None:
    """Replace the content of `file`; a reader sees the old text or the new one, never a part.

    Only one process may write at a time.
    """
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
