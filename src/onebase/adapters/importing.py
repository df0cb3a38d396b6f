"""An adapter from elsewhere: found in its folder, read against a base, and what its user should know."""

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebase.adapters.adapter import Adapter
from onebase.adapters.base_name import names_another
from onebase.adapters.chatglm_prefix import is_chatglm_prefix, load_chatglm_prefix
from onebase.adapters.peft_config import CONFIG, AdapterFolder, read_peft_config, targeted
from onebase.adapters.peft_format import WEIGHTS, load_adapter, parts_of_config, save_adapter
from onebase.adapters.portable import REWARD_HEAD, read_portable, score_scale
from onebase.adapters.text_part import name_for_peft
from onebase.data.paths import shown_if_not_utf8
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import file_sha256

_PICKLE = "adapter_model.bin"
_SHOWN = 5  # files or folders, in a message
_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    'found = torch.load(sys.argv[1] + "/adapter_model.bin", weights_only=True, map_location="cpu"); '
    "save_file({name: tensor.clone().contiguous() for name, tensor in found.items()}, "
    'sys.argv[1] + "/adapter_model.safetensors")'
)


@dataclass(frozen=True)
class ForeignAdapter:
    """An adapter that was read, with what its files say of it beside its weights.

    `write` puts it into a version's folder; `record` is of onebase.json, empty for PEFT's files alone;
    `notes` say what is doubtful about it, or what it does not bring along.
    """

    adapter: Adapter
    write: Callable[[Path], None]
    record: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def method(self) -> str:
        """The method; PEFT does not tell QLoRA from LoRA, a record does."""
        known = self.record.get("method")
        return "qlora" if (self.adapter.method, known) == ("lora", "qlora") else self.adapter.method

    @property
    def options(self) -> dict[str, Any]:
        """The method's settings: those that its weights have over those that its record says."""
        return {**self.record.get("options", {}), **self.adapter.options}

    @property
    def head(self) -> dict[str, Any]:
        """What a reward model's record has beside others'."""
        if self.adapter.head is None:
            return {}
        return {"head": REWARD_HEAD}

    @property
    def metrics(self) -> dict[str, Any]:
        """The recorded metrics, with the number of trainable parameters."""
        known = dict(self.record.get("metrics", {}))
        if self.adapter.head is not None:
            known |= score_scale(known)
        return {**known, "trainable": self.adapter.trainable()}


def find_adapter(folder: Path) -> AdapterFolder:
    """The adapter in `folder`, its configuration checked, before a base is loaded.

    Raises UsageError where `folder` is none, CorruptFileError or OnebaseError for what can't be read,
    with what is there instead.
    """
    found = AdapterFolder(folder, foreign=True)
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
        return found
    if not (folder / CONFIG).exists():
        raise found.damaged(CONFIG, say("the file is missing", "文件不存在"), _elsewhere(folder))
    parts_of_config(found, read_peft_config(found))
    if not (folder / WEIGHTS).exists():
        raise found.damaged(WEIGHTS, say("the file is missing", "文件不存在"), _unsafe(folder))
    return found


def _elsewhere(folder: Path) -> str:
    """What to do about a folder without adapter_config.json."""
    below = sorted(
        file.parent
        for pattern in (f"*/{CONFIG}", f"*/*/{CONFIG}")
        for file in folder.glob(pattern)
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if below:
        shown = ", ".join(shlex.quote(str(path)) for path in below[:_SHOWN])
        more = len(below) - _SHOWN
        shown += say(f" and {more} more", f" 等 {len(below)} 个") if more > 0 else ""
        return say(
            f"There are adapters in folders below: import {shown}.",
            f"下级目录中有适配器，请导入：{shown}。",
        )
    if (folder / "config.json").is_file():
        return say(
            "It holds a whole model, which is a base of its own: use it with "
            f"--base {shlex.quote(str(folder))}.",
            f"其中是完整的模型，本身就是基座：请用 --base {shlex.quote(str(folder))}。",
        )
    return say(
        f"Give the folder that save_pretrained of PEFT wrote. In this one: {_inside(folder)}.",
        f"请给出 PEFT 的 save_pretrained 写出的目录。该目录中有：{_inside(folder)}。",
    )


def _unsafe(folder: Path) -> str:
    """What to do about a folder without adapter_model.safetensors."""
    if (folder / _PICKLE).is_file():
        command = " ".join(map(shlex.quote, [sys.executable, "-c", _CONVERT, str(folder)]))
        return say(
            f"Convert {_PICKLE} (only tensors are read from it), then import again: {command}",
            f"请先转换 {_PICKLE}（只读取其中的张量），再重新导入：{command}",
        )
    return say(
        f"Copy it here from where the adapter was trained. In this folder: {_inside(folder)}.",
        f"请从训练该适配器的地方复制该文件。该目录中有：{_inside(folder)}。",
    )


def _inside(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    more = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN]) or say("nothing", "无")
    return shown + (say(f" and {more} more", f" 等 {len(names)} 项") if more > 0 else "")


def read_adapter(folder: AdapterFolder, base: Base) -> ForeignAdapter:
    """The adapter that `find_adapter` found, on `base`. Raises as load_adapter."""
    record = read_portable(folder)
    if not (folder.path / CONFIG).exists():
        adapter, others = load_chatglm_prefix(folder, base)
        return ForeignAdapter(
            adapter,
            lambda target: save_adapter(adapter, target, base),
            record,
            tuple(_unread_weights(others)),
        )
    config = read_peft_config(folder)
    adapter = load_adapter(folder, base)
    notes = [
        *_other_base(config, record, base),
        *_bare_layers(folder, config, adapter, base),
        *_changed_weights(folder, record),
        *_reward_notes(adapter, record),
    ]

    def write(target: Path) -> None:
        for file in (CONFIG, WEIGHTS):
            shutil.copyfile(folder.path / file, target / file)

    return ForeignAdapter(adapter, write, record, tuple(notes))


def _unread_weights(others: int) -> list[str]:
    if not others:
        return []
    return [
        say(
            f"Only the prefix is read: {others} other weights of the file are not, the base's own "
            "answer in their place.",
            f"只读取前缀：文件中另外 {others} 个权重不读取，使用基座自身的权重。",
        )
    ]


def _other_base(config: dict[str, Any], record: dict[str, Any], base: Base) -> list[str]:
    trained_on = record.get("base_fingerprint")
    written = record.get("base") if trained_on else config.get("base_model_name_or_path")
    if trained_on:
        another = trained_on != base.fingerprint
    else:
        another = isinstance(written, str) and bool(written) and names_another(written, base)
    if not another:
        return []
    return [
        say(
            f"The adapter says that it was trained on {written}; it is used on {base.name}. On "
            "another base it answers otherwise: import it with --base and the one it was trained on.",
            f"适配器记录的训练基座是 {written}，而现在用于 {base.name}。"
            "在其他基座上回答会不同：请用 --base 指明训练时的基座重新导入。",
        )
    ]


def _bare_layers(
    folder: AdapterFolder, config: dict[str, Any], adapter: Adapter, base: Base
) -> list[str]:
    """What to say of layers that PEFT gives a delta and that have no tensors."""
    notes = []
    for part in parts_of_config(folder, config).values():
        held = {"LORA": adapter.lora, "IA3": adapter.ia3}.get(part["peft_type"])
        if held is None or part.get("target_modules") in (None, "all-linear"):
            continue
        layers = [name for name in base.shape.linears if name not in held.sites]
        bare = [
            name
            for name in layers
            if targeted(part, name) or targeted(part, name_for_peft(base, name))
        ]
        if bare:
            notes.append(
                say(
                    f"target_modules names {len(bare)} layers without tensors, {bare[0]} among them: "
                    "they answer as in the base. Is the weights file whole?",
                    f"target_modules 中有 {len(bare)} 层没有张量，其中有 {bare[0]}："
                    "这些层与基座相同。权重文件是否完整？",
                )
            )
    return notes


def _changed_weights(folder: AdapterFolder, record: dict[str, Any]) -> list[str]:
    expected = record.get("sha256")
    if expected is None or expected == file_sha256(folder.path / WEIGHTS):
        return []
    return [
        say(
            "The weights have changed since onebase.json was written: what it says of labels, "
            "template and measurements is taken over unchecked.",
            "权重在 onebase.json 写入之后有改动：其中的标签、模板和指标未经核对即被沿用。",
        )
    ]


def _reward_notes(adapter: Adapter, record: dict[str, Any]) -> list[str]:
    if adapter.head is None or "score_mean" in record.get("metrics", {}):
        return []
    return [
        say(
            "It is a reward model: `onebase align score` gives its scores as they are, for texts "
            "written by the base's chat template (--template to change it).",
            "它是奖励模型：`onebase align score` 给出未经标准化的分数，"
            "文本按基座的对话模板书写（可用 --template 更改）。",
        )
    ]
