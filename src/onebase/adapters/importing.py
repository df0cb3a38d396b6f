"""Import of an adapter made elsewhere: find it in a folder, read it for a base, note what is doubtful."""

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebase.adapters.adapter import Adapter
from onebase.adapters.adapter_folder import AdapterFolder
from onebase.adapters.base_match import names_another_base
from onebase.adapters.chatglm_prefix import is_chatglm_prefix, load_chatglm_prefix
from onebase.adapters.peft_config import CONFIG, read_peft_config, targeted
from onebase.adapters.peft_format import WEIGHTS, load_adapter, parts_of_config, save_adapter
from onebase.adapters.portable_record import REWARD_HEAD, read_portable, score_scale
from onebase.adapters.vlm_names import name_for_peft
from onebase.data.utf8_paths import shown_if_not_utf8
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import file_sha256

_PICKLE = "adapter_model.bin"
_SHOWN = 5  # files or folders in a message
_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    'tensors = torch.load(sys.argv[1] + "/adapter_model.bin", weights_only=True, map_location="cpu"); '
    "save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, "
    'sys.argv[1] + "/adapter_model.safetensors")'
)


@dataclass(frozen=True)
class ForeignAdapter:
    """An imported adapter with what its files say besides the weights.

    `write` writes it into a version's folder; `record` comes from onebase.json and is empty if there
    is only PEFT's configuration; `notes` say what is doubtful or was not imported.
    """

    adapter: Adapter
    write: Callable[[Path], None]
    record: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def method(self) -> str:
        """The method; only the record tells QLoRA from LoRA, PEFT's files do not."""
        recorded = self.record.get("method")
        return (
            "qlora" if (self.adapter.method, recorded) == ("lora", "qlora") else self.adapter.method
        )

    @property
    def options(self) -> dict[str, Any]:
        """The method's settings; those read from the adapter override the recorded ones."""
        return {**self.record.get("options", {}), **self.adapter.options}

    @property
    def head(self) -> dict[str, Any]:
        """The record's field for a reward model's head; empty for other adapters."""
        if self.adapter.head is None:
            return {}
        return {"head": REWARD_HEAD}

    @property
    def metrics(self) -> dict[str, Any]:
        """The recorded metrics, with the number of trainable parameters."""
        metrics = dict(self.record.get("metrics", {}))
        if self.adapter.head is not None:
            metrics |= score_scale(metrics)
        return {**metrics, "trainable": self.adapter.trainable()}


def find_adapter(folder: Path) -> AdapterFolder:
    """The adapter in `folder`, with its configuration checked before a base is loaded.

    Raises UsageError if `folder` is not a folder, and CorruptFileError or OnebaseError for files that are
    missing or can't be read, with a remedy from what the folder holds.
    """
    adapter_folder = AdapterFolder(folder, foreign=True)
    if shown := shown_if_not_utf8(folder):
        raise UsageError(
            say(f"The path {shown} is not UTF-8.", f"路径 {shown} 不是 UTF-8。"),
            say("Rename the folder.", "请重命名该目录。"),
        )
    if not folder.is_dir():
        where = folder.parent if folder.is_file() else folder
        raise UsageError(
            say(f"{folder} is not a folder.", f"{folder} 不是目录。"),
            say(f"Give the folder that holds {CONFIG}", f"请给出包含 {CONFIG} 的目录")
            + ("" if where == folder else say(f": {where}", f"：{where}"))
            + say(".", "。"),
        )
    if not (folder / CONFIG).exists() and is_chatglm_prefix(folder):
        return adapter_folder
    if not (folder / CONFIG).exists():
        raise adapter_folder.damaged(
            CONFIG, say("the file is missing", "文件不存在"), _remedy_without_config(folder)
        )
    parts_of_config(adapter_folder, read_peft_config(adapter_folder))
    if not (folder / WEIGHTS).exists():
        raise adapter_folder.damaged(
            WEIGHTS, say("the file is missing", "文件不存在"), _remedy_without_weights(folder)
        )
    return adapter_folder


def _remedy_without_config(folder: Path) -> str:
    """What to do about a folder without adapter_config.json."""
    adapters_below = sorted(
        file.parent
        for pattern in (f"*/{CONFIG}", f"*/*/{CONFIG}")
        for file in folder.glob(pattern)
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if adapters_below:
        shown = ", ".join(shlex.quote(str(path)) for path in adapters_below[:_SHOWN])
        more = len(adapters_below) - _SHOWN
        shown += say(f" and {more} more", f" 等 {len(adapters_below)} 个") if more > 0 else ""
        return say(
            f"There are adapters in subfolders: import {shown}.",
            f"子目录中有适配器，请导入：{shown}。",
        )
    if (folder / "config.json").is_file():
        return say(
            "It holds a whole model, not an adapter: use it as a base with "
            f"--base {shlex.quote(str(folder))}.",
            f"其中是完整的模型而不是适配器，请用 --base {shlex.quote(str(folder))} 作为基座。",
        )
    return say(
        f"Give the folder that PEFT's save_pretrained wrote. This one contains: {_contents(folder)}.",
        f"请给出 PEFT 的 save_pretrained 写出的目录。该目录中有：{_contents(folder)}。",
    )


def _remedy_without_weights(folder: Path) -> str:
    """What to do about a folder without adapter_model.safetensors."""
    if (folder / _PICKLE).is_file():
        command = " ".join(map(shlex.quote, [sys.executable, "-c", _CONVERT, str(folder)]))
        return say(
            f"Convert {_PICKLE} (only its tensors are read), then import again: {command}",
            f"请先转换 {_PICKLE}（只读取其中的张量），再重新导入：{command}",
        )
    return say(
        f"Copy it from where the adapter was trained. This folder contains: {_contents(folder)}.",
        f"请从训练该适配器的地方复制该文件。该目录中有：{_contents(folder)}。",
    )


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    more = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN]) or say("nothing", "无")
    return shown + (say(f" and {more} more", f" 等 {len(names)} 项") if more > 0 else "")


def read_adapter(folder: AdapterFolder, base: Base) -> ForeignAdapter:
    """The adapter that `find_adapter` found, read for `base`. Raises the errors of load_adapter."""
    record = read_portable(folder)
    if not (folder.path / CONFIG).exists():
        adapter, unread = load_chatglm_prefix(folder, base)
        return ForeignAdapter(
            adapter,
            lambda target: save_adapter(adapter, target, base),
            record,
            tuple(_unread_weights(unread)),
        )
    config = read_peft_config(folder)
    adapter = load_adapter(folder, base)
    notes = [
        *_other_base(config, record, base),
        *_layers_without_tensors(folder, config, adapter, base),
        *_changed_weights(folder, record),
        *_reward_notes(adapter, record),
    ]

    def write(target: Path) -> None:
        for file in (CONFIG, WEIGHTS):
            shutil.copyfile(folder.path / file, target / file)

    return ForeignAdapter(adapter, write, record, tuple(notes))


def _unread_weights(unread: int) -> list[str]:
    if not unread:
        return []
    return [
        say(
            f"Only the prefix was read. The file's {unread} other weights were skipped; the base's own "
            "weights are used.",
            f"只读取了前缀。文件中另外 {unread} 个权重已跳过，使用基座自身的权重。",
        )
    ]


def _other_base(config: dict[str, Any], record: dict[str, Any], base: Base) -> list[str]:
    trained_on = record.get("base_fingerprint")
    name = record.get("base") if trained_on else config.get("base_model_name_or_path")
    if trained_on:
        differs = trained_on != base.fingerprint
    else:
        differs = isinstance(name, str) and bool(name) and names_another_base(name, base)
    if not differs:
        return []
    return [
        say(
            f"The adapter was trained on {name}, according to its files, but is used on {base.name}, "
            "where its answers differ. Import it again with --base and the base that it was trained "
            "on.",
            f"适配器记录的训练基座是 {name}，而现在用于 {base.name}。"
            "换了基座，回答会不同：请用 --base 指明训练时的基座，重新导入。",
        )
    ]


def _layers_without_tensors(
    folder: AdapterFolder, config: dict[str, Any], adapter: Adapter, base: Base
) -> list[str]:
    """Notes on layers that target_modules names but that have no tensors in the file."""
    notes = []
    for part in parts_of_config(folder, config).values():
        module = {"LORA": adapter.lora, "IA3": adapter.ia3}.get(part["peft_type"])
        if module is None or part.get("target_modules") in (None, "all-linear"):
            continue
        layers = [name for name in base.shape.linears if name not in module.sites]
        without_tensors = [
            name
            for name in layers
            if targeted(part, name) or targeted(part, name_for_peft(base, name))
        ]
        if without_tensors:
            notes.append(
                say(
                    f"target_modules names {len(without_tensors)} layers without tensors, such as "
                    f"{without_tensors[0]}: they stay as in the base. Is the weights file complete?",
                    f"target_modules 中有 {len(without_tensors)} 层没有张量，例如 "
                    f"{without_tensors[0]}：这些层与基座相同。权重文件是否完整？",
                )
            )
    return notes


def _changed_weights(folder: AdapterFolder, record: dict[str, Any]) -> list[str]:
    expected = record.get("sha256")
    if expected is None or expected == file_sha256(folder.path / WEIGHTS):
        return []
    return [
        say(
            "The weights have changed since onebase.json was written. Its labels, template and "
            "metrics are used unchecked.",
            "权重在 onebase.json 写入之后有改动，其中的标签、模板和指标未经核对，直接沿用。",
        )
    ]


def _reward_notes(adapter: Adapter, record: dict[str, Any]) -> list[str]:
    if adapter.head is None or "score_mean" in record.get("metrics", {}):
        return []
    return [
        say(
            "It is a reward model: `onebase align score` gives its scores without normalization, for "
            "texts in the base's chat template (--template changes it).",
            "它是奖励模型：`onebase align score` 给出未经标准化的分数，"
            "文本采用基座的对话模板（可用 --template 更改）。",
        )
    ]
