"""LoRA (Hu et al. 2021) and its variants: trainable low-rank deltas on frozen linear layers.

rsLoRA (Kalajdzievski 2023) divides by the square root of the rank; DoRA (Liu et al. 2024) learns
the length of each row of the weight apart from its direction; LoRA+ (Hayou et al. 2024) gives `b` a
higher learning rate than `a`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onebase.adapters.contribution import LowRank
from onebase.adapters.option import StrictOptions, option
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import ModelShape


class LoraOptions(StrictOptions):
    """The options of `lora` and `qlora`."""

    rank: int = option(
        8,
        "Rank of the low-rank matrices; more learns more and costs more memory.",
        "低秩矩阵的秩；越大表达能力越强，占用的内存也越多。",
        ge=1,
        le=512,
    )
    alpha: float = option(
        16.0,
        "Numerator of the deltas' scale, which is alpha / rank.",
        "增量缩放系数的分子，缩放系数为 alpha / rank。",
        gt=0,
    )
    target: str = option(
        "all-linear",
        "Linear layers that get a delta: all-linear, attention, layer names separated "
        "by commas, or re: and a regular expression for full names.",
        "带增量的线性层：all-linear、attention、以逗号分隔的层名，"
        "或 re: 加匹配完整层名的正则表达式。",
    )
    layers: str = option(
        "all",
        "Decoder layers that get deltas: all, top:10, bottom:4, or numbers from 0 such as 0,2,5-9.",
        "带增量的解码层：all、top:10、bottom:4，或从 0 开始的编号，如 0,2,5-9。",
    )
    dropout: float = option(
        0.0,
        "Dropout probability on the inputs of the deltas, in training only.",
        "增量输入的 dropout 概率，只在训练时使用。",
        ge=0.0,
        lt=1.0,
    )
    rank_pattern: dict[str, int] | None = option(
        None,
        "Ranks of single layers, by the end of a layer's name or a regular expression "
        "for it (as in PEFT), such as {q_proj: 16}.",
        "单独指定部分层的秩，键为层名的结尾或正则表达式（与 PEFT 相同），例如 {q_proj: 16}。",
    )
    alpha_pattern: dict[str, float] | None = option(
        None,
        "Alphas of single layers, with keys as in rank_pattern.",
        "单独指定部分层的 alpha，键的写法与 rank_pattern 相同。",
    )
    use_rslora: bool = option(
        False,
        "Scale the deltas by alpha / sqrt(rank) instead (rsLoRA), for high ranks.",
        "改用 alpha / sqrt(rank) 缩放增量（rsLoRA），适合较大的秩。",
    )
    use_dora: bool = option(
        False,
        "Learn the length of each row of the weights apart from its direction (DoRA).",
        "将权重每一行的长度与方向分开学习（DoRA）。",
    )
    loraplus_lr_ratio: float = option(
        1.0,
        "Learning rate of matrix B as a multiple of the learning rate of A (LoRA+).",
        "矩阵 B 的学习率是 A 的多少倍（LoRA+）。",
        ge=1.0,
        le=1000.0,
    )


@dataclass(frozen=True)
class Site:
    """A linear layer that gets a delta: its `inputs` and `outputs`, the delta's rank and scale."""

    inputs: int
    outputs: int
    rank: int
    scale: float


class Lora(nn.Module):
    """One pair of matrices per site: `a` starts uniform as in the paper's code, `b` zero.

    `weight_of` returns the frozen weight of a layer by its name, [outputs, inputs]. With it every
    site also learns a magnitude (DoRA), [outputs], which starts as the length of the weight's rows.
    Without `start` the matrices are left uninitialized.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        *,
        dropout: float = 0.0,
        weight_of: Callable[[str], Tensor] | None = None,
        start: bool = True,
    ) -> None:
        super().__init__()
        self.sites = dict(sites)
        self.dropout = dropout
        # Dropout has its own seeds, so that a run is repeatable whatever else draws random numbers.
        self._seed = int(torch.randint(1 << 40, ()))
        self._draws = 0
        self._weight_of = weight_of
        a = [torch.empty(site.rank, site.inputs) for site in self.sites.values()]
        b = [torch.empty(site.outputs, site.rank) for site in self.sites.values()]
        if start:
            for matrix in a:
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
            for matrix in b:
                matrix.zero_()
        self.a, self.b = nn.ParameterList(a), nn.ParameterList(b)
        self.magnitude = nn.ParameterList(
            [weight_of(name).float().norm(dim=1).cpu() for name in self.sites] if weight_of else []
        )

    @property
    def names(self) -> list[str]:
        """The full names of the linear layers with a delta."""
        return list(self.sites)

    @property
    def dora(self) -> bool:
        """Whether magnitudes are learned."""
        return self._weight_of is not None

    @property
    def drawn(self) -> tuple[int, int]:
        """The state of dropout: its seed and the number of draws."""
        return self._seed, self._draws

    @drawn.setter
    def drawn(self, value: tuple[int, int]) -> None:
        self._seed, self._draws = value

    def deltas(self) -> dict[str, LowRank]:
        """The deltas by full name of their linear layer."""
        dropout = self.dropout if self.training else 0.0
        self._draws += bool(dropout)
        first = self._seed + self._draws * len(self.sites)
        return {
            name: LowRank(a, b, site.scale, dropout, first + at, self._factor(at, name))
            for at, ((name, site), a, b) in enumerate(
                zip(self.sites.items(), self.a, self.b, strict=True)
            )
        }

    def _factor(self, at: int, name: str) -> Tensor | None:
        """DoRA's factor for each output, m / |W + s b a| (eq. 5); None without DoRA.

        The norm is treated as a constant in the backward pass (section 4.3).
        """
        if self._weight_of is None:
            return None
        a, b = self.a[at].detach(), self.b[at].detach()
        weight = self._weight_of(name).to(a.device, a.dtype)
        merged = torch.addmm(weight, b, a, alpha=self.sites[name].scale)
        factor: Tensor = self.magnitude[at] / merged.norm(dim=1)
        return factor


def sites(shape: ModelShape, options: LoraOptions) -> dict[str, Site]:
    """The linear layers that get a delta.

    Raises UsageError if there are none, or if a pattern is not a regular expression or matches no layer.
    """
    selected = targets(shape, options.target, options.layers)
    ranks = _matched("rank_pattern", options.rank_pattern or {}, selected)
    alphas = _matched("alpha_pattern", options.alpha_pattern or {}, selected)
    site_of = {}
    for name, (inputs, outputs) in selected.items():
        rank = int(ranks.get(name, options.rank))
        site_of[name] = Site(
            inputs,
            outputs,
            rank,
            scale_of(alphas.get(name, options.alpha), rank, rslora=options.use_rslora),
        )
    return site_of


def scale_of(alpha: float, rank: int, *, rslora: bool) -> float:
    """The scale of a delta: alpha / rank, or alpha / sqrt(rank) (rsLoRA, eq. 9)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def matches(pattern: str, name: str) -> bool:
    """Whether the regular expression `pattern` matches a layer's full name, or the end of it after a
    dot (as PEFT's patterns do).
    """
    return re.fullmatch(name_pattern(pattern), name) is not None


def name_pattern(pattern: str) -> str:
    """The regular expression for full names that `matches` uses for a pattern."""
    return rf"(.*\.)?({pattern})"


def _matched(
    option: str, patterns: Mapping[str, float], names: Mapping[str, object]
) -> dict[str, float]:
    """The value of the first pattern that matches, for each name that one matches."""
    values: dict[str, float] = {}
    for pattern, value in patterns.items():
        try:
            matching = [name for name in names if matches(pattern, name)]
        except re.error as error:
            raise _bad_pattern(option, pattern, str(error)) from error
        if not matching:
            raise _bad_pattern(option, pattern, say("it matches no layer", "没有匹配任何层"))
        if value < 1 and option == "rank_pattern":
            raise _bad_pattern(option, pattern, say(f"its rank is {value}", f"秩为 {value}"))
        values = dict.fromkeys(matching, value) | values
    return values


def _bad_pattern(option: str, pattern: str, reason: str) -> UsageError:
    return UsageError(
        say(f"{option} {pattern!r}: {reason}.", f"{option} {pattern!r}：{reason}。"),
        say(
            "Give the end of a layer's name, such as q_proj, or a regular expression.",
            "请给出层名的结尾（如 q_proj）或匹配它的正则表达式。",
        ),
    )


def targets(shape: ModelShape, target: str, layers: str = "all") -> dict[str, tuple[int, int]]:
    """The linear layers that `target` and `layers` select, with (inputs, outputs).

    Raises UsageError if they select none.
    """
    if target == "all-linear":
        selected = shape.linears
    elif target == "attention":
        selected = {
            name: size
            for name, size in shape.linears.items()
            if "attn" in name or "attention" in name
        }
    elif target.startswith("re:"):
        try:
            expression = re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise _bad_pattern("target", target, str(error)) from error
        selected = {n: size for n, size in shape.linears.items() if expression.fullmatch(n)}
    else:
        requested = {part.strip() for part in target.split(",")}
        valid = {name.rsplit(".", 1)[-1] for name in shape.linears}
        if missing := requested - valid:
            raise UsageError(
                say(
                    f"No linear layer is named {', '.join(sorted(missing))!r}.",
                    f"没有名为 {', '.join(sorted(missing))!r} 的线性层。",
                ),
                say(
                    f"Valid targets: attention, all-linear, {', '.join(sorted(valid))}, or re: "
                    "followed by a regular expression for full names.",
                    f"可用：attention、all-linear、{'、'.join(sorted(valid))}，"
                    "或 re: 加匹配完整层名的正则表达式。",
                ),
            )
        selected = {n: s for n, s in shape.linears.items() if n.rsplit(".", 1)[-1] in requested}
    indices = set(chosen_layers(layers, shape.layers))
    selected = {name: size for name, size in selected.items() if layer_of(name) in indices}
    if not selected:
        raise UsageError(
            say(
                f"target={target} with layers={layers} selects no linear layer of this base.",
                f"target={target}、layers={layers} 没有选中该基座的任何线性层。",
            ),
            say("Choose another target, or another method.", "请选择其他 target 或其他方法。"),
        )
    return selected


def layer_of(name: str) -> int:
    """The index of the decoder layer that a linear layer belongs to, from its full name."""
    number = re.search(r"\.(\d+)\.", name)
    assert number is not None
    return int(number[1])


def chosen_layers(layers: str, count: int) -> list[int]:
    """The decoder layers that `all`, `top:K`, `bottom:K` or `0,2,5-9` select of `count`, in order.

    Raises UsageError for anything else, and for layers that do not exist.
    """
    indices = list(range(count))
    if layers == "all":
        return indices
    side = re.fullmatch(r"(top|bottom):([1-9][0-9]{0,5})", layers)
    if side and int(side[2]) <= count:
        return indices[-int(side[2]) :] if side[1] == "top" else indices[: int(side[2])]
    ranges = re.fullmatch(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*", layers.replace(" ", ""))
    if ranges and not side:
        picked: set[int] = set()
        for part in layers.replace(" ", "").split(","):
            first, _, last = part.partition("-")
            picked |= set(range(int(first), int(last or first) + 1))
        if picked and max(picked) < count:
            return sorted(picked)
    raise UsageError(
        say(
            f"layers={layers} is not valid for this base, which has {count} decoder layers.",
            f"layers={layers} 无效：该基座有 {count} 层解码层。",
        ),
        say(
            f"Write all, top:{count // 3 or 1}, bottom:{count // 3 or 1}, or numbers from 0 to "
            f"{count - 1} like 0,2,5-9.",
            f"请写 all、top:{count // 3 or 1}、bottom:{count // 3 or 1}，"
            f"或 0 到 {count - 1} 的编号，如 0,2,5-9。",
        ),
    )
