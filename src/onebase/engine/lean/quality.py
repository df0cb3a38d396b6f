"""The quality loss of a base in w8a8, measured on sample texts when it is first loaded that way."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from onebase.adapters.contribution import NOTHING
from onebase.data.template import Template
from onebase.engine.lean.base_cache import cached_base_file, read_cached_base, write_cached_base
from onebase.engine.lean.runner import LeanRunner, kernel_name, supports
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Chunk, Request
from onebase.engine.sampling import Sampling
from onebase.model.base import Base
from onebase.model.fetch import resolve
from onebase.model.precision import choose
from onebase.model.w8a8 import folder, identity

# A small sample of typical text: prose, code, a chat, and Chinese.
_TEXTS = (
    "The lighthouse was built in 1874 on a narrow spit of rock, three miles from the harbour. For ninety "
    "years a keeper and his family lived in the two rooms below the lamp; supplies came by boat once a "
    "week, weather permitting. When the light was automated, the rooms were closed, and the last keeper "
    "moved to the village, where he opened a small shop for ropes, paint and tinned food.",
    "def moving_average(values, window):\n    total, averages = 0.0, []\n    for index, value in "
    "enumerate(values):\n        total += value\n        if index >= window:\n            total -= "
    "values[index - window]\n        averages.append(total / min(index + 1, window))\n    return averages\n",
    "User: My order has not arrived yet. What should I do?\nAssistant: I am sorry about the delay. Please "
    "tell me your order number, and I will look up where your parcel is. Most parcels arrive within five "
    "working days; if yours takes longer, we send a new one or return your money.",
    "这款台灯采用铝合金灯臂，可以自由调节角度，光线柔和，适合阅读和办公。包装内附有一根两米长的电源线，"
    "支持七天无理由退货。",
)
# For this short sample. Over 2,000 tokens of text, a base that passes is well below half of these.
MOST_DIVERGENCE = 0.02
MOST_LOSS = 0.03


@dataclass(frozen=True)
class Quality:
    """The mean KL divergence of w8a8's next-token distributions from those of fp32, and the increase of the
    loss, in nats per token. `isolated`: each text had the same numbers, bit for bit, alone and in a batch.
    """

    divergence: float
    loss: float
    isolated: bool = True

    @property
    def passes(self) -> bool:
        """Whether `auto` chooses w8a8 for this base."""
        small = self.divergence <= MOST_DIVERGENCE and self.loss <= MOST_LOSS
        return small and self.isolated


def load_for_answering(name: str, precision: str | None = "auto") -> tuple[Base, Quality | None]:
    """The base `name` in a precision of `Base.load`, or in `auto`: w8a8 on a CPU if its quality loss is
    small, else the default of Base.load. With `auto`, the measured quality is returned, too.

    Measuring takes a few seconds when a base is first loaded, and is cached by the weights and the kernel.
    """
    if precision not in ("auto", "w8a8") or torch.cuda.is_available():
        return Base.load(name, precision=None if precision == "auto" else precision), None
    path = resolve(name)
    file = cached_base_file(path)
    if (cached := read_cached_base(file)) is not None:
        quality = None if precision == "w8a8" else _read(cached.weights)
        use_w8a8 = precision == "w8a8" or (quality is not None and quality.passes)
        if use_w8a8 and (base := cached.base(name, path)) is not None:
            return base, quality
    base = Base.load(name)
    weights = identity(base.model, list(base.shape.linears))
    quality = None
    if precision == "auto":
        if not supports(base):
            return base, None
        quality = _read(weights) or _measured(base, name, weights)
        if not quality.passes:
            return base, None
    base.hold_in(choose("w8a8", device="cpu", stored=torch.float32), "cpu")
    if supports(base):
        write_cached_base(base, path, file, weights)
    return base, quality


def measure(base: Base, rounded: Base) -> Quality:
    """The quality of `rounded`, the base in w8a8, on the sample."""
    texts = [tuple(base.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in _TEXTS]
    divergence = loss = 0.0
    isolated = True
    batched_logits = _logits(rounded, texts)
    for ids, batched in zip(texts, batched_logits, strict=True):
        (exact,), (alone,) = _logits(base, [ids]), _logits(rounded, [ids])
        isolated = isolated and torch.equal(alone, batched)
        p, q = exact.double().log_softmax(-1), alone.double().log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum())
        target = torch.tensor(ids[1:])[:, None]
        loss += float((p[:-1].gather(1, target) - q[:-1].gather(1, target)).sum())
    tokens = sum(len(ids) for ids in texts)
    return Quality(divergence / tokens, loss / (tokens - len(texts)), isolated)


def _logits(base: Base, texts: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The logits of every token of some texts, computed in one pass."""
    runner = LeanRunner(base, cache_bytes=1 << 26)
    task = LoadedTask("base", 0, Template(base.tokenizer), NOTHING, base)
    chunks = []
    for ids in texts:
        request = Request((task,), ids, Sampling(), limit=1, score_from=0)
        runner.admit(request)
        chunks.append(Chunk(request, len(ids), len(ids)))
    return list(torch.split(runner.run(chunks), [len(ids) for ids in texts]))


def _measured(base: Base, name: str, weights: str) -> Quality:
    quality = measure(base, Base.load(name, precision="w8a8"))
    file = _file(weights)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(quality)), encoding="utf-8")
    return quality


def _read(weights: str) -> Quality | None:
    try:
        return Quality(**json.loads(_file(weights).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _file(weights: str) -> Path:
    kernel = kernel_name("w8a8").replace(" ", "-")
    return folder() / f"{weights}-{kernel}.json"
