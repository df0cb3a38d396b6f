"""The options that several commands share, each declared once.

A command takes a group of options as one parameter (`base: BaseFlags`); `with_options_of_groups` expands
it for typer. Nothing here imports torch, so that shell completion and `--help` stay fast.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

BaseOption = Annotated[str | None, typer.Option("--base", help="The base model.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="Precision of the base's weights: fp32, bf16, fp16, int8, nf4, nf4:bf16 …; for inference "
        "on a CPU also w8a8 or auto.",
    ),
]
EncodingOption = Annotated[
    str | None,
    typer.Option("--encoding", help="Encoding of data files that are not UTF-8: gb18030, cp1252 …"),
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option("--columns", "--column", help="Column names, as input=a,output=b; repeatable."),
]
InstructionOption = Annotated[
    str | None, typer.Option("--instruction", help="The task's instruction, as a sentence.")
]
HeldOutOption = Annotated[
    str | None, typer.Option("--held-out", help="A data file for evaluation.")
]
TemplateOption = Annotated[
    str, typer.Option("--template", help="auto, chat, plain, or a text with {input}.")
]
TaskOption = Annotated[str | None, typer.Option("--task", help="The task's name.")]
DataOption = Annotated[str | None, typer.Option("--data", help="The data file.")]
StartMethodOption = Annotated[
    str | None, typer.Option("--method", help="Start with a new adapter of this method.")
]
RestartOption = Annotated[
    bool,
    typer.Option("--restart", help="Start over instead of resuming an interrupted run."),
]


@dataclass(frozen=True)
class SessionFlags:
    """The options of every command."""

    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", help="The folder of adapters and runs."),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
    lang: Annotated[str | None, typer.Option("--lang", help="en or zh.")] = None


@dataclass(frozen=True)
class BaseFlags:
    """The base model and its precision."""

    base: BaseOption = None
    precision: PrecisionOption = None


@dataclass(frozen=True)
class JobFlags:
    """What to train: a tasks file, or one task with its data and method."""

    config: Annotated[Path | None, typer.Option("-c", "--config", help="A tasks.yaml.")] = None
    task: TaskOption = None
    data: DataOption = None
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="lora, qlora, ia3, prompt-tuning, p-tuning, p-tuning-v2, full; combine with +.",
        ),
    ] = "lora"


@dataclass(frozen=True)
class AlignFlags:
    """What to align, and the data to learn from."""

    task: Annotated[str, typer.Option("--task", help="The task's name.")]
    data: Annotated[str, typer.Option("--data", help="The data file.")]


@dataclass(frozen=True)
class StartFlags:
    """What an alignment starts from, if not from the task's current adapter."""

    method: StartMethodOption = None
    start: Annotated[
        str | None, typer.Option("--from", help="The adapter to start from: task or task@2.")
    ] = None


@dataclass(frozen=True)
class LearningFlags:
    """How a task's data is read, and the settings of its training."""

    instruction: InstructionOption = None
    held_out: HeldOutOption = None
    template: TemplateOption = "auto"
    columns: ColumnsOption = None
    encoding: EncodingOption = None
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value; repeatable.")] = None
    seed: Annotated[int, typer.Option("--seed", help="The random seed.")] = 0
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip bad rows.")] = False


@dataclass(frozen=True)
class SamplingFlags:
    """How the tokens of an answer are sampled."""

    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0
    top_p: Annotated[float, typer.Option("--top-p", help="Nucleus sampling.")] = 1.0
    top_k: Annotated[int, typer.Option("--top-k", help="Tokens to sample from; 0: all.")] = 0
    min_p: Annotated[
        float,
        typer.Option("--min-p", help="Drop tokens below this fraction of the best probability."),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty",
            help="Above 1, makes tokens of the prompt and the answer less likely.",
        ),
    ] = 1.0
    frequency_penalty: Annotated[
        float,
        typer.Option(
            "--frequency-penalty",
            help="Subtracted from a token's logit for each time it was generated.",
        ),
    ] = 0.0
    presence_penalty: Annotated[
        float,
        typer.Option(
            "--presence-penalty",
            help="Subtracted once from the logit of a generated token.",
        ),
    ] = 0.0
    seed: Annotated[int | None, typer.Option(help="Makes sampling reproducible.")] = None


def with_options_of_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each group parameter replaced by the options of the group."""
    signature = inspect.signature(command)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    options: list[Parameter] = []
    for name, parameter in signature.parameters.items():
        options += _options(groups[name]) if name in groups else [parameter]

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    # Typer reads the signature alone.
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[option.replace(kind=Parameter.KEYWORD_ONLY) for option in options]
    )
    return run


def _options(group: Any) -> Iterator[Parameter]:
    """The fields of a group as parameters. A field without a default is a required option."""
    types = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = Parameter.empty if field.default is MISSING else field.default
        yield Parameter(
            field.name, Parameter.KEYWORD_ONLY, default=default, annotation=types[field.name]
        )
