"""Exporting a stored adapter in PEFT's format, with an onebase.json for `adapters import`.

onebase.json holds the task's labels, template and a reward model's scale; PEFT ignores it.
"""

import json
import shutil
from pathlib import Path

from onebase.adapters.adapter_folder import AdapterFolder
from onebase.adapters.full import FULL
from onebase.adapters.onebase_json import RECORD
from onebase.adapters.peft_config import CONFIG, read_peft_config
from onebase.adapters.peft_format import WEIGHTS
from onebase.adapters.portable_record import portable
from onebase.adapters.store import StoredAdapter
from onebase.errors import UsageError
from onebase.language import say


def check_known_to_peft(stored: StoredAdapter) -> None:
    """Raise UsageError for adapters that PEFT has no format for: a whole model, several methods,
    virtual tokens inside the text, a prefix on some layers.
    """
    if stored.method == FULL:
        raise UsageError(
            say(
                f"{stored.name} is a whole model (full fine-tuning), not an adapter.",
                f"{stored.name} 是完整的模型（全量微调），而不是适配器。",
            ),
            say("Use --to merged or --to gguf.", "请使用 --to merged 或 --to gguf。"),
        )
    parts = read_peft_config(AdapterFolder(stored.path)).get("parts")
    if isinstance(parts, dict) and list(parts) == ["p-tuning-v2"]:
        raise UsageError(
            say(
                f"{stored.name} has a prefix on some layers only; PEFT's prefix tuning needs it on all.",
                f"{stored.name} 只在部分层有前缀，而 PEFT 的前缀微调要求所有层都有前缀。",
            ),
            say(
                f"Copy {stored.path} for another onebase, or train the task with layers=all.",
                f"请复制 {stored.path} 供其他 onebase 使用，或用 layers=all 训练该任务。",
            ),
        )
    if parts is not None:
        raise UsageError(
            say(
                f"PEFT has no format for {stored.name}: it combines several methods or has virtual "
                f"tokens inside the text ({stored.method}).",
                f"PEFT 没有适合 {stored.name} 的格式：它由多种方法组成，或在文本内部含有虚拟词元"
                f"（{stored.method}）。",
            ),
            say(
                f"Copy {stored.path} for another onebase, or train the task with one method.",
                f"请复制 {stored.path} 供其他 onebase 使用，或只用一种方法训练该任务。",
            ),
        )


def write_peft(stored: StoredAdapter, folder: Path) -> None:
    """Write adapter_config.json, adapter_model.safetensors and onebase.json into `folder`."""
    config = read_peft_config(AdapterFolder(stored.path))
    config["base_model_name_or_path"] = _base_of(stored, config.get("base_model_name_or_path"))
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    shutil.copyfile(stored.path / WEIGHTS, folder / WEIGHTS)
    text = json.dumps(portable(stored.record), indent=2, ensure_ascii=False) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")


def _base_of(stored: StoredAdapter, written: object) -> str:
    """The base's name for PEFT: its Hub id, its folder on this machine, or the name as written."""
    path = Path(str(written or stored.base))
    if stored.base.count("/") == 1 and path.name == stored.base.replace("/", "--"):
        return stored.base  # a model from the Hub in the cache
    return str(path.resolve()) if path.is_dir() else str(written or stored.base)


def onebase_notes(stored: StoredAdapter) -> list[str]:
    """Notes on what only onebase.json says about a task."""
    notes = []
    if labels := stored.record.get("labels"):
        shown = ", ".join(map(repr, labels[:8])) + (", …" if len(labels) > 8 else "")
        notes.append(
            say(
                f"Its labels ({shown}) are in {RECORD}, which `onebase adapters import` reads and PEFT "
                "ignores.",
                f"其标签（{shown}）保存在 {RECORD} 中，`onebase adapters import` 会读取，PEFT 会忽略。",
            )
        )
    if stored.record.get("head"):
        notes.append(
            say(
                "It is a reward model, for PEFT a sequence classifier with one label. PEFT gives scores "
                f"without normalization; their mean and standard deviation are in {RECORD}.",
                "它是奖励模型，在 PEFT 中为单标签序列分类器。PEFT 给出未经标准化的分数，"
                f"其均值和标准差保存在 {RECORD} 中。",
            )
        )
    return notes
