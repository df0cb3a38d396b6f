"""`onebase resume`: go on with a training that was interrupted."""

from typing import Annotated

import typer

from onebase.cli.align import resume_align
from onebase.cli.display import run_display
from onebase.cli.session import JsonOption, LangOption, WorkspaceOption, begin
from onebase.cli.training import load_base, show_trained
from onebase.runs.resume import resumable_run
from onebase.serving.server_lock import yield_to_server
from onebase.training.run_config import base_in
from onebase.training.train import resume


def resume_command(
    run: Annotated[str, typer.Argument(help="The run's id, or its beginning.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Continue an interrupted run exactly."""
    session = begin(workspace, as_json, lang)
    found = resumable_run(session.workspace, run)
    base = load_base(*base_in(found))
    if "align" in found.config:
        resume_align(session, found.id, base)
        return
    with yield_to_server(session.workspace), run_display() as display:
        stored = resume(found.id, base=base, workspace=session.workspace, observer=display)
    show_trained(session, stored)
