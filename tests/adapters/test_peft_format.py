"""PEFT loads what we save, and we load what PEFT saves; both answer the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.errors import CorruptFileError, OnebaseError, UsageError
from onebase.model.base import Base

IDS = [5, 17, 33, 120, 9, 4, 77, 250, 31, 8, 6, 99]
SAVED = {
    "lora": ("lora", {"rank": 3, "target": "attention"}),
    "lora-patterns": (
        "lora",
        {
            "rank_pattern": {"q_proj": 2, r"layers\.[01]\.self_attn\.o_proj": 5},
            "alpha_pattern": {"o_proj": 3.5},
            "layers": "top:3",
        },
    ),
    "lora-dora": ("lora", {"rank": 2, "use_dora": True, "layers": "0,2"}),
    "lora-rslora": ("lora", {"rank": 3, "use_rslora": True, "target": r"re:.*\.(o|down)_proj"}),
    "ia3": ("ia3", {}),
    "ia3-layers": ("ia3", {"layers": "bottom:2"}),
    "prompt-tuning": ("prompt-tuning", {"virtual_tokens": 4}),
    "p-tuning-mlp": ("p-tuning", {"virtual_tokens": 4, "hidden": 8}),
    "p-tuning-lstm": ("p-tuning", {"virtual_tokens": 4, "hidden": 8, "encoder": "lstm"}),
    "p-tuning-v2": ("p-tuning-v2", {"virtual_tokens": 4}),
    "p-tuning-v2-projection": ("p-tuning-v2", {"virtual_tokens": 4, "projection": True}),
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]
    ),
    "rslora": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, use_rslora=True, target_modules="all-linear"
    ),
    "patterns": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["q_proj", "o_proj", "down_proj"],
        rank_pattern={"o_proj": 2, r"layers\.1\.self_attn\.q_proj": 3},
        alpha_pattern={"down_proj": 3, "2.self_attn.o_proj": 1.5},
        layers_to_transform=[1, 2],
    ),
    "dora": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, use_dora=True, use_rslora=True, target_modules="all-linear"
    ),
    "ia3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "ia3-others": lambda: peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "o_proj"],
        feedforward_modules=["o_proj"],
    ),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "mlp": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=8
    ),
    "lstm": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        encoder_hidden_size=8,
        encoder_reparameterization_type="LSTM",
    ),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "projection": lambda: peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=8
    ),
}


def ours(base: Base, adapter: Adapter) -> Tensor:
    pack = Pack({"x": adapter.contribution()})
    node = pack.nodes[pack.add("x", IDS)]
    with torch.no_grad():
        return run_pack(base, pack, torch.arange(node.start, node.start + node.length))


def theirs(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=torch.tensor([IDS])).logits[0, -len(IDS) :]
    return logits


def shaken(adapter: Any) -> None:
    torch.manual_seed(3)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("variant", list(SAVED))
def test_peft_loads_what_we_save(
    variant: str,
    architecture: str,
    tmp_path: Path,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    base = make_base(architecture)
    method, settings = SAVED[variant]
    if variant == "lora-patterns" and architecture == "phi3":
        settings = {**settings, "rank_pattern": {"qkv_proj": 2}}
    if method == "ia3" and architecture == "phi3":
        with pytest.raises(UsageError, match="no k_proj"):
            build_adapter(base, method, settings, init_text="hello", seed=1)
        return
    adapter = build_adapter(base, method, settings, init_text="hello", seed=1)
    shaken(adapter)
    save_adapter(adapter, tmp_path, base)
    loaded = peft.PeftModel.from_pretrained(plain_model(architecture), str(tmp_path))
    torch.testing.assert_close(ours(base, adapter), theirs(loaded), atol=1e-5, rtol=0)
    again = load_adapter(tmp_path, base)
    assert again.method == adapter.method
    torch.testing.assert_close(ours(base, again), theirs(loaded), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_we_load_what_peft_saves(
    kind: str,
    architecture: str,
    tmp_path: Path,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    config = CONFIGS[kind]()
    if kind in ("lora", "patterns") and architecture == "phi3":
        config.target_modules = {"qkv_proj", "o_proj", "down_proj"}
        config.rank_pattern = {"o_proj": 2, r"layers\.1\.self_attn\.qkv_proj": 3}
    elif kind == "lora" and architecture.startswith("glm"):
        config.target_modules = {"q_proj", "gate_up_proj"}
    if kind.startswith("ia3") and architecture == "phi3":
        config.target_modules, config.feedforward_modules = {"qkv_proj", "o_proj"}, {"o_proj"}
    model = peft.get_peft_model(plain_model(architecture), config)
    shaken(model)
    model.save_pretrained(str(tmp_path))
    base = make_base(architecture)
    loaded = load_adapter(tmp_path, base)
    torch.testing.assert_close(ours(base, loaded), theirs(model), atol=1e-5, rtol=0)


def saved_lora(folder: Path, base: Base) -> None:
    save_adapter(build_adapter(base, "lora", {}, init_text="x", seed=0), folder, base)


def test_damage_is_named(tmp_path: Path, make_base: Callable[..., Base]) -> None:
    base = make_base()
    saved_lora(tmp_path, base)
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFileError, match=r"adapter_model\.safetensors"):
        load_adapter(tmp_path, base)
    weights.write_bytes(whole)
    (tmp_path / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"adapter_config\.json"):
        load_adapter(tmp_path, base)


def test_another_bases_adapter_is_refused(tmp_path: Path, make_base: Callable[..., Base]) -> None:
    base = make_base()
    adapter = build_adapter(base, "prompt-tuning", {}, init_text="x", seed=0)
    assert adapter.prompt is not None
    adapter.prompt.embedding = torch.nn.Parameter(torch.zeros(20, 64))
    save_adapter(adapter, tmp_path, base)
    with pytest.raises(CorruptFileError, match="prompt_embeddings"):
        load_adapter(tmp_path, base)


def test_what_would_change_the_answer_is_refused_by_name(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    saved_lora(tmp_path, base)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "use_qalora": True}), encoding="utf-8")
    with pytest.raises(OnebaseError, match="use_qalora"):
        load_adapter(tmp_path, base)
    file.write_text(json.dumps({**config, "peft_type": "VERA"}), encoding="utf-8")
    with pytest.raises(OnebaseError, match="VERA"):
        load_adapter(tmp_path, base)


FILES: dict[str, tuple[str, dict[str, Any], str]] = {
    "lora": ("lora", {"rank": 2}, "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"),
    "prompt-tuning": ("prompt-tuning", {"virtual_tokens": 4}, "prompt_embeddings"),
    "p-tuning": ("p-tuning", {"virtual_tokens": 4, "hidden": 8}, "prompt_embeddings"),
    "p-tuning-v2": ("p-tuning-v2", {"virtual_tokens": 4}, "prompt_embeddings"),
}


REASONS = {
    "missing": r"\S+ is missing|it is empty, but needs prompt_embeddings",
    "narrow": r"\S+ has shape \(\d+, \d+\), but this base needs",
    "flat": r"\S+ has shape \(\d+,\), but this base needs",
    "nan": r"\S+ is not finite",
    "infinite": r"\S+ is not finite",
    "no file": "No such file or directory",
}


@pytest.mark.parametrize("method", list(FILES))
@pytest.mark.parametrize("damage", REASONS)
def test_a_wrong_tensor_is_named(
    damage: str, method: str, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    name, settings, key = FILES[method]
    save_adapter(build_adapter(base, name, settings, init_text="x", seed=0), tmp_path, base)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    whole = tensors.pop(key)
    if damage in ("narrow", "flat"):
        tensors[key] = (whole[:, :-1] if damage == "narrow" else whole.flatten()).contiguous()
    elif damage != "missing":
        whole[1, 1] = float("nan" if damage == "nan" else "inf")
        tensors[key] = whole
    save_file(tensors, weights)
    if damage == "no file":
        weights.unlink()
    words = rf"adapter_model\.safetensors can't be used: ({REASONS[damage]})"
    with pytest.raises(CorruptFileError, match=words) as caught:
        load_adapter(tmp_path, base)
    assert damage == "no file" or key in caught.value.message


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("lora", "lora_alpha"),
        ("prompt-tuning", "num_virtual_tokens"),
        ("p-tuning-v2", "num_virtual_tokens"),
    ],
)
@pytest.mark.parametrize("value", ["gone", None, "many", 0, -1, True, [4], float("nan")])
def test_a_wrong_number_in_the_config_is_named(
    value: object, method: str, key: str, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    name, settings, _ = FILES[method]
    save_adapter(build_adapter(base, name, settings, init_text="x", seed=0), tmp_path, base)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    del config[key]
    file.write_text(
        json.dumps(config if value == "gone" else {**config, key: value}), encoding="utf-8"
    )
    with pytest.raises(CorruptFileError, match=rf"adapter_config\.json.*{key}"):
        load_adapter(tmp_path, base)


@pytest.mark.parametrize("text", ["", "[]", "null", '"LORA"', "{'r': 4}", "\x00", '{"r": 4'])
def test_a_damaged_config_is_named(
    text: str, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    saved_lora(tmp_path, base)
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"adapter_config\.json"):
        load_adapter(tmp_path, base)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", "all"),
        ("use_qalora", True),
        ("use_bdlora", {"blocks": 2}),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("task_type", "SEQ_CLS"),
        ("arrow_config", {"top_k": 2}),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["x.weight"]),
        ("layer_replication", [[0, 2]]),
        ("lora_bias", True),
        ("alora_invocation_tokens", [1]),
    ],
)
def test_every_feature_that_is_not_supported_is_refused_by_name(
    field: str, value: object, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    saved_lora(tmp_path, base)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    assert field in config  # PEFT has it by this name
    load_adapter(tmp_path, base)
    file.write_text(json.dumps({**config, field: value}), encoding="utf-8")
    with pytest.raises(OnebaseError, match=field):
        load_adapter(tmp_path, base)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_a_lora_on_the_embedding_is_refused_not_half_read(
    tmp_path: Path, make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens", "q_proj"])
    peft.get_peft_model(plain_model("llama"), config).save_pretrained(str(tmp_path))
    with pytest.raises(OnebaseError, match="embed_tokens"):
        load_adapter(tmp_path, make_base())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_a_lora_on_the_head_is_refused_by_name(
    tmp_path: Path, make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head", "q_proj"])
    peft.get_peft_model(plain_model("llama"), config).save_pretrained(str(tmp_path))
    with pytest.raises(CorruptFileError, match="lm_head"):
        load_adapter(tmp_path, make_base())


def test_a_regular_expression_as_target(
    tmp_path: Path, make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    pattern = r".*layers\.[01].*\.(q_proj|down_proj)"
    model = peft.get_peft_model(
        plain_model("llama"),
        peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=pattern),
    )
    shaken(model)
    model.save_pretrained(str(tmp_path))
    base = make_base()
    loaded = load_adapter(tmp_path, base)
    assert loaded.options["target"] == pattern
    assert loaded.lora is not None
    assert len(loaded.lora.names) == 4
    torch.testing.assert_close(ours(base, loaded), theirs(model), atol=1e-5, rtol=0)
