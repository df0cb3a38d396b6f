"""`onebase generate`, `classify` and `chat`."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from onebase.adapters.full import FULL
from onebase.adapters.methods import parse_options
from onebase.cli.request_file import read_requests
from onebase.cli.session import (
    BaseOption,
    EncodingOption,
    JsonOption,
    LangOption,
    PrecisionOption,
    Session,
    WorkspaceOption,
    begin,
    note,
)
from onebase.data.example import Turn
from onebase.engine.engine import Engine
from onebase.engine.pool import BASE_TASK
from onebase.engine.prompt import Prompt, require_text
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import DEFAULT_BASE, lasting_name

AUTO = "auto"
_QUOTED = re.compile(r'"([^"]+)"\s*(?=,|$)')
_PIECE = re.compile(r"([^,]+)")

MaxTokens = Annotated[int, typer.Option("--max-tokens", help="The longest answer.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", help="Nucleus sampling.")]
TopK = Annotated[int, typer.Option("--top-k", help="0 cuts nothing.")]
MinP = Annotated[
    float, typer.Option("--min-p", help="Cut tokens less likely than this share of the best one.")
]
RepetitionPenalty = Annotated[
    float,
    typer.Option("--repetition-penalty", help="Above 1, tokens of prompt and answer come less."),
]
FrequencyPenalty = Annotated[
    float,
    typer.Option("--frequency-penalty", help="Taken off for each time a token has been said."),
]
PresencePenalty = Annotated[
    float, typer.Option("--presence-penalty", help="Taken off once a token has been said.")
]
Seed = Annotated[int | None, typer.Option(help="For repeatable draws.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")]


def generate_command(
    task: Annotated[str | None, typer.Option(help="The task, task@version, or base.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to answer.")] = None,
    file: Annotated[Path | None, typer.Option(help='Rows {"task", "input"}.')] = None,
    encoding: EncodingOption = None,
    base: BaseOption = None,
    precision: PrecisionOption = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    presence_penalty: PresencePenalty = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Answer a prompt, or a file of requests in mixed batches."""
    session = begin(workspace, as_json, lang)
    sampling = sampling_of(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    if (prompt is None) == (file is None):
        raise UsageError(
            say("Give either --prompt or --file.", "请给出 --prompt 或 --file 之一。"),
            say(
                "For example --task support --prompt 'Hello'.",
                "例如 --task support --prompt '你好'。",
            ),
        )
    if prompt is not None:
        require_text(prompt)
    requests: list[tuple[str, Prompt]] = (
        [(task or BASE_TASK, str(prompt))]
        if file is None
        else read_requests(file, task, encoding=encoding)
    )
    engine = engine_for(session, [name for name, _ in requests], base, precision)
    answers = engine.generate(requests, sampling)
    shown = [
        {key: value for key, value in asdict(item).items() if key != "margin"} for item in answers
    ]
    lines = (
        [item.text for item in answers]
        if file is None
        else [f"[{item.task}] {item.text}" for item in answers]
    )
    session.show({"answers": shown}, *lines)


def classify_command(
    task: Annotated[str, typer.Option(help="A task trained on text and label.")],
    text: Annotated[str, typer.Option(help="What to classify.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(help="Another label; repeatable. One alone is split at its commas."),
    ] = None,
    base: BaseOption = None,
    precision: PrecisionOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Score every label of a task for a text; nothing is sampled."""
    session = begin(workspace, as_json, lang)
    require_text(text)
    engine = engine_for(session, [task], base, precision)
    loaded = engine.tasks[task]
    scores = engine.classify(task, [text], labels_of(labels or [], loaded.labels))[0]
    session.show(
        {
            "task": loaded.task,
            "version": loaded.version,
            "labels": [asdict(score) for score in scores],
        },
        *(f"{score.probability:7.1%}  {score.label}" for score in scores),
    )


def chat_command(
    task: Annotated[str, typer.Option(help="The task to begin with.")] = BASE_TASK,
    base: BaseOption = None,
    precision: PrecisionOption = AUTO,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    presence_penalty: PresencePenalty = 0.0,
    seed: Seed = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Talk to a task; /task NAME switches, /reset forgets, /quit leaves."""
    session = begin(workspace, as_json, lang)
    sampling = sampling_of(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        seed=seed,
    )
    engine = engine_for(session, [task], base, precision)
    note(
        say(
            "/task NAME switches, /reset forgets, /quit leaves.",
            "/task 名称 切换任务，/reset 清空，/quit 退出。",
        )
    )
    turns: list[Turn] = []
    said: list[dict[str, Any]] = []
    for line in _lines():
        if line.startswith("/"):
            command, _, argument = line.partition(" ")
            if command == "/quit":
                break
            if command == "/reset":
                turns = []
            elif command == "/task":
                task = _switch(session, engine, argument.strip(), task)
                turns = []
            else:
                note(say("Commands: /task NAME, /reset, /quit", "命令：/task 名称、/reset、/quit"))
            continue
        turns.append(Turn("user", line))
        text = ""
        for part in streamed(engine, task, turns, sampling):
            text += part
            if not session.json:
                print(part, end="", flush=True)
        if not session.json:
            print(flush=True)
        turns.append(Turn("assistant", text or " "))
        said.append({"task": engine.tasks[task].task, "prompt": line, "text": text})
    if session.json:
        session.show({"answers": said})


def labels_of(options: Sequence[str], known: Sequence[str]) -> list[str]:
    """The labels that `--labels` names: each option is one; one option alone is a list with commas,
    in which a label that is `known`, or in double quotes, may hold commas of its own.
    """
    if len(options) != 1:
        return list(dict.fromkeys(name for option in options if (name := option.strip())))
    (text,) = options
    own = sorted((label for label in known if "," in label), key=len, reverse=True)
    found: list[str] = []
    while text := text.strip(" ,\t\n"):
        label = next((name for name in own if re.match(rf"{re.escape(name)}\s*(,|$)", text)), None)
        if label is None:
            piece = _QUOTED.match(text) or _PIECE.match(text)
            assert piece  # the text does not begin with a comma
            label, text = piece[1].strip(), text[piece.end() :]
        else:
            text = text[len(label) :]
        found.append(label)
    return list(dict.fromkeys(found))


def streamed(engine: Engine, task: str, turns: Sequence[Turn], sampling: Sampling) -> Iterator[str]:
    """The parts of an answer as they come, without white space around the whole."""
    request = engine.add_request(task, turns, sampling)
    waiting, begun = "", False  # white space that more text has to follow
    try:
        while request.finish_reason is None:
            for event in engine.step():
                text = waiting + event.text if begun else event.text.lstrip()
                waiting = text[len(text.rstrip()) :]
                if part := text.rstrip():
                    begun = True
                    yield part
    finally:
        engine.abort(request)


def _lines() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _switch(session: Session, engine: Engine, name: str, current: str) -> str:
    """Load and switch to a task; an unknown name is told and changes nothing."""
    try:
        if name not in engine.tasks:
            _load(session, engine, [name])
    except UsageError as error:
        note(f"{error.message} {error.remedy}")
        return current
    note(say(f"Now: {name}", f"当前任务：{name}"))
    return name


def engine_for(
    session: Session, tasks: Sequence[str], base: str | None, precision: str | None
) -> Engine:
    """An engine with these tasks loaded, on their own base unless another is named, in the
    precision that all of them were trained in unless another is named. `auto` is w8a8 where that
    costs the base little.

    Unknown tasks are refused before the base is loaded.
    """
    wanted = list(dict.fromkeys(tasks))
    stored = [_stored(session, name) for name in wanted if name != BASE_TASK]
    trained_on = dict.fromkeys(
        lasting_name(str(item.record.get("base", DEFAULT_BASE))) for item in stored
    )
    if base is None and len(trained_on) > 1:
        raise UsageError(
            say(
                f"These tasks were trained on different bases: {', '.join(trained_on)}.",
                f"这些任务训练于不同的基座：{'、'.join(trained_on)}。",
            ),
            say("Ask for the tasks of one base at a time.", "请分别使用同一基座上的任务。"),
        )
    if base is None and stored and len(stored) == len(wanted) and stored[0].method == FULL:
        base = str(stored[0].path)  # it is a base itself: no need for the one it came from
    trained_in = {item.record.get("precision") for item in stored}
    if precision in (None, AUTO) and len(trained_in) == 1:
        (text,) = trained_in
        precision = text if str(text).startswith(("int8", "nf4")) else precision
    name = base or next(iter(trained_on), DEFAULT_BASE)
    engine = Engine(load_base(name, precision))
    _load(session, engine, wanted)
    return engine


def load_base(name: str, precision: str | None) -> Base:
    """A base to answer with; for `auto` the user is told what was taken, and what it costs."""
    # Imported late: it loads numba, which the other commands of this file's users may not need.
    from onebase.engine.lean.quality import load_for_answering

    base, quality = load_for_answering(name, precision)
    if quality is not None:
        note(
            say(
                f"Precision w8a8: on a sample of texts its loss is {quality.loss:+.3f} nats a token from "
                f"that of fp32, the divergence {quality.divergence:.4f}. --precision fp32 is exact.",
                f"精度 w8a8：在样本文本上，损失与 fp32 相差 {quality.loss:+.3f} 纳特/词元，"
                f"KL 散度为 {quality.divergence:.4f}。需要精确结果时请用 --precision fp32。",
            )
        )
    elif precision == AUTO:
        note(say(f"Precision {base.precision}.", f"精度 {base.precision}。"))
    return base


def _load(session: Session, engine: Engine, tasks: Sequence[str]) -> None:
    for name in tasks:
        if name != BASE_TASK:
            stored = _stored(session, name)
            session.store.verify(stored)
            engine.load(stored, name=name)


def _stored(session: Session, name: str) -> Any:
    store = session.store
    if name.split("@", maxsplit=1)[0] not in store.tasks():
        raise unknown("task", "任务", name, [*store.tasks(), BASE_TASK])
    return store.get(name)


def sampling_of(**settings: Any) -> Sampling:
    """The sampling options as one value. Raises UsageError."""
    return parse_options(Sampling, settings)
