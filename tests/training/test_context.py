"""Rows beyond the base's context are told, by the first, before the first step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_tokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import onebase
from onebase.errors import DataError
from onebase.model.base import Base
from onebase.runs.run import RunStore

CONTEXT = 48
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=48)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SIZES)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_rows_beyond_the_context(kind: str, method: str, tmp_path: Path) -> None:
    if kind == "gpt2" and method == "lora":
        pytest.skip("its layers are no linear ones")
    torch.manual_seed(0)
    base = Base(MODELS[kind]().eval(), tiny_tokenizer(), name=f"tiny-{kind}")
    own: dict[str, Any] = {"epochs": 1}
    virtual = 0
    if method == "prompt-tuning":
        virtual = own["virtual_tokens"] = 4
    file = tmp_path / "rows.jsonl"
    long = "the parcel is on its way, " * 12
    rows = [{"input": "where?", "output": "here"}] * 6 + [{"input": long, "output": "here"}] * 2
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    workspace = onebase.Workspace(tmp_path / "w")

    def job(**settings: Any) -> onebase.Job:
        return onebase.Job("t", file, method, template="{input} ", set=own | settings)

    with pytest.raises(
        DataError, match=rf"rows\.jsonl:7: 2 rows.*tiny-{kind}'s context of 48"
    ) as caught:
        onebase.train([job()], base=base, workspace=workspace)
    assert f"max_tokens={CONTEXT - virtual}" in caught.value.remedy
    assert RunStore(workspace).list() == []
    # What the remedy says does.
    (stored,) = onebase.train([job(max_tokens=CONTEXT - virtual)], base=base, workspace=workspace)
    assert stored.version == 1
