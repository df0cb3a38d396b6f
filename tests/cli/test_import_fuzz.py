"""`onebase adapters import` on mutated adapters: the contract's exit codes, and nothing half stored."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.portable_record import portable
from onebase.adapters.scalar_head import ScalarHead
from onebase.model.base import Base

Run = Any
FAST, ALL = 30, 500  # cases; ALL are run by `make test-slow`
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 2}),
    "dora": ("lora", {"rank": 2, "use_dora": True, "rank_pattern": {"q_proj": 1}}),
    "ia3": ("ia3", {}),
    "prompt-tuning": ("prompt-tuning", {"virtual_tokens": 4}),
    "p-tuning": ("p-tuning", {"virtual_tokens": 4, "hidden": 8}),
    "p-tuning-v2": ("p-tuning-v2", {"virtual_tokens": 4}),
    "together": ("lora+p-tuning", {"rank": 2, "virtual_tokens": 4}),
    "reward": ("lora", {"rank": 2}),
}
JUNK: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 4, 10**12, 10**400, 1.5, float("inf"), float("nan"), -0.0),
    *("", "x", "LORA", "IA3", "PREFIX_TUNING", "ONEBASE", "SEQ_CLS", "(", "a{99999999999}", "\0"),
    *("\ud83d", "密" * 2000, ".*", "all-linear", "{", "{input}", "owner/model", "score"),
    *([], [None], ["q_proj"], ["("], [[]], [1], [{}], {}, {"a": 1}, {"(": 2}, {"q_proj": 0}),
    *({"q_proj": "2"}, {"lora": {}}, {"lora": {"peft_type": "LORA"}}, {".*": 2}, [0, 1], ["score"]),
]
# The fields that a reader computes with.
HONOURED = [
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "lora_dropout", "use_dora", "modules_to_save"),
    *("feedforward_modules", "num_virtual_tokens", "layers", "parts", "placed", "task_type"),
    *("peft_type", "token_dim", "base_model_name_or_path", "labels", "template", "metrics", "head"),
]
DTYPES = [torch.int8, torch.bool, torch.float16, torch.float64, torch.float8_e4m3fn, torch.int64]


@pytest.fixture(scope="module")
def sound(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound adapter of every kind, some with a record."""
    root, loaded = tmp_path_factory.mktemp("sound"), Base.load(base)
    for kind, (method, settings) in METHODS.items():
        (root / kind).mkdir()
        adapter = build_adapter(loaded, method, settings, init_text="hello", seed=0)
        if kind == "reward":
            adapter.head = ScalarHead(loaded.shape.hidden)
        save_adapter(adapter, root / kind, loaded)
        record = {
            "base": base,
            "base_fingerprint": loaded.fingerprint,
            "precision": "fp32",
            "method": method,
            "options": adapter.options,
            "template": {"kind": "chat", "instruction": None, "max_tokens": 512},
            "labels": ["good", "bad"],
            "metrics": {"eval_loss": 1.0, "score_mean": 0.0, "score_deviation": 1.0},
        }
        if kind != "lora":
            text = json.dumps(portable(record))
            (root / kind / "onebase.json").write_text(text, encoding="utf-8")
    return root


def junk(draw: random.Random) -> Any:
    if draw.random() < 0.1:
        deep: Any = 1
        for _ in range(draw.choice([3, 400])):
            deep = draw.choice([[deep], {"a": deep}])
        return deep
    return draw.choice(JUNK)


def change_field(draw: random.Random, file: Path) -> None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(content, dict) or not content:
        return
    inside = [content, *(part for part in content.values() if isinstance(part, dict) and part)]
    table = draw.choice(inside)
    key = draw.choice([*table, "new_field"] if draw.random() < 0.3 else HONOURED)
    action = draw.randrange(4)
    if action == 0:
        table.pop(key, None)
    elif action == 1:
        table[f"{key}_"] = table.pop(key, None)
    else:
        table[key] = junk(draw)
    text = json.dumps(content)
    if draw.random() < 0.05:
        text = text.replace("{", '{"r": 1, "r": 2, ', 1)
    file.write_text(text, encoding="utf-8", errors="surrogatepass")


def change_bytes(draw: random.Random, file: Path) -> None:
    if not file.is_file():
        return
    content = bytearray(file.read_bytes())
    action = draw.randrange(5)
    if action == 0:
        content = content[: draw.randrange(len(content) + 1)]
    elif action == 1:
        file.unlink()
        return
    elif action == 2:
        content += draw.randbytes(draw.choice([1, 100]))
    elif content:
        for _ in range(draw.choice([1, 8])):
            content[draw.randrange(min(len(content), 4096))] = draw.randrange(256)
    file.write_bytes(bytes(content))


def changed(draw: random.Random, tensor: Tensor) -> Tensor:
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda t: torch.tensor(1.0),
        lambda t: t[:0],
        lambda t: t.flatten(),
        lambda t: t[None],
        lambda t: t.T if t.dim() == 2 else t,
        lambda t: torch.full_like(t.float(), float("nan")),
        lambda t: torch.full_like(t.float(), -float("inf")),
        lambda t: t.double() * 1e300,
        lambda t: torch.cat([t, t]) if t.dim() else t,
        lambda t: t.to(draw.choice(DTYPES)),
        lambda t: t[:, :-1] if t.dim() == 2 else t[:-1],
    ]
    return draw.choice(changes)(tensor).contiguous().clone()


def change_tensors(draw: random.Random, file: Path) -> None:
    try:
        tensors = load_file(file)
    except Exception:  # noqa: BLE001 - damaged by an earlier mutation, in any way
        return
    names = list(tensors)
    for name in draw.sample(names, min(len(names), draw.choice([1, 2, len(names)]))):
        action = draw.randrange(7)
        if action == 0:
            del tensors[name]
        elif action == 1:
            tensors[name] = changed(draw, tensors[name])
        elif action == 2:
            tensors[draw.choice(["x", "", "prompt_embeddings", f"{name}.1"])] = tensors.pop(name)
        elif action == 3:
            renamed = name.replace(*draw.choice([("base_model.", ""), ("layers.", "layers.9")]))
            tensors[renamed] = tensors.pop(name)
        elif action == 4:
            tensors[name.replace(".weight", ".default.weight")] = tensors[name].clone()
        elif action == 5:
            tensors[f"base_model.model.{draw.choice(['score', 'lm_head'])}.weight"] = torch.ones(
                draw.choice([1, 2]), 32
            )
    save_file(tensors, file)


def mutate(draw: random.Random, folder: Path) -> None:
    for _ in range(draw.choice([1, 1, 2, 3])):
        kind = draw.random()
        if kind < 0.5:
            change_field(draw, folder / "adapter_config.json")
        elif kind < 0.75:
            change_tensors(draw, folder / "adapter_model.safetensors")
        elif kind < 0.87:
            change_field(draw, folder / "onebase.json")
        else:
            names = ("adapter_config.json", "adapter_model.safetensors", "onebase.json")
            change_bytes(draw, folder / draw.choice(names))


@pytest.fixture(scope="module")
def loaded(base: str) -> Base:
    """The base, loaded once for all imports."""
    return Base.load(base)


@pytest.fixture
def hold(
    onebase: Run,
    base: str,
    loaded: Base,
    sound: Path,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int], int]:
    """Run the case of a seed; returns its exit code."""

    def import_(*arguments: str | Path) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(Base, "load", lambda *_, **__: loaded)
            return onebase("adapters", "import", *arguments)

    def run(seed: int) -> int:
        return check_case(onebase, import_, base, sound, desk, seed)

    return run


def check_case(onebase: Run, import_: Run, base: str, sound: Path, desk: Path, seed: int) -> int:
    draw = random.Random(seed)
    folder, root = desk / "case", desk / "ws"
    for path in (folder, root):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sound / draw.choice(list(METHODS)), folder)
    mutate(draw, folder)
    form = draw.choice([(), ("--json",)])
    result = import_(folder, "--task", "new", "--base", base, *form)
    assert result.code in (0, 1, 2, 3, 4), (seed, result)
    assert "itself failed" not in result.err, (seed, result.err)
    assert "Traceback" not in result.err, seed
    if form:
        assert isinstance(result.json, dict), seed
    left = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    if result.code == 0:
        store = onebase("adapters", "list", "--json").json
        assert [item["task"] for item in store["adapters"]] == ["new"], seed
        # What was taken in is used, or refused with a reason.
        kind = store["adapters"][0]["metrics"]
        assert kind["trainable"] > 0, seed
        ask = ("--task", "new", "--prompt", "Hi", "--max-tokens", "1", "--base", base)
        answer = onebase("generate", *ask)
        assert answer.code in (0, 2), (seed, answer.err)
        assert "itself failed" not in answer.err, (seed, answer.err)
    else:
        assert left == [], (seed, left)
        notes = ("Loading", "Loaded in")
        told = [line for line in result.err.split("\n") if line]
        lines = [line for line in told if not any(note in line for note in notes)]
        assert [line.partition(":")[0] for line in lines] == ["Error", "Remedy"], (seed, lines)
    return int(result.code)


def test_mutated_adapters(hold: Callable[[int], int]) -> None:
    assert {0, 1} <= {hold(seed) for seed in range(FAST)}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(FAST, ALL, 47))
def test_more_mutated_adapters(hold: Callable[[int], int], part: int) -> None:
    for seed in range(part, min(part + 47, ALL)):
        hold(seed)
