"""Exporting a task's adapter, or the bare base, to a folder in a format that other programs read."""

from dataclasses import dataclass
from pathlib import Path

import torch

from onebase.adapters.base_match import require_trained_on
from onebase.adapters.contribution import NOTHING, Contribution
from onebase.adapters.full import FULL
from onebase.adapters.peft_format import load_adapter
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.data.template import Template
from onebase.engine.pool import BASE_TASK
from onebase.errors import MissingBaseError, UsageError, unknown
from onebase.export.eos import answer_ends
from onebase.export.folder import check_new, new_folder
from onebase.export.gguf_family import family_of
from onebase.export.gguf_files import write_adapter, write_model
from onebase.export.merged import check_mergeable, merge, save
from onebase.export.peft import check_known_to_peft, onebase_notes, write_peft
from onebase.export.prompting import prompting_notes
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import DEFAULT_BASE

_TORCH_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The export formats, and the dtypes of their weights, the default first.
TARGETS: dict[str, tuple[str, ...]] = {
    "peft": (),
    "merged": tuple(_TORCH_TYPES),
    "gguf": ("f16", "f32", "q8_0"),
}


@dataclass(frozen=True)
class Exported:
    """The written `files` in the folder `out`, with notes for the user.

    `version` is 0 for the bare base.
    """

    task: str
    version: int
    to: str
    out: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def export(
    store: AdapterStore,
    name: str,
    to: str,
    out: Path,
    *,
    dtype: str | None = None,
    base: str | None = None,
) -> Exported:
    """Write `task` or `task@version` (or `base`, the bare base) into the new folder `out`.

    `to` is one of TARGETS and `dtype` one of its types; `base` gives the adapter's base if it has been
    moved. Weights are merged in float32, whatever the precision in training. Raises UsageError,
    MissingBaseError, CorruptFileError or OnebaseError, and then leaves no `out`.
    """
    if to not in TARGETS:
        raise unknown("target", "导出目标", to, TARGETS)
    kind = _dtype(to, dtype)
    stored = None if name == BASE_TASK else store.get(_existing(store, name))
    check_new(out)
    notes: list[str] = []
    if stored is not None:
        store.verify(stored)
        notes += prompting_notes(stored)
    if to == "peft":
        adapter = _require_adapter(stored)
        new_folder(out, lambda folder: write_peft(adapter, folder))
        notes += [*_precision_notes(adapter, to), *onebase_notes(adapter)]
        return _exported(stored, to, out, notes)
    loaded = _base_of(stored, base)
    contribution = _contribution(stored, loaded)
    if to == "gguf":
        family_of(loaded)  # refuses other families before anything is merged
    ends = answer_ends(loaded, _template(stored, loaded))
    notes += ends.texts_note()
    plain_lora = _is_plain_lora(contribution)
    if stored is not None:
        notes += _precision_notes(stored, to)
        if to == "gguf" and not plain_lora and stored.method != FULL:
            notes.append(_merged_only(stored))
    label = stored.name if stored is not None else Path(loaded.name).name

    def write(folder: Path) -> None:
        if to == "gguf" and plain_lora:
            write_adapter(contribution.deltas, loaded, folder / "adapter.gguf", name=label)
        merge(loaded, contribution)
        if to == "merged":
            save(loaded, folder, _TORCH_TYPES[kind], ends.tokens)
        else:
            file = folder / "model.gguf"
            notes.extend(write_model(loaded, file, name=label, kind=kind, ends=ends))

    with torch.no_grad():
        new_folder(out, write)
    return _exported(stored, to, out, notes)


def _dtype(to: str, dtype: str | None) -> str:
    types = TARGETS[to]
    if dtype is None:
        return types[0] if types else ""
    if not types:
        raise UsageError(
            say(
                f"--dtype {dtype} can't be used with --to {to}, which copies the files unchanged.",
                f"--dtype {dtype} 不适用于 --to {to}，后者原样复制文件。",
            ),
            say("Omit it.", "请去掉该选项。"),
        )
    if dtype not in types:
        raise unknown(f"type for --to {to}", f" --to {to} 数值类型", dtype, types)
    return dtype


def _existing(store: AdapterStore, name: str) -> str:
    if name.partition("@")[0] not in store.tasks():
        raise unknown("task", "任务", name, [*store.tasks(), BASE_TASK])
    return name


def _require_adapter(stored: StoredAdapter | None) -> StoredAdapter:
    """`stored` if PEFT has a format for it. Raises UsageError."""
    if stored is None:
        raise UsageError(
            say("The bare base has no adapter.", "基座本身没有适配器。"),
            say("Give a task, or use --to merged.", "请指定任务，或使用 --to merged。"),
        )
    check_known_to_peft(stored)
    return stored


def _base_of(stored: StoredAdapter | None, given: str | None) -> Base:
    """The base in float32: the one that an adapter was trained on, or a full fine-tuned model itself."""
    if stored is not None and stored.method == FULL:
        return Base.load(str(stored.path), device="cpu", precision="fp32")
    name = given or (stored.base if stored is not None else "") or DEFAULT_BASE
    try:
        base = Base.load(name, device="cpu", precision="fp32")
    except MissingBaseError as error:
        if stored is None or given is not None:
            raise
        raise MissingBaseError(
            say(
                f"{stored.name} was trained on the base {name}, which was not found: {error.message}",
                f"{stored.name} 在基座 {name} 上训练，但找不到该基座：{error.message}",
            ),
            say(
                "Restore it, or give its new location with --base.",
                "请恢复该基座，或用 --base 指明其新位置。",
            ),
        ) from error
    if stored is not None:
        require_trained_on(stored, base)
    return base


def _template(stored: StoredAdapter | None, base: Base) -> Template:
    """The template of the task; for the bare base its own chat template, if it has one."""
    settings = {} if stored is None else stored.record.get("template") or {}
    return Template.from_config(base.tokenizer, settings)


def _contribution(stored: StoredAdapter | None, base: Base) -> Contribution:
    if stored is None or stored.method == FULL:
        return NOTHING
    adapter = load_adapter(stored.path, base).eval()
    with torch.no_grad():
        contribution = adapter.contribution()
    check_mergeable(contribution, stored.name)
    return contribution


def _is_plain_lora(contribution: Contribution) -> bool:
    """Whether it has only low-rank deltas, which llama.cpp can apply to a base."""
    deltas = contribution.deltas.values()
    return (
        bool(deltas)
        and not contribution.scalings
        and not any(delta.factor is not None for delta in deltas)
    )


def _merged_only(stored: StoredAdapter) -> str:
    return say(
        f"llama.cpp can't apply {stored.name} (DoRA, IA3) to a base, so only the merged model was "
        "written.",
        f"llama.cpp 无法在基座上叠加 {stored.name}（DoRA、IA3），因此只写出合并后的模型。",
    )


def _precision_notes(stored: StoredAdapter, to: str) -> list[str]:
    precision = str(stored.record.get("precision") or "").partition(":")[0]
    if precision not in ("nf4", "int8"):
        return []
    if to == "peft":
        return [
            say(
                f"It was trained on its base in {precision}. On the base in floating point, answers can "
                "differ slightly.",
                f"它在 {precision} 精度的基座上训练，用于浮点基座时，回答可能略有不同。",
            )
        ]
    return [
        say(
            f"It was trained on its base in {precision} and merged into the base in floating point, so "
            "answers can differ slightly.",
            f"它在 {precision} 精度的基座上训练，而合并到浮点基座，回答可能略有不同。",
        )
    ]


def _exported(stored: StoredAdapter | None, to: str, out: Path, notes: list[str]) -> Exported:
    task, version = (BASE_TASK, 0) if stored is None else (stored.task, stored.version)
    files = tuple(sorted(file for file in out.rglob("*") if file.is_file()))
    return Exported(task, version, to, out, files, tuple(notes))
