"""`onebase export`: writes an adapter in a format of other programs."""

from pathlib import Path
from typing import Annotated

import typer

from onebase.cli.options import BaseOption, SessionFlags
from onebase.cli.session import begin, note_all
from onebase.language import say
from onebase.quantity import size


def export_command(
    task: Annotated[
        str, typer.Option(help="task or task@version; base exports the base without an adapter.")
    ],
    to: Annotated[str, typer.Option(help="peft, merged or gguf.")],
    out: Annotated[Path, typer.Option(help="The output folder; it must be empty or not exist.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="merged: fp32 (default), bf16, fp16; gguf: f16 (default), f32, q8_0."),
    ] = None,
    base: BaseOption = None,
    *,
    flags: SessionFlags,
) -> None:
    """Export an adapter for PEFT, merged into its base, or for llama.cpp."""
    from onebase.export.export import export  # late: it imports torch and transformers

    session = begin(flags)
    written = export(session.store, task, to, out, dtype=dtype, base=base)
    note_all(written.notes)
    sizes = {file.relative_to(out).as_posix(): file.stat().st_size for file in written.files}
    session.show(
        {
            "task": written.task,
            "version": written.version,
            "to": written.to,
            "out": str(out),
            "files": [{"name": name, "bytes": count} for name, count in sizes.items()],
            "notes": list(written.notes),
        },
        say(
            f"Exported {written.task}@{written.version} as {written.to} to {out}:",
            f"已将 {written.task}@{written.version} 以 {written.to} 格式导出到 {out}：",
        )
        if written.version
        else say(
            f"Exported the base as {written.to} to {out}:",
            f"已将基座以 {written.to} 格式导出到 {out}：",
        ),
        *(
            say(f"  {out / name}: {size(count)}", f"  {out / name}：{size(count)}")
            for name, count in sizes.items()
        ),
    )
