"""`onebase resume`: go on with a training that was interrupted."""

from typing import Annotated

import typer

from onebase.cli.align import resume_align
from onebase.cli.session import JsonOption, LangOption, WorkspaceOption, begin
from onebase.cli.training import live_display, load_base, show_trained
from onebase.serving.server_lock import yield_to_server
from onebase.training.resume import resumable_run, resume, wanted_base


def resume_command(
    run: Annotated[str, typer.Argument(help="The run's id, or its beginning.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Continue an interrupted run exactly."""
    session = begin(workspace, as_json, lang)
    found = resumable_run(session.workspace, run)
    base = load_base(*wanted_base(found))
    if "align" in found.config:
        resume_align(session, found.id, base)
        return
    with yield_to_server(session.workspace), live_display() as display:
        stored = resume(found.id, base=base, workspace=session.workspace, watcher=display)
    show_trained(session, stored)
