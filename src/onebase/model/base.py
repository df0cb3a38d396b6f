"""The base: a frozen causal language model with its tokenizer, loaded once."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebase.errors import CorruptFileError, UsageError
from onebase.language import say
from onebase.model.architecture import check_architecture, has_text_part, head_sizes, text_part
from onebase.model.fetch import DEFAULT_BASE, lasting_name, resolve
from onebase.model.precision import Precision, choose, hold, of_type, weight_of
from onebase.model.rotary import fix_rotary
from onebase.model.tokenizer import read_tokenizer
from onebase.model.weights import READ_ERRORS, read_model


@dataclass(frozen=True)
class ModelShape:
    """The sizes that adapters are built from.

    `linears` maps each linear layer inside the decoder layers, by its full name
    (`model.layers.0.self_attn.q_proj`), to (inputs, outputs).
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    linears: dict[str, tuple[int, int]]


class Base:
    """A frozen model that any number of adapters share.

    `model` is the transformers model in evaluation mode, without gradients, and `tokenizer` its
    tokenizer. `name` is the name that the user gave, a path as an absolute one so that a task finds it
    from any folder. `path` is its folder, `precision` that of its weights. `rotary` is the limit of its
    rotary embedding on the length of a text, if there is one.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, path: Path | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.rotary = fix_rotary(model)
        self.tokenizer = tokenizer
        self.name = name
        self.path = path
        self.precision = of_type(self.embedding.weight.dtype)
        self.layers = decoder_layers(model)
        self.shape = _shape(model, self.layers)

    @classmethod
    def load(
        cls,
        name: str = DEFAULT_BASE,
        *,
        device: str | None = None,
        precision: str | None = None,
    ) -> "Base":
        """Load the base `name`: `smollm2-135m`, `gemma3-270m`, a folder, a `.gguf` file or a Hub id.

        `precision` is fp32, bf16, fp16, int8, nf4 or w8a8, with options (see `precision.choose`); by
        default fp32 on a CPU and the files' own dtype on a GPU. Raises MissingBaseError,
        CorruptFileError, or UsageError (also for an unsupported architecture).
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Refuses an invalid one before any work.
        choose(precision, device=device, stored=torch.float32)
        path = resolve(name)
        try:
            check_architecture(path)
            tokenizer = read_tokenizer(path)
            model = text_part(read_model(path, dtype="auto"))
        except UsageError:  # which is a ValueError too
            raise
        except READ_ERRORS as error:
            raise CorruptFileError(
                say(
                    f"The base model in {path} can't be loaded: {_first_line(error)}",
                    f"无法加载 {path} 中的基座模型：{_first_line(error)}",
                ),
                say(
                    "Download it again, or check that the folder holds config.json, *.safetensors "
                    "and the tokenizer of the same causal language model.",
                    "请重新下载，或检查目录中是否有同一因果语言模型的 config.json、*.safetensors 和分词器。",
                ),
            ) from error
        base = cls(model, tokenizer, name=lasting_name(name), path=path)
        _ = base.content  # hash the weights as stored, before any change of precision
        stored = base.embedding.weight.dtype
        base.hold_in(choose(precision, device=device, stored=stored), device)
        return base

    def hold_in(self, precision: Precision, device: str) -> None:
        """Convert the weights to `precision` on `device`. The rounding can't be undone.

        Raises OnebaseError if bitsandbytes is needed and missing.
        """
        _ = self.content  # hash the weights before they change
        hold(self.model, list(self.shape.linears), precision, device)
        self.precision = precision

    @cached_property
    def is_text_part(self) -> bool:
        """Whether it is the text part of a vision-language model in its folder."""
        return self.path is not None and has_text_part(self.path)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.weight.device

    @property
    def bytes(self) -> int:
        """The size of its weights and buffers in bytes."""
        sizes = {
            tensor.data_ptr(): tensor.numel() * tensor.element_size()
            for tensor in (*self.model.parameters(), *self.model.buffers())
        }
        return sum(sizes.values())

    @property
    def embedding(self) -> nn.Embedding:
        """The input embedding as a module (Gemma 3 scales inside it)."""
        module: nn.Embedding = self.model.get_input_embeddings()
        return module

    @property
    def context(self) -> int | None:
        """The maximum number of tokens of a text, including prompt, answer and virtual tokens: the base's
        context length, within the limit of its rotary embedding. None if unknown.
        """
        positions: int | None = getattr(self.model.config, "max_position_embeddings", None)
        if self.rotary is None:
            return positions
        return min(self.rotary.tokens, positions or self.rotary.tokens)

    @property
    def context_text(self) -> str:
        """The context in the words of a message, with the rope type if that limits it."""
        kind = self.rotary.kind if self.rotary else ""
        return say(
            f"{self.name}'s context of {self.context}" + (f" (rope type {kind})" if kind else ""),
            f"{self.name} 的上下文长度 {self.context}" + (f"（rope 类型 {kind}）" if kind else ""),
        )

    def require_room(self, tokens: int) -> None:
        """Raise UsageError if `tokens`, including virtual tokens, exceed `context`."""
        context = self.context
        if context is None or tokens <= context:
            return
        if self.rotary is None:
            cause = say(
                f"A text has {tokens} tokens, including virtual tokens, more than "
                f"{self.context_text}.",
                f"一段文本有 {tokens} 个词元（含虚拟词元），超出 {self.context_text}。",
            )
        else:
            cause = say(
                f"A text has {tokens} tokens, including virtual tokens. {self.name} has a rotary "
                f"embedding of type {self.rotary.kind}: beyond {context} tokens it depends on the "
                "longest text in a batch, so longer texts are refused.",
                f"一段文本有 {tokens} 个词元（含虚拟词元）。{self.name} 的旋转位置编码类型为 "
                f"{self.rotary.kind}：超过 {context} 个词元后，结果取决于同一批中最长的文本，"
                "因此不接受更长的文本。",
            )
        raise UsageError(
            cause,
            say(
                f"Shorten it, or lower max_tokens, so that no text has more than {context} tokens.",
                f"请缩短文本或减小 max_tokens，使每段文本不超过 {context} 个词元。",
            ),
        )

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the base's config and some of its weights, in 16 hexadecimal digits.

        Two exports of the same weights have the same fingerprint.
        """
        digest = hashlib.sha256()
        settings = self.model.config.to_dict()
        hashed = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
        digest.update(json.dumps({key: settings.get(key) for key in hashed}).encode())
        for name, parameter in sorted(self.model.named_parameters()):
            if parameter.dim() == 1 or parameter is self.embedding.weight:
                digest.update(name.encode())
                digest.update(_sample(parameter))
        return digest.hexdigest()[:16]

    @cached_property
    def content(self) -> str:
        """A short hash of `fingerprint` and rows of every linear layer, in 16 hexadecimal digits.

        Unlike `fingerprint` it changes when an adapter is merged into the base.
        """
        digest = hashlib.sha256(self.fingerprint.encode())
        for name in self.shape.linears:
            digest.update(_sample(weight_of(self.model.get_submodule(name))))
        return digest.hexdigest()[:16]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers, wherever this architecture has it.

    Raises CorruptFileError if there is no such list.
    """
    count = model.config.num_hidden_layers  # type: ignore[union-attr]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise CorruptFileError(
        say(
            f"{type(model).__name__} has no list of {count} decoder layers.",
            f"{type(model).__name__} 中找不到 {count} 层解码层。",
        ),
        say("Use a causal language model.", "请使用因果语言模型。"),
    )


def _shape(model: Any, layers: nn.ModuleList) -> ModelShape:
    config = model.config
    inside = {id(module) for layer in layers for module in layer.modules()}
    heads = config.num_attention_heads
    return ModelShape(
        hidden=config.hidden_size,
        layers=len(layers),
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_sizes(config)[0],
        vocabulary=model.get_input_embeddings().weight.shape[0],
        linears={
            name: (module.in_features, module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and id(module) in inside
        },
    )


def _sample(parameter: Tensor) -> bytes:
    rows = parameter.detach()[:: max(1, parameter.shape[0] // 64)]
    return rows.float().cpu().numpy().tobytes()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
