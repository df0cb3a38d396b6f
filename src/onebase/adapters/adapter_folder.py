"""The folder that an adapter is read from, and the errors for its files."""

from dataclasses import dataclass
from pathlib import Path

import torch

from onebase.errors import CorruptFileError
from onebase.language import say


@dataclass(frozen=True)
class AdapterFolder:
    """The folder that an adapter is read from; `foreign` while it is imported."""

    path: Path
    foreign: bool = False

    def damaged(
        self, file: str, reason: str, remedy: str = "", *, while_imported: str = ""
    ) -> CorruptFileError:
        """The error for an unusable file of the adapter, with a `remedy`, with one that holds only while
        it is imported, or with a general one.
        """
        if self.foreign:
            remedy = (
                remedy
                or while_imported
                or say(
                    "Copy the files again from where the adapter was trained: the folder that PEFT's "
                    "save_pretrained wrote.",
                    "请从训练该适配器的地方重新复制文件，即 PEFT 的 save_pretrained 写出的目录。",
                )
            )
        return CorruptFileError(
            say(
                f"{self.path / file} can't be used: {reason}.",
                f"无法使用 {self.path / file}：{reason}。",
            ),
            remedy
            or say(
                "Train the task again, roll back to an earlier version, or import the adapter again.",
                "请重新训练该任务、回退到更早的版本，或重新导入适配器。",
            ),
        )


def shape_mismatch(name: str, actual: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The reason for refusing a tensor whose shape does not fit the base."""
    return say(
        f"{name} has shape {actual}, but this base needs {expected}",
        f"{name} 的形状为 {actual}，应为 {expected}",
    )


def not_floating_point(name: str, dtype: torch.dtype) -> str:
    """The reason for refusing a tensor of another dtype."""
    kind = str(dtype).removeprefix("torch.")
    return say(f"{name} holds {kind}, not floating point", f"{name} 为 {kind}，而非浮点数")
