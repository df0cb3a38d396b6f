"""`onebase generate` and `classify`."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from onebase.adapters.methods import parse_options
from onebase.cli.loading import TaskLoader
from onebase.cli.request_file import read_requests
from onebase.cli.session import (
    BaseOption,
    EncodingOption,
    JsonOption,
    LangOption,
    PrecisionOption,
    WorkspaceOption,
    begin,
)
from onebase.engine.pool import BASE_TASK
from onebase.engine.prompt import Prompt, require_text
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError
from onebase.language import say

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
    engine = TaskLoader(session, [name for name, _ in requests], base, precision).engine
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
        typer.Option("--labels", help="Labels with commas between; given twice, one label each."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="One label, commas and all; repeatable.")
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
    engine = TaskLoader(session, [task], base, precision).engine
    loaded = engine.tasks[task]
    one_each = [name for item in label or [] if (name := item.strip())]
    names = dict.fromkeys([*one_each, *labels_of(labels or [], loaded.labels)])
    if (labels or label) and not names:
        given = ", ".join(map(repr, [*(labels or []), *(label or [])]))
        raise UsageError(
            say(f"{given} names no labels.", f"{given} 中没有标签。"),
            say(
                "Give at least one: --label yes --label no.",
                "请至少给出一个：--label 是 --label 否。",
            ),
        )
    scores = engine.classify(task, [text], list(names))[0]
    session.show(
        {
            "task": loaded.task,
            "version": loaded.version,
            "labels": [asdict(score) for score in scores],
        },
        *(f"{score.probability:7.1%}  {score.label}" for score in scores),
    )


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


def sampling_of(**settings: Any) -> Sampling:
    """The sampling options as one value. Raises UsageError."""
    return parse_options(Sampling, settings)
