"""The methods by name: their options, how each builds an adapter, and its good defaults."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor
from transformers import DynamicCache

from onebase.adapters.adapter import Adapter
from onebase.adapters.lora import Lora, LoraOptions, targets
from onebase.adapters.prefix import DeepPrefix, PTuningV2Options, flatten
from onebase.adapters.prompt import (
    PromptEmbedding,
    PromptEncoder,
    PromptTuningOptions,
    PTuningOptions,
    random_tokens,
    tiled,
)
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.model.base import Base

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True)
class Method:
    """One method: its options' type, its builder, and the learning rate it does well at."""

    options: type[BaseModel]
    build: Callable[[Base, Any, str], Adapter]
    learning_rate: float


def build_adapter(
    base: Base, method: str, settings: Mapping[str, Any], *, init_text: str, seed: int
) -> Adapter:
    """A fresh adapter for `base`; the same `seed` gives the same start.

    Raises UsageError for an unknown method or a wrong setting.
    """
    chosen = METHODS[canonical_method(method)]
    options = parse_options(chosen.options, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = chosen.build(base, options, init_text)
    return adapter.to(base.device)


def canonical_method(name: str) -> str:
    """The method's own name for `name` or its alias. Raises UsageError."""
    method = ALIASES.get(name, name)
    if method not in METHODS:
        raise unknown("method", "方法", name, [*METHODS, *ALIASES])
    return method


def parse_options(kind: type[Options], settings: Mapping[str, Any]) -> Options:
    """`settings` as `kind`. Raises UsageError that names the setting, its value and the fix."""
    for key in settings:
        if key not in kind.model_fields:
            raise unknown("setting", "设置项", key, kind.model_fields)
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:1])
        value = settings.get(key)
        raise UsageError(
            say(f"{key}={value!r} is not valid.", f"{key}={value!r} 无效。"),
            say(f"{first['msg']}.", f"要求：{first['msg']}。"),
        ) from error


def _build_lora(base: Base, options: LoraOptions, init_text: str) -> Adapter:
    lora = Lora(
        targets(base.shape, options.target),
        rank=options.rank,
        scale=options.alpha / options.rank,
        dropout=options.dropout,
    )
    return Adapter("lora", options.model_dump(), lora=lora)


def _build_prompt_tuning(base: Base, options: PromptTuningOptions, init_text: str) -> Adapter:
    start = _virtual_start(base, options, init_text)
    if start is None:
        spread = float(base.embedding.weight.float().std())
        start = torch.randn(options.virtual_tokens, base.shape.hidden) * spread
    return Adapter("prompt-tuning", options.model_dump(), prompt=PromptEmbedding(start))


def _build_p_tuning(base: Base, options: PTuningOptions, init_text: str) -> Adapter:
    encoder = PromptEncoder(
        options.virtual_tokens,
        base.shape.hidden,
        kind=options.encoder,
        hidden=options.hidden,
        layers=options.encoder_layers,
        start=_virtual_start(base, options, init_text),
    )
    return Adapter("p-tuning", options.model_dump(), prompt=encoder)


def _build_p_tuning_v2(base: Base, options: PTuningV2Options, init_text: str) -> Adapter:
    ids = _start_ids(base, options, init_text)
    prefix = DeepPrefix(
        base.shape,
        options.virtual_tokens,
        projection=options.hidden if options.projection else None,
        start=None if ids is None else _keys_values_of(base, ids),
    )
    return Adapter("p-tuning-v2", options.model_dump(), prefix=prefix)


def _start_ids(
    base: Base, options: PromptTuningOptions | PTuningOptions | PTuningV2Options, init_text: str
) -> list[int] | None:
    """The tokens an initialisation starts from, or None for a random one."""
    if options.init == "random":
        return None
    if options.init == "vocab":
        return random_tokens(base.shape.vocabulary, options.virtual_tokens)
    text = options.init_text or init_text
    ids: list[int] = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError(
            say(
                f"The text {text!r} to start from has no token.",
                f"用于初始化的文本 {text!r} 没有词元。",
            ),
            say("Give init_text=…, or init=vocab.", "请给出 init_text=…，或 init=vocab。"),
        )
    return tiled(ids, options.virtual_tokens)


def _virtual_start(
    base: Base, options: PromptTuningOptions | PTuningOptions, init_text: str
) -> Tensor | None:
    ids = _start_ids(base, options, init_text)
    if ids is None:
        return None
    with torch.no_grad():
        start: Tensor = base.embedding(torch.tensor(ids, device=base.device)).float().cpu()
    return start


def _keys_values_of(base: Base, ids: list[int]) -> Tensor:
    """The keys and values of a text in every layer, as DeepPrefix's rows."""
    cache = DynamicCache()
    with torch.no_grad():
        base.model(
            input_ids=torch.tensor([ids], device=base.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    keys = torch.stack([layer.keys[0] for layer in cache.layers])
    values = torch.stack([layer.values[0] for layer in cache.layers])
    return flatten(keys.float().cpu(), values.float().cpu())


METHODS: dict[str, Method] = {
    "lora": Method(LoraOptions, _build_lora, learning_rate=2e-3),
    "prompt-tuning": Method(PromptTuningOptions, _build_prompt_tuning, learning_rate=3e-2),
    "p-tuning": Method(PTuningOptions, _build_p_tuning, learning_rate=1e-2),
    "p-tuning-v2": Method(PTuningV2Options, _build_p_tuning_v2, learning_rate=3e-2),
}
ALIASES = {"prefix-tuning": "p-tuning-v2"}
