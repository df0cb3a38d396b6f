"""One function a method that builds its part of an adapter: `(base, options, init_text) -> module`.

`init_text` is the text that virtual tokens start from where the options give none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onebase.adapters.full import FullOptions
from onebase.adapters.ia3 import Ia3, Ia3Options, ia3_sites
from onebase.adapters.lora import Lora, LoraOptions, chosen_layers, sites
from onebase.adapters.prefix import DeepPrefix, PTuningV2Options, flatten
from onebase.adapters.prompt import (
    PromptEmbedding,
    PromptEncoder,
    PromptTuningOptions,
    PTuningOptions,
    VirtualTokenOptions,
    random_tokens,
    tiled,
)
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.precision import weight_of


def build_lora(base: Base, options: LoraOptions, init_text: str) -> Lora:
    """LoRA deltas at the chosen layers; DoRA reads the frozen weights too."""

    def frozen(name: str) -> Tensor:
        return weight_of(base.model.get_submodule(name))

    return Lora(
        sites(base.shape, options),
        dropout=options.dropout,
        weight_of=frozen if options.use_dora else None,
    )


def build_qlora(base: Base, options: LoraOptions, init_text: str) -> Lora:
    """QLoRA (Dettmers et al. 2023): LoRA over a base in 4-bit NormalFloat."""
    if base.precision.name != "nf4":
        raise UsageError(
            say(
                f"qlora needs a base in precision nf4; {base.name} is in {base.precision}.",
                f"qlora 要求基座为 nf4 精度，而 {base.name} 为 {base.precision}。",
            ),
            say("Load it with precision nf4, or use lora.", "请以 nf4 精度加载，或使用 lora。"),
        )
    return build_lora(base, options, init_text)


def build_ia3(base: Base, options: Ia3Options, init_text: str) -> Ia3:
    """Scaling vectors for the keys, the values and the feed-forward layers."""
    return Ia3(ia3_sites(base.shape, options.layers))


def build_prompt_tuning(
    base: Base, options: PromptTuningOptions, init_text: str
) -> PromptEmbedding:
    """Virtual tokens; random ones have the standard deviation of the base's embeddings."""
    start = _virtual_start(base, options, init_text)
    if start is None:
        deviation = float(base.embedding.weight.float().std())
        start = torch.randn(options.virtual_tokens, base.shape.hidden) * deviation
    return PromptEmbedding(start)


def build_p_tuning(base: Base, options: PTuningOptions, init_text: str) -> PromptEncoder:
    """Virtual tokens with their prompt encoder."""
    return PromptEncoder(
        options.virtual_tokens,
        base.shape.hidden,
        kind=options.encoder,
        hidden=options.hidden,
        layers=options.encoder_layers,
        start=_virtual_start(base, options, init_text),
    )


def build_p_tuning_v2(base: Base, options: PTuningV2Options, init_text: str) -> DeepPrefix:
    """A prefix of keys and values in the chosen layers."""
    layers = chosen_layers(options.layers, base.shape.layers)
    ids = _start_ids(base, options, init_text)
    return DeepPrefix(
        base.shape,
        options.virtual_tokens,
        projection=options.hidden if options.projection else None,
        start=None if ids is None else _keys_values_of(base, ids, layers),
        layers=layers,
    )


def _start_ids(base: Base, options: VirtualTokenOptions, init_text: str) -> list[int] | None:
    """The token ids that the virtual tokens start from; None with init=random.

    Raises UsageError for a text without tokens.
    """
    if options.init == "random":
        return None
    if options.init == "vocab":
        return random_tokens(base.shape.vocabulary, options.virtual_tokens)
    text = options.init_text or init_text
    ids: list[int] = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError(
            say(
                f"The initial text {text!r} has no tokens.",
                f"用于初始化的文本 {text!r} 不含任何词元。",
            ),
            say("Give init_text=…, or init=vocab.", "请给出 init_text=…，或 init=vocab。"),
        )
    return tiled(ids, options.virtual_tokens)


def _virtual_start(base: Base, options: VirtualTokenOptions, init_text: str) -> Tensor | None:
    """The initial embeddings, [virtual tokens, hidden]; None with init=random."""
    ids = _start_ids(base, options, init_text)
    if ids is None:
        return None
    with torch.no_grad():
        start: Tensor = base.embedding(torch.tensor(ids, device=base.device)).float().cpu()
    return start


def _keys_values_of(base: Base, ids: list[int], layers: Sequence[int]) -> Tensor:
    """The base's keys and values of the tokens `ids` in `layers`, as rows of DeepPrefix.

    Raises UsageError for a base that caches something else.
    """
    from transformers import DynamicCache  # late, as in read_model

    cache = DynamicCache()
    with torch.no_grad():
        base.model(
            input_ids=torch.tensor([ids], device=base.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    shape = base.shape
    for at in layers:
        for cached in (cache.layers[at].keys[0], cache.layers[at].values[0]):
            if cached.shape != (shape.kv_heads, len(ids), shape.head_dim):
                raise _no_prefix(base)
    keys = torch.stack([cache.layers[at].keys[0] for at in layers])
    values = torch.stack([cache.layers[at].values[0] for at in layers])
    return flatten(keys.float().cpu(), values.float().cpu())


def _no_prefix(base: Base) -> UsageError:
    """The error for a base whose cache holds no keys and values, such as DeepSeek's, which holds a
    latent of both: PEFT has no prefix for it.
    """
    return UsageError(
        say(
            f"{base.name} does not cache keys and values, so p-tuning-v2 can't learn a prefix "
            "for it.",
            f"{base.name} 缓存的不是键和值，无法用 p-tuning-v2 学习前缀。",
        ),
        say("Use lora or prompt-tuning.", "请使用 lora 或 prompt-tuning。"),
    )


def build_full(base: Base, options: FullOptions, init_text: str) -> nn.Module:
    """The model of `base`, which is a trainable copy already."""
    model: nn.Module = base.model
    return model
