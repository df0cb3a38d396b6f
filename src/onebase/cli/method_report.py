"""The methods and their options as text, from the descriptions in the code."""

from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from onebase.adapters.methods import ALIASES, METHODS, Method, parts_of
from onebase.adapters.workspace import Workspace
from onebase.cli.units import aligned, settings_text
from onebase.language import say
from onebase.quantity import listed
from onebase.training.options import TrainOptions


def overview() -> dict[str, Any]:
    """All methods with their summaries, for JSON."""
    methods = [
        {"method": name, "summary": say(*method.summary), "learning_rate": method.learning_rate}
        for name, method in METHODS.items()
    ]
    return {"methods": methods, "aliases": ALIASES}


def overview_lines() -> list[str]:
    """All methods as text, one per line."""
    rows = [[name, say(*method.summary)] for name, method in METHODS.items()]
    aliases = [
        say(f"{alias} is another name of {name}.", f"{alias} 是 {name} 的别名。")
        for alias, name in ALIASES.items()
    ]
    return [
        *aligned(rows, indent=""),
        *aliases,
        say(
            "Methods of different kinds can be combined, as in lora+p-tuning.",
            "不同类型的方法可以组合，例如 lora+p-tuning。",
        ),
        say(
            "For options, defaults and the paper: onebase methods NAME",
            "查看选项、默认值与论文：onebase methods 名称",
        ),
    ]


def method_result(name: str) -> dict[str, Any]:
    """One method, or each of a composite, for JSON. Raises UsageError for an unknown one."""
    return {
        "methods": [
            {
                "method": part,
                "summary": say(*METHODS[part].summary),
                "paper": say(*METHODS[part].paper),
                "not_for": say(*METHODS[part].not_for),
                "options": list(_options(METHODS[part].options)),
                "training_options": list(_training_options(METHODS[part])),
            }
            for part in parts_of(name)
        ]
    }


def method_lines(name: str, workspace: Workspace) -> list[str]:
    """One method, or each of a composite, as text. Raises UsageError for an unknown one."""
    lines = []
    for part in parts_of(name):
        method = METHODS[part]
        lines += [
            part,
            f"  {say(*method.summary)}",
            say(f"  Paper: {method.paper[0]}", f"  论文：{method.paper[1]}"),
            f"  {say(*method.not_for)}",
            "",
            say(f"Options of {part} (--set key=value):", f"{part} 的选项（--set key=value）："),
            *_option_lines(_options(method.options)),
            "",
            say(
                f"Training options, with the defaults for {part} (--set key=value):",
                f"训练选项，附 {part} 的默认值（--set key=value）：",
            ),
            *_option_lines(_training_options(method)),
            "",
        ]
    methods, option = "+".join(parts_of(name)), workspace.option
    example = f"onebase train --task T --data F --method {methods} --set epochs=5{option}"
    return [*lines, say(f"For example: {example}", f"例如：{example}")]


def _option_lines(options: Iterator[dict[str, Any]]) -> list[str]:
    lines = []
    for option in options:
        name, default = option["name"], option["default"]
        start = (
            say(f"  {name}: no default", f"  {name}：无默认值")
            if default is None
            else f"  {settings_text({name: default})}"
        )
        lines.append(start + say(f" ({option['allowed']})", f"（{option['allowed']}）"))
        if option["description"]:
            lines.append(f"      {option['description']}")
    return lines


def _training_options(method: Method) -> Iterator[dict[str, Any]]:
    """The options of every training, with the method's own defaults."""
    defaults = {"learning_rate": method.learning_rate, "beta2": method.beta2}
    for option in _options(TrainOptions):
        yield {**option, "default": defaults.get(option["name"], option["default"])}


def _options(model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """The fields of an options class: name, default, allowed values, description."""
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        chinese = extra.get("zh") if isinstance(extra, dict) else None
        description = field.description or ""
        yield {
            "name": name,
            "default": field.default,
            "allowed": _allowed(field),
            "description": say(description, str(chinese or description)),
        }


def _allowed(field: FieldInfo) -> str:
    """The allowed values of a field, in words."""
    kind: Any = field.annotation
    if NoneType in get_args(kind):
        kind = next(other for other in get_args(kind) if other is not NoneType)
    if get_origin(kind) is Literal:
        return say("one of ", "可选 ") + listed([str(choice) for choice in get_args(kind)])
    names = {
        bool: say("true or false", "true 或 false"),
        int: say("whole number", "整数"),
        float: say("number", "数"),
        str: say("text", "文本"),
    }
    bounds = listed(list(_bounds(field)))
    return names.get(kind, say("mapping", "映射")) + (say(", ", "，") + bounds if bounds else "")


def _bounds(field: FieldInfo) -> Iterator[str]:
    """The bounds of a number in words."""
    for item in field.metadata:
        match item:
            case Ge(ge=bound):
                yield say(f"at least {bound:g}", f"不小于 {bound:g}")
            case Gt(gt=bound):
                yield say(f"above {bound:g}", f"大于 {bound:g}")
            case Le(le=bound):
                yield say(f"at most {bound:g}", f"不大于 {bound:g}")
            case Lt(lt=bound):
                yield say(f"below {bound:g}", f"小于 {bound:g}")
