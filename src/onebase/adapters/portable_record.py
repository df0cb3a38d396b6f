"""The part of an adapter's record that goes with it to another workspace.

PEFT ignores this file. It holds what PEFT's own files have no place for: labels, the template, the
scale of a reward model's scores.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from onebase.adapters.adapter_folder import AdapterFolder
from onebase.adapters.onebase_json import RECORD
from onebase.language import say

REWARD_HEAD = "reward"
_PRECISION = re.compile(r"(fp32|bf16|fp16|int8|nf4|w8a8)(:(fp32|bf16|fp16))?(:single)?")
_LARGEST = 16 << 20  # bytes


def _is_template(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    kind, instruction = value.get("kind", ""), value.get("instruction")
    longest = value.get("max_tokens", 512)
    return (
        isinstance(kind, str)
        and isinstance(instruction, str | None)
        and isinstance(longest, int)
        and not isinstance(longest, bool)
    )


def _is_plain(value: object, depth: int = 3) -> bool:
    """Whether a value holds only texts and finite numbers, nested at most `depth` levels."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, bool | str) or _finite(value) is not None


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and _is_plain(value)


# The fields that go with an adapter, each with a check of its value.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("task", "base", "base_fingerprint", "method", "sha256"), lambda v: isinstance(v, str)
    ),
    "precision": lambda v: isinstance(v, str) and _PRECISION.fullmatch(v) is not None,
    "head": lambda v: v in (None, REWARD_HEAD),
    "template": _is_template,
    "labels": lambda v: isinstance(v, list) and all(isinstance(it, str) and it for it in v),
    **dict.fromkeys(("options", "metrics"), _is_table),
}


def portable(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a version's record that are valid in another workspace: no paths, no run."""
    return {field: record[field] for field in _FIELDS if field in record}


def read_portable(folder: AdapterFolder) -> dict[str, Any]:
    """The portable fields of the record in `folder`; empty if there is no such file.

    Raises CorruptFileError for a field that can't be used.
    """
    file = folder.path / RECORD
    if not file.is_file():
        return {}
    remedy = say(
        f"Restore {RECORD} from a backup, or delete it to import the adapter without its labels and "
        "template.",
        f"请从备份恢复 {RECORD}，或将其删除，适配器将不带标签和模板导入。",
    )
    try:
        if file.stat().st_size > _LARGEST:
            raise folder.damaged(RECORD, say("it is too large", "文件过大"), remedy)
        content = json.loads(file.read_bytes())
        json.dumps(content, ensure_ascii=False).encode()  # a lone surrogate could not be shown
    except OSError as error:
        raise folder.damaged(RECORD, error.strerror or str(error), remedy) from error
    except (ValueError, RecursionError) as error:
        raise folder.damaged(RECORD, str(error), remedy) from error
    if not isinstance(content, dict):
        raise folder.damaged(RECORD, say("not a JSON object", "不是 JSON 对象"), remedy)
    fields = portable(content)
    for field, value in fields.items():
        if not _FIELDS[field](value):
            reason = say(f"{field} is {value!r:.100}", f"{field} 为 {value!r:.100}")
            raise folder.damaged(RECORD, reason, remedy)
    return fields


def score_scale(metrics: Mapping[str, Any]) -> dict[str, float]:
    """`score_mean` and `score_deviation` of a reward model's record; 0 and 1, which leave the head's
    scores unchanged, if they are unknown.
    """
    mean, deviation = _finite(metrics.get("score_mean")), _finite(metrics.get("score_deviation"))
    if mean is None or not deviation:
        return {"score_mean": 0.0, "score_deviation": 1.0}
    return {"score_mean": mean, "score_deviation": deviation}


def _finite(value: object) -> float | None:
    """`value` as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond floating point
        return None
