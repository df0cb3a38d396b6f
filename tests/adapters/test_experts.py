"""The note that lora leaves the experts of a mixture unchanged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import onebase
from onebase.adapters.experts import unchanged_experts
from onebase.model.base import Base
from onebase.training.job_state import JobState

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
MIXTURES = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 8},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 8},
    "GraniteMoe": {"num_local_experts": 4},
}


def mixture(name: str, like: Base) -> Base:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MIXTURES[name])
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    return Base(model, like.tokenizer, name=name)


# A layer has 4 * 3 * 16 * 16 weights in its experts (of 8 in place of 16 in Qwen), 768 in attention, 4 * 16
# in the router and 32 or 48 in norms. Qwen 2 has a shared expert of 3 * 16 * 5632 weights, too.
@pytest.mark.parametrize(
    ("name", "experts"),
    [
        ("Mixtral", "mlp.experts.gate_up_proj, mlp.experts.down_proj; 78%"),
        ("Qwen2Moe", "mlp.experts.gate_up_proj, mlp.experts.down_proj; 1%"),
        ("Qwen3Moe", "mlp.experts.gate_up_proj, mlp.experts.down_proj; 64%"),
        (
            "GraniteMoe",
            "block_sparse_moe.experts.gate_up_proj, block_sparse_moe.experts.down_proj; 78%",
        ),
    ],
)
def test_experts_without_a_delta_are_told(
    name: str, experts: str, make_base: Callable[..., Base]
) -> None:
    base = mixture(name, make_base())
    for method in ("lora", "lora+p-tuning"):
        (note,) = unchanged_experts(base, [method])
        words = (
            f"the experts of this mixture ({experts} of the weights in its layers) stay unchanged."
        )
        assert note.endswith(words)
    assert unchanged_experts(base, ["p-tuning", "prompt-tuning"]) == []


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3"])
def test_other_bases_have_none(name: str, make_base: Callable[..., Base]) -> None:
    assert unchanged_experts(make_base(name), ["lora"]) == []


def test_training_says_so_first(make_base: Callable[..., Base], tmp_path: Path) -> None:
    rows = [{"input": f"q{number}", "output": "a"} for number in range(8)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    base = mixture("Qwen2Moe", make_base())
    job = onebase.Job("t", data, set={"epochs": 1, "rank": 2})
    (note,) = JobState(job, base).notes
    assert "the experts of this mixture (mlp.experts.gate_up_proj, mlp.experts.down_proj" in note
