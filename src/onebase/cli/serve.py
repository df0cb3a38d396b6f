"""`onebase serve`."""

import time
from typing import Annotated

import typer

from onebase.cli.options import BaseOption, SessionFlags
from onebase.cli.session import begin


def serve_command(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 picks a free one.")] = 8000,
    tasks: Annotated[
        str | None, typer.Option(help="The tasks to serve, separated by commas; all by default.")
    ] = None,
    base: BaseOption = None,
    precision: Annotated[
        str,
        typer.Option(help="Precision of the base's weights: auto, fp32, w8a8, int8, nf4 …"),
    ] = "auto",
    allow_full: Annotated[
        bool,
        typer.Option(
            "--allow-full", help="Also serve fully fine-tuned tasks; each loads its own base."
        ),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A host name that clients may use for this server; repeatable."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="An origin whose web pages may call this server; repeatable."),
    ] = None,
    adapter_memory: Annotated[
        str, typer.Option(help="Memory for adapters, such as 500MB.")
    ] = "1GB",
    max_body: Annotated[str, typer.Option(help="Largest request body.")] = "4MB",
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt, in tokens.")
    ] = None,
    default_max_tokens: Annotated[
        int, typer.Option(help="Longest chat answer, in tokens, if the request sets no limit.")
    ] = 1024,
    concurrent: Annotated[int, typer.Option(help="Sequences to generate at the same time.")] = 64,
    queue: Annotated[int, typer.Option(help="Further sequences that may wait.")] = 256,
    timeout: Annotated[float, typer.Option(help="Time limit of a request, in seconds.")] = 600.0,
    drain: Annotated[
        float, typer.Option(help="Seconds for running answers to finish when the server stops.")
    ] = 30.0,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts and answers to the log.")
    ] = False,
    *,
    flags: SessionFlags,
) -> None:
    """Serve every task over HTTP, with an OpenAI-compatible API."""
    from onebase.adapters.methods import parse_options
    from onebase.cli.server_start import start_server
    from onebase.cli.units import byte_count
    from onebase.serving.settings import Limits, ServerSettings

    began = time.perf_counter()
    session = begin(flags)
    limits = {
        "body_bytes": byte_count("max-body", max_body),
        "prompt_tokens": max_prompt_tokens,
        "concurrent": concurrent,
        "queue": queue,
        "seconds": timeout,
        "default_tokens": default_max_tokens,
    }
    names = tuple(part.strip() for part in (tasks or "").split(",") if part.strip())
    settings = parse_options(
        ServerSettings,
        {
            "host": host,
            "port": port,
            "tasks": names,
            "allow_full": allow_full,
            "allowed_hosts": tuple(allowed_host or ()),
            "allow_origins": tuple(allow_origin or ()),
            "adapter_bytes": byte_count("adapter-memory", adapter_memory),
            "drain_seconds": drain,
            "log_prompts": log_prompts,
            "limits": parse_options(Limits, limits),
        },
    )
    start_server(session, settings, base, precision, began)
