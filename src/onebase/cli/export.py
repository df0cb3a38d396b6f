"""`onebase export`: leave with what is yours."""

from pathlib import Path
from typing import Annotated

import typer

from onebase.cli.session import BaseOption, JsonOption, LangOption, WorkspaceOption, begin, note
from onebase.export.export import export
from onebase.language import say


def export_command(
    task: Annotated[str, typer.Option(help="task or task@version; base: the bare base.")],
    to: Annotated[str, typer.Option(help="peft, merged or gguf.")],
    out: Annotated[Path, typer.Option(help="A folder that is empty or not there yet.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="merged: fp32 (default), bf16, fp16; gguf: f16 (default), f32, q8_0."),
    ] = None,
    base: BaseOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Write an adapter for PEFT, merged into its base, or for llama.cpp."""
    session = begin(workspace, as_json, lang)
    written = export(session.store, task, to, out, dtype=dtype, base=base)
    for text in written.notes:
        note(say(f"Note: {text}", f"注意：{text}"))
    sizes = {file.relative_to(out).as_posix(): file.stat().st_size for file in written.files}
    session.show(
        {
            "task": written.task,
            "version": written.version,
            "to": written.to,
            "out": str(out),
            "files": [{"name": name, "bytes": size} for name, size in sizes.items()],
            "notes": list(written.notes),
        },
        *(
            say(f"{out / name}: {size:,} bytes", f"{out / name}：{size:,} 字节")
            for name, size in sizes.items()
        ),
    )
