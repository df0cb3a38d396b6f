"""A task with an exactly solvable optimum: answers of one token, on a tiny base.

The policy that maximises E[r] - beta KL(policy, reference) is reference * exp(r / beta), normalised
(Korbak et al. 2022; Rafailov et al. 2023, equation 4).
"""

import json
import math
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from onebase.adapters.peft_format import load_adapter
from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align import rewards
from onebase.align.dpo import train_dpo
from onebase.align.job import AlignJob
from onebase.align.ppo import train_ppo
from onebase.data.template import Template
from onebase.engine.forward import run_pack
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pack import Pack
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.model.base import Base

LETTERS = "abcdefghijklmnopqrst"
PROMPTS = ["ab", "cd", "efg", "h"]
BETA = 0.25
WITHIN = 0.05


def reward(prompt: str, answer: str, row: Mapping[str, Any]) -> float:
    """Later letters are better, in seven steps over and over; all else is worth nothing."""
    return LETTERS.index(answer) % 7 / 6 if answer and answer in LETTERS else 0.0


@pytest.fixture
def base() -> Base:
    """A random Llama of so small a vocabulary that a state can stand for any distribution."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {letter: 3 + at for at, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        )
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    return Base(model.eval(), fast, name="letters")


def distributions(base: Base, stored: StoredAdapter | None) -> Tensor:
    """The probability of every token as the answer to every prompt, [prompts, vocabulary]."""
    template = Template(base.tokenizer, kind="{input}")
    contributions = {}
    if stored is not None:
        contributions["a"] = with_prompt_kv(GenericRunner(base), load_adapter(stored.path, base))
    rows = []
    for prompt in PROMPTS:
        pack = Pack(contributions)
        pack.add("a" if stored else None, template.prompt(prompt))
        with torch.no_grad():
            rows.append(run_pack(base, pack, torch.tensor([len(pack.ids) - 1]))[0])
    return torch.stack(rows).double().softmax(-1)


def values(base: Base) -> Tensor:
    texts = [
        base.tokenizer.decode([token], skip_special_tokens=True)
        for token in range(base.shape.vocabulary)
    ]
    return torch.tensor([reward("", text, {}) for text in texts], dtype=torch.float64)


def tilted(reference: Tensor, worth: Tensor, beta: float) -> Tensor:
    weights = reference * (worth / beta).exp()
    return weights / weights.sum(-1, keepdim=True)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return file


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_ppo_and_grpo_reach_the_optimum(
    advantage: str,
    base: Base,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rewards, "load_function", lambda *_: reward)
    stored = train_ppo(
        AlignJob(
            "letters",
            prompts,
            "lora",
            held_out=prompts,
            template="{input}",
            set={
                "rank": 8,
                "learning_rate": 5e-3,
                "advantage": advantage,
                # The optimum is that of the plain reward and of KL(policy, reference).
                "whiten": advantage == "gae",
                "kl_estimator": "k1" if advantage == "gae" else "k2",
                "prompts": 4,
                "samples": 24,
                "minibatch": 48,
                "max_tokens": 1,
                "steps": 90,
                "kl": BETA,
                "judge_every": 90,
                "judge_answers": 512,
                "value_rate": 2e-3,
                "head_rate": 2e-2,
                "lam": 1.0,
            },
        ),
        "mine:reward",
        base=base,
        workspace=Workspace(tmp_path / "w"),
    )
    reference, found, worth = distributions(base, None), distributions(base, stored), values(base)
    best = tilted(reference, worth, BETA)
    wanted = float((best * worth).sum(-1).mean())
    start = float((reference * worth).sum(-1).mean())
    assert start < 0.7 * wanted  # there is something to gain
    assert float((found * worth).sum(-1).mean()) == pytest.approx(wanted, rel=WITHIN)
    objective = (found * worth).sum(-1) - BETA * (found * (found / reference).log()).sum(-1)
    optimum = BETA * (reference * (worth / BETA).exp()).sum(-1).log()
    assert float(objective.mean()) == pytest.approx(float(optimum.mean()), rel=WITHIN)


def test_dpo_reaches_the_optimum(base: Base, tmp_path: Path) -> None:
    """Pairs of six answers, as often one way round as Bradley-Terry has it."""
    beta = 0.5
    worth = {"a": 2.0, "e": 1.5, "b": 1.0, "c": 0.5, "d": 0.0, "f": -0.5}
    rows = []
    for prompt in PROMPTS:
        for (one, own), (other, theirs) in permutations(worth.items(), 2):
            wins = round(12 / (1 + math.exp(theirs - own)))
            rows += [{"prompt": prompt, "chosen": one, "rejected": other}] * wins
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = train_dpo(
        AlignJob(
            "letters",
            file,
            "lora",
            held_out=file,
            template="{input}",
            set={
                "rank": 8,
                "learning_rate": 1e-2,
                "beta": beta,
                "batch_size": 32,
                "epochs": 30,
                "max_tokens": 64,
            },
        ),
        base=base,
        workspace=Workspace(tmp_path / "w"),
    )
    ids = [base.tokenizer(letter)["input_ids"][0] for letter in worth]
    own = torch.tensor(list(worth.values()), dtype=torch.float64)
    shares = []
    for item in (None, stored):
        template = Template(base.tokenizer, kind="{input}")
        contributions = (
            {"a": with_prompt_kv(GenericRunner(base), load_adapter(item.path, base))}
            if item
            else {}
        )
        rows_of = []
        for prompt in PROMPTS:
            pack = Pack(contributions)
            pack.add("a" if item else None, template.prompt(prompt))
            with torch.no_grad():
                logits = run_pack(base, pack, torch.tensor([len(pack.ids) - 1]))[0]
            rows_of.append(logits[ids].double().softmax(-1))
        shares.append(torch.stack(rows_of))
    reference, found = shares
    wanted = float((tilted(reference, own, beta) * own).sum(-1).mean())
    assert float((reference * own).sum(-1).mean()) < 0.7 * wanted
    assert float((found * own).sum(-1).mean()) == pytest.approx(wanted, rel=WITHIN)
