"""The methods by name: their options, how each builds an adapter, and its good defaults."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from onebase.adapters.adapter import Adapter
from onebase.adapters.full import FULL, FullOptions
from onebase.adapters.ia3 import Ia3, Ia3Options, ia3_sites
from onebase.adapters.lora import Lora, LoraOptions, chosen_layers, sites
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
from onebase.model.precision import weight_of

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True)
class Method:
    """One method: its options' type, its builder, which `part` of an adapter it builds, and the
    learning rate it does well at.

    `beta2` is AdamW's: virtual tokens start with gradients many times those that follow, and at
    .999 the average of their squares would hold the steps small for the whole of a short training.
    """

    options: type[BaseModel]
    build: Callable[[Base, Any, str], nn.Module]
    part: str
    learning_rate: float
    beta2: float = 0.999


def build_adapter(
    base: Base,
    method: str,
    settings: Mapping[str, Any],
    *,
    init_text: str,
    seed: int,
    leading: int = 0,
    placed: int = 0,
) -> Adapter:
    """A fresh adapter for `base`; the same `seed` gives the same start.

    `method` is one method, or several joined by `+`. Where a template marks virtual tokens,
    `leading` of them stand before the text and `placed` inside it. Raises UsageError for an
    unknown method, a wrong setting, methods that don't go together, marks that don't fit, or a base
    that is held for answering alone.
    """
    names = parts_of(method)
    if base.precision.name == "w8a8":
        raise UsageError(
            say(
                f"{base.name} is held in w8a8, which answers and does not learn.",
                f"{base.name} 的精度为 w8a8，只能用于回答，不能训练。",
            ),
            say("Train with --precision fp32 or int8.", "请用 --precision fp32 或 int8 训练。"),
        )
    own, rest = own_settings(method, settings)
    for key in rest:
        known = {field for name in names for field in METHODS[name].options.model_fields}
        raise unknown("setting", "设置项", key, known)
    if leading + placed:
        _mark(method, own, leading + placed)
    built: dict[str, Any] = {}
    options = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            chosen = METHODS[name]
            parsed = parse_options(chosen.options, own[name])
            built[chosen.part] = chosen.build(base, parsed, init_text)
            options[name] = parsed.model_dump()
    adapter = Adapter(
        "+".join(names),
        options[names[0]] if len(names) == 1 else options,
        placed=placed,
        **built,
    )
    return adapter.to(base.device)


def _mark(method: str, own: dict[str, dict[str, Any]], marked: int) -> None:
    """Give the method with virtual tokens the number that the template marks."""
    for name, settings in own.items():
        if METHODS[name].part == "prompt":
            chosen = settings.setdefault("virtual_tokens", marked)
            if chosen == marked:
                return
            raise UsageError(
                say(
                    f"virtual_tokens={chosen!r}, but the template marks {marked} of them.",
                    f"virtual_tokens={chosen!r}，但模板中标记了 {marked} 个虚拟词元。",
                ),
                say("Leave one of the two out.", "请去掉其中之一。"),
            )
    raise UsageError(
        say(
            f"The template marks virtual tokens, and {method} has none.",
            f"模板中标记了虚拟词元，而 {method} 没有虚拟词元。",
        ),
        say(
            "Use prompt-tuning or p-tuning (lora+p-tuning, say), or take {v:…} out.",
            "请使用 prompt-tuning 或 p-tuning（例如 lora+p-tuning），或去掉 {v:…}。",
        ),
    )


def canonical_method(name: str) -> str:
    """The method's own name for `name` or its alias, parts in a fixed order. Raises UsageError."""
    return "+".join(parts_of(name))


def parts_of(name: str) -> tuple[str, ...]:
    """The methods that `name` joins by `+`, in the order of METHODS.

    Raises UsageError for an unknown one, and for two that would be the same part of an adapter.
    """
    names = [ALIASES.get(part.strip(), part.strip()) for part in name.split("+")]
    for part in names:
        if part not in METHODS:
            raise unknown("method", "方法", part, [*METHODS, *ALIASES])
    for index, part in enumerate(names):
        for other in names[:index]:
            if METHODS[part].part == METHODS[other].part or FULL in (part, other):
                raise UsageError(
                    say(
                        f"{name}: {other} and {part} don't go together, an adapter has one of them.",
                        f"{name}：{other} 与 {part} 不能同时使用，一个适配器只能有其中之一。",
                    ),
                    say(
                        "Join methods of different kinds, such as lora+p-tuning+p-tuning-v2.",
                        "请组合不同类型的方法，例如 lora+p-tuning+p-tuning-v2。",
                    ),
                )
    return tuple(sorted(names, key=list(METHODS).index))


def own_settings(
    method: str, settings: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The settings of each method in `method`, and those that are none of theirs.

    A key goes to every method that knows it; `p-tuning.virtual_tokens` to that one alone.
    Raises UsageError for a method that isn't there, or a setting that it does not have.
    """
    names = parts_of(method)
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    rest = {}
    for key, value in settings.items():
        owner, dot, field = key.rpartition(".")
        if dot:
            owner = ALIASES.get(owner, owner)
            if owner not in own:
                raise unknown("method in a setting", "设置项中的方法", key, names)
            if field not in METHODS[owner].options.model_fields:
                raise unknown("setting", "设置项", key, METHODS[owner].options.model_fields)
            own[owner][field] = value
            continue
        knowing = [name for name in names if key in METHODS[name].options.model_fields]
        for name in knowing:
            own[name].setdefault(key, value)
        if not knowing:
            rest[key] = value
    return own, rest


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


def _build_lora(base: Base, options: LoraOptions, init_text: str) -> Lora:
    def frozen(name: str) -> Tensor:
        return weight_of(base.model.get_submodule(name))

    return Lora(
        sites(base.shape, options),
        dropout=options.dropout,
        weight_of=frozen if options.use_dora else None,
    )


def _build_qlora(base: Base, options: LoraOptions, init_text: str) -> Lora:
    """QLoRA (Dettmers et al. 2023): LoRA over a base in 4-bit NormalFloat."""
    if base.precision.name != "nf4":
        raise UsageError(
            say(
                f"qlora learns on a base in precision nf4; {base.name} is in {base.precision}.",
                f"qlora 在 nf4 精度的基座上学习，而 {base.name} 为 {base.precision}。",
            ),
            say("Load it with precision nf4, or use lora.", "请以 nf4 精度加载，或使用 lora。"),
        )
    return _build_lora(base, options, init_text)


def _build_ia3(base: Base, options: Ia3Options, init_text: str) -> Ia3:
    return Ia3(ia3_sites(base.shape, options.layers))


def _build_prompt_tuning(
    base: Base, options: PromptTuningOptions, init_text: str
) -> PromptEmbedding:
    start = _virtual_start(base, options, init_text)
    if start is None:
        spread = float(base.embedding.weight.float().std())
        start = torch.randn(options.virtual_tokens, base.shape.hidden) * spread
    return PromptEmbedding(start)


def _build_p_tuning(base: Base, options: PTuningOptions, init_text: str) -> PromptEncoder:
    return PromptEncoder(
        options.virtual_tokens,
        base.shape.hidden,
        kind=options.encoder,
        hidden=options.hidden,
        layers=options.encoder_layers,
        start=_virtual_start(base, options, init_text),
    )


def _build_p_tuning_v2(base: Base, options: PTuningV2Options, init_text: str) -> DeepPrefix:
    layers = chosen_layers(options.layers, base.shape.layers)
    ids = _start_ids(base, options, init_text)
    return DeepPrefix(
        base.shape,
        options.virtual_tokens,
        projection=options.hidden if options.projection else None,
        start=None if ids is None else _keys_values_of(base, ids, layers),
        layers=layers,
    )


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


def _keys_values_of(base: Base, ids: list[int], layers: Sequence[int]) -> Tensor:
    """The keys and values of a text in some layers, as DeepPrefix's rows."""
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
        for kept in (cache.layers[at].keys[0], cache.layers[at].values[0]):
            if kept.shape != (shape.kv_heads, len(ids), shape.head_dim):
                raise _no_prefix(base)
    keys = torch.stack([cache.layers[at].keys[0] for at in layers])
    values = torch.stack([cache.layers[at].values[0] for at in layers])
    return flatten(keys.float().cpu(), values.float().cpu())


def _no_prefix(base: Base) -> UsageError:
    """The error for a base that caches something else than keys and values: a prefix of them would not
    be PEFT's. DeepSeek caches a latent of both.
    """
    return UsageError(
        say(
            f"{base.name} does not keep keys and values of its tokens: p-tuning-v2 can't learn a "
            "prefix of them.",
            f"{base.name} 缓存的不是键和值，无法用 p-tuning-v2 学习其前缀。",
        ),
        say("Use lora or prompt-tuning.", "请使用 lora 或 prompt-tuning。"),
    )


def _build_full(base: Base, options: FullOptions, init_text: str) -> nn.Module:
    """The model of a base that is a trainable copy already."""
    model: nn.Module = base.model
    return model


METHODS: dict[str, Method] = {
    FULL: Method(FullOptions, _build_full, "full", learning_rate=5e-5),
    "lora": Method(LoraOptions, _build_lora, "lora", learning_rate=2e-3),
    "qlora": Method(LoraOptions, _build_qlora, "lora", learning_rate=2e-3),
    "ia3": Method(Ia3Options, _build_ia3, "ia3", learning_rate=1e-2),
    "prompt-tuning": Method(
        PromptTuningOptions, _build_prompt_tuning, "prompt", learning_rate=3e-2, beta2=0.95
    ),
    "p-tuning": Method(PTuningOptions, _build_p_tuning, "prompt", learning_rate=1e-2),
    "p-tuning-v2": Method(PTuningV2Options, _build_p_tuning_v2, "prefix", learning_rate=3e-2),
}
ALIASES = {"prefix-tuning": "p-tuning-v2"}
