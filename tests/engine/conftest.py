"""Adapters of every method, and PEFT's own model of each to compare with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import NOTHING, Contribution
from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.batch import Batch
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Request
from onebase.engine.rows import TokenRow
from onebase.engine.sampling import Sampling
from onebase.model.base import Base
from onebase.model.eos import end_tokens

# The prefixes and prompts are shorter and longer than Gemma's sliding window of 8.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 4}),
    "lora-attention": ("lora", {"rank": 2, "target": "attention", "alpha": 3.0}),
    "lora-dora": ("lora", {"rank": 3, "use_dora": True, "layers": "top:2"}),
    "lora-rslora": (
        "lora",
        {
            "rank": 4,
            "alpha": 4.0,
            "use_rslora": True,
            "target": r"re:.*(q|o|down)_proj",
            "rank_pattern": {"o_proj": 2},
            "alpha_pattern": {"down_proj": 3.0},
        },
    ),
    "ia3": ("ia3", {}),
    "ia3-top": ("ia3", {"layers": "top:1"}),
    "prompt-tuning": ("prompt-tuning", {"virtual_tokens": 5, "init": "random"}),
    "prompt-tuning-text": ("prompt-tuning", {"virtual_tokens": 9}),
    "p-tuning-mlp": ("p-tuning", {"virtual_tokens": 6, "hidden": 16, "init": "random"}),
    "p-tuning-mlp-text": ("p-tuning", {"virtual_tokens": 6, "hidden": 16}),
    "p-tuning-lstm": (
        "p-tuning",
        {"virtual_tokens": 4, "hidden": 8, "encoder": "lstm", "init": "random"},
    ),
    "p-tuning-lstm-text": (
        "p-tuning",
        {"virtual_tokens": 10, "hidden": 8, "encoder": "lstm", "encoder_layers": 1},
    ),
    "p-tuning-v2": ("p-tuning-v2", {"virtual_tokens": 7, "init": "random"}),
    "p-tuning-v2-text": ("p-tuning-v2", {"virtual_tokens": 10}),
    "p-tuning-v2-projection": (
        "p-tuning-v2",
        {"virtual_tokens": 3, "projection": True, "hidden": 16, "init": "random"},
    ),
    "p-tuning-v2-projection-text": (
        "p-tuning-v2",
        {"virtual_tokens": 5, "projection": True, "hidden": 16},
    ),
}


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest, architecture: str) -> str:
    if request.param.startswith("ia3") and architecture == "phi3":
        pytest.skip("IA3 is refused on Phi 3, see tests/adapters")
    return str(request.param)


@pytest.fixture
def base(architecture: str, make_base: Callable[..., Base]) -> Base:
    return make_base(architecture)


@pytest.fixture
def make_adapter(base: Base) -> Callable[[str], Adapter]:
    """Make an adapter of a variant that is not where it started, as if it had been trained."""

    def make(variant: str) -> Adapter:
        method, settings = VARIANTS[variant]
        seed = list(VARIANTS).index(variant)
        adapter = build_adapter(base, method, settings, init_text="hello, you", seed=seed)
        torch.manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data += torch.randn_like(parameter) * 0.1
        return adapter

    return make


@pytest.fixture
def adapters(base: Base, make_adapter: Callable[[str], Adapter]) -> dict[str, Adapter]:
    """One adapter of every variant."""
    return {variant: make_adapter(variant) for variant in VARIANTS if fits(variant, base)}


def fits(variant: str, base: Base) -> bool:
    """IA3 needs keys and values in layers of their own; Phi 3 has one for all three."""
    return not variant.startswith("ia3") or base.model.config.model_type != "phi3"


@dataclass
class Twin:
    """A model that answers without this toolkit: PEFT's, or the bare one.

    `pairs` has our parameter by each of its own. PEFT can't express an encoder whose output is
    added to a start: then `served` holds our encoder's output, and `embedding` PEFT's copy of it.
    """

    model: Any
    pairs: dict[Any, Any] = field(default_factory=dict)
    served: Tensor | None = None
    embedding: Any = None
    own: list[Any] = field(default_factory=list)

    def logits(self, rows: Sequence[TokenRow]) -> Tensor:
        """The logits of the texts' own positions, right-padded, [rows, longest, vocabulary]."""
        ids, _, mask = padded(rows)
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits[:, -ids.shape[1] :]

    def losses(self, rows: Sequence[TokenRow]) -> list[Tensor]:
        """For every row the losses of its labels."""
        _, labels, _ = padded(rows)
        loss = cross_entropy(
            self.logits(rows)[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
        )
        return [loss[index][labels[index, 1:] != -100] for index in range(len(rows))]

    def mean_loss(self, rows: Sequence[TokenRow]) -> Tensor:
        """The loss as transformers computes it from `labels`."""
        ids, labels, mask = padded(rows)
        loss: Tensor = self.model(input_ids=ids, labels=labels, attention_mask=mask).loss
        return loss

    def gradients(self) -> list[tuple[Any, Tensor]]:
        """Our parameters with the gradients PEFT's backward pass gave their counterparts."""
        if self.served is None:
            return [(our, their.grad.view_as(our)) for their, our in self.pairs.items()]
        grads = torch.autograd.grad(self.served, self.own, self.embedding.grad)
        return list(zip(self.own, grads, strict=True))


def padded(rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, labels (-100 where there is none) and attention mask, [rows, longest]."""
    ids = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        size = len(row.ids)
        ids[index, :size] = torch.tensor(row.ids)
        labels[index, :size] = torch.where(torch.tensor(row.loss_mask), ids[index, :size], -100)
        mask[index, :size] = 1
    return ids, labels, mask


def _lora_twin(model: Any, adapter: Adapter) -> Twin:
    assert adapter.lora is not None
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.options["rank"],
        lora_alpha=adapter.options["alpha"],
        target_modules=adapter.lora.names,
        rank_pattern=adapter.options["rank_pattern"] or {},
        alpha_pattern=adapter.options["alpha_pattern"] or {},
        use_rslora=adapter.options["use_rslora"],
        use_dora=adapter.options["use_dora"],
    )
    twin = Twin(peft.get_peft_model(model, config))
    for index, name in enumerate(adapter.lora.names):
        module = twin.model.get_submodule(f"base_model.model.{name}")
        twin.pairs[module.lora_A["default"].weight] = adapter.lora.a[index]
        twin.pairs[module.lora_B["default"].weight] = adapter.lora.b[index]
        if adapter.options["use_dora"]:
            lengths = module.lora_magnitude_vector["default"].weight
            twin.pairs[lengths] = adapter.lora.magnitude[index]
    return twin


def _ia3_twin(model: Any, adapter: Adapter) -> Twin:
    assert adapter.ia3 is not None
    inner = [name for name, (_, on_inputs) in adapter.ia3.sites.items() if on_inputs]
    config = peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=list(adapter.ia3.sites),
        feedforward_modules=inner,
    )
    twin = Twin(peft.get_peft_model(model, config))
    for vector, name in zip(adapter.ia3.vectors, adapter.ia3.sites, strict=True):
        theirs = twin.model.get_submodule(f"base_model.model.{name}").ia3_l["default"]
        twin.pairs[theirs] = vector
    return twin


def _config(adapter: Adapter, *, served: bool) -> Any:
    options = adapter.options
    common = {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": options["virtual_tokens"],
        "inference_mode": served,
    }
    if adapter.prefix is not None:
        return peft.PrefixTuningConfig(
            prefix_projection=options["projection"] and not served,
            encoder_hidden_size=options["hidden"],
            **common,
        )
    if adapter.method == "prompt-tuning":
        return peft.PromptTuningConfig(**common)
    return peft.PromptEncoderConfig(
        encoder_reparameterization_type=options["encoder"].upper(),
        encoder_hidden_size=options["hidden"],
        encoder_num_layers=options["encoder_layers"],
        **common,
    )


def _encoder_twin(model: Any, adapter: Adapter) -> Twin:
    """The twin of an adapter with an encoder, whole or, with a start, of what it is served as."""
    part: Any = adapter.prompt if adapter.prefix is None else adapter.prefix
    served = getattr(part, "start", None) is not None
    twin = Twin(peft.get_peft_model(model, _config(adapter, served=served)))
    encoder = twin.model.prompt_encoder["default"]
    if served:
        twin.served, twin.embedding = part(), encoder.embedding.weight
        twin.own = list(part.parameters())
        twin.embedding.data.copy_(twin.served.detach())
        twin.embedding.requires_grad_(True)
        return twin
    theirs = dict(encoder.named_parameters())
    for key, our in part.named_parameters():
        renamed = key.replace("mlp.", "mlp_head.").replace("lstm.", "lstm_head.")
        twin.pairs[theirs["embedding.weight" if key == "embedding" else renamed]] = our
    assert len(twin.pairs) == len(theirs)
    return twin


@pytest.fixture
def twin_of(architecture: str, plain_model: Callable[..., Any]) -> Callable[..., Twin]:
    """PEFT's model with an adapter's weights on a base of its own; the bare one for None."""

    def make(adapter: Adapter | None) -> Twin:
        model = plain_model(architecture)
        if adapter is None:
            return Twin(model)
        makers = {"lora": _lora_twin, "ia3": _ia3_twin}
        twin = makers.get(adapter.method, _encoder_twin)(model, adapter)
        for their, our in twin.pairs.items():
            assert their.numel() == our.numel()
            their.data.copy_(our.data.view_as(their))
        twin.model.eval()
        return twin

    return make


@pytest.fixture
def make_rows() -> Callable[..., list[TokenRow]]:
    """Ragged rows of one adapter, which share their beginning of `shared` tokens and learn from
    the token at `learn` on.
    """

    def make(
        adapter: str | None, *, count: int = 3, shared: int = 0, learn: int = 7, seed: int = 0
    ) -> list[TokenRow]:
        drawn = torch.Generator().manual_seed(seed)
        beginning = torch.randint(3, 300, (shared,), generator=drawn).tolist()
        rows = []
        for index in range(count):
            size = 12 + 3 * index - shared
            ids = [*beginning, *torch.randint(3, 300, (size,), generator=drawn).tolist()]
            learned = [False] * learn + [True] * (len(ids) - learn)
            rows.append(TokenRow(adapter, tuple(ids), tuple(learned)))
        return rows[::-1]

    return make


def task_of(base: Base, contribution: Contribution = NOTHING) -> LoadedTask:
    """A task that contributes this."""
    return LoadedTask("it", 0, Template(base.tokenizer), contribution, base)


def request_of(task: LoadedTask, ids: Sequence[int], sampling: Sampling, **more: Any) -> Request:
    """A request that ends where its task's answers do."""
    ends = end_tokens(task.base, task.template)
    return Request(
        (task,), tuple(ids), sampling, **{"limit": sampling.max_tokens, "ends": ends, **more}
    )


def answered(requests: Sequence[Request], slots: int = 64) -> list[Request]:
    """`requests` when they have ended, from one batch over the transformers modules."""
    batch = Batch(GenericRunner(requests[0].base, slots=slots), slots=slots)
    for request in requests:
        batch.add(request)
    while not batch.idle:
        batch.step()
    return list(requests)
