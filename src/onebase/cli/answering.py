"""`onebase generate`, `classify` and `chat`.

Modules that import torch are imported in the commands, so that shell completion and `--help` stay fast.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from onebase.cli.options import (
    BaseFlags,
    BaseOption,
    EncodingOption,
    PrecisionOption,
    SamplingFlags,
    SessionFlags,
)
from onebase.cli.session import begin, note
from onebase.errors import UsageError
from onebase.language import say

MaxTokensOption = Annotated[int, typer.Option("--max-tokens", help="Longest answer, in tokens.")]


def generate_command(
    task: Annotated[str | None, typer.Option(help="The task, task@version, or base.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt to answer.")] = None,
    file: Annotated[Path | None, typer.Option(help='Rows with "task" and "input".')] = None,
    encoding: EncodingOption = None,
    *,
    base: BaseFlags,
    max_tokens: MaxTokensOption = 128,
    sampling: SamplingFlags,
    stop: Annotated[
        list[str] | None, typer.Option(help="End the answer before this text; repeatable.")
    ] = None,
    flags: SessionFlags,
) -> None:
    """Answer a prompt, or a file of requests for several tasks in mixed batches."""
    from onebase.cli.loading import TaskLoader
    from onebase.cli.request_file import requests_of
    from onebase.cli.sampling import sampling_of

    session = begin(flags)
    chosen = sampling_of(sampling, max_tokens=max_tokens, stop=tuple(stop or ()))
    if (prompt is None) == (file is None):
        raise UsageError(
            say("Give either --prompt or --file.", "请给出 --prompt 或 --file 之一。"),
            say(
                "For example --task support --prompt 'Hello'.",
                "例如 --task support --prompt '你好'。",
            ),
        )
    requests = requests_of(prompt, file, task, encoding=encoding)
    loader = TaskLoader(session, [name for name, _ in requests], base.base, base.precision)
    answers = loader.engine.generate(requests, chosen)
    rows = [
        {key: value for key, value in asdict(answer).items() if key != "margin"}
        for answer in answers
    ]
    lines = [f"[{answer.task}] {answer.text}" if file else answer.text for answer in answers]
    session.show({"answers": rows}, *lines)


def classify_command(
    task: Annotated[str, typer.Option(help="A task trained on text and label.")],
    text: Annotated[str, typer.Option(help="The text to classify.")],
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", help="Labels separated by commas; if repeated, one label each."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="One label, which may contain commas; repeatable."),
    ] = None,
    *,
    base: BaseFlags,
    flags: SessionFlags,
) -> None:
    """Score every label of a task for a text; nothing is sampled."""
    from onebase.cli.label_options import chosen_labels
    from onebase.cli.loading import TaskLoader
    from onebase.engine.prompt import require_text

    session = begin(flags)
    require_text(text)
    engine = TaskLoader(session, [task], base.base, base.precision).engine
    loaded = engine.tasks[task]
    names = chosen_labels(labels or [], label or [], loaded.labels)
    scores = engine.classify(task, [text], names)[0]
    session.show(
        {
            "task": loaded.task,
            "version": loaded.version,
            "labels": [asdict(score) for score in scores],
        },
        *(f"{score.probability:7.1%}  {score.label}" for score in scores),
    )


def chat_command(
    task: Annotated[str, typer.Option(help="The task to start with.")] = "base",
    base: BaseOption = None,
    precision: PrecisionOption = "auto",
    max_tokens: MaxTokensOption = 256,
    *,
    sampling: SamplingFlags,
    flags: SessionFlags,
) -> None:
    """Chat with a task. /task NAME switches, /reset clears the conversation, /quit exits."""
    from onebase.cli.chat import Chat, lines_of_stdin
    from onebase.cli.loading import TaskLoader
    from onebase.cli.sampling import sampling_of

    session = begin(flags)
    chosen = sampling_of(sampling, max_tokens=max_tokens)
    chat = Chat(session, TaskLoader(session, [task], base, precision), task, chosen)
    note(
        say(
            "/task NAME switches, /reset clears the conversation, /quit exits.",
            "/task 名称 切换任务，/reset 清空对话，/quit 退出。",
        )
    )
    try:
        chat.run(lines_of_stdin())
    except KeyboardInterrupt:
        chat.show()
        raise
    chat.show()
