"""Generation for a mixed batch: every sequence with its own task, admitted and leaving freely."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from onebase.adapters.contribution import NOTHING, Contribution
from onebase.engine.attention import PackedAttention
from onebase.engine.kv_cache import KVCache
from onebase.engine.deltas import Deltas, Stacks
from onebase.engine.forward import Pass, linears, run, run_pack
from onebase.engine.pack import Pack
from onebase.engine.sampling import Sampling, choose
from onebase.model.base import Base

FinishReason = Literal["stop", "length"]
PREFILL_TOKENS = 1024


@dataclass(eq=False)
class Stream:
    """One request on its way: the prompt's tokens, then the answer's as they come.

    `adapter` is None for the bare base. `margins` holds, for greedy requests, the distance
    between the two best logits at every token. `ended_by` is the end token that was drawn, which
    is not among `tokens`. Where it is `measured`, `logprobs` and `entropies` (nats) are those of every
    draw, that of the end token too, at the sampling's temperature and before anything is cut off.
    """

    adapter: str | None
    prompt: tuple[int, ...]
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    ended_by: int | None = None
    generator: torch.Generator | None = None
    measured: bool = False
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


class Batch:
    """The running batch. `step` adds a token to every sequence in it and lets the finished go."""

    def __init__(
        self,
        base: Base,
        contributions: Mapping[str, Contribution],
        *,
        slots: int = 64,
        ends: frozenset[int] | None = None,
    ) -> None:
        self._base = base
        self._contributions = contributions
        self._cache = KVCache(base.shape, slots, base.device, base.embedding.weight.dtype)
        self._waiting: deque[Stream] = deque()
        self._running: list[Stream] = []
        self._ends = end_tokens(base) if ends is None else ends
        self._end_ids = torch.tensor(sorted(self._ends), device=base.device)
        self._deltas: Deltas | None = None

    def submit(self, sequence: Stream) -> None:
        """Queue a sequence; it is admitted when a slot is free."""
        if sequence.sampling.seed is not None:
            sequence.generator = torch.Generator().manual_seed(sequence.sampling.seed)
        self._waiting.append(sequence)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._running and not self._waiting

    def step(self) -> list[Stream]:
        """Admit what fits, add a token everywhere, return the sequences that finished."""
        with torch.inference_mode():
            finished = self._admit()
            if self._running:
                finished += self._extend(self._decode())
        return finished

    def _admit(self) -> list[Stream]:
        finished: list[Stream] = []
        while self._waiting and len(self._running) < self._cache.slots:
            group: list[Stream] = []
            room = self._cache.slots - len(self._running)
            tokens = 0
            while self._waiting and len(group) < room:
                tokens += len(self._waiting[0].prompt)
                if group and tokens > PREFILL_TOKENS:
                    break
                group.append(self._waiting.popleft())
            logits = self._prefill(group)
            self._running += group
            finished += self._extend(logits, first=len(self._running) - len(group))
        return finished

    def _prefill(self, group: Sequence[Stream]) -> Tensor:
        """Read the prompts in one pack and fill their slots; logits after each, [group, vocab]."""
        pack = Pack(self._contributions)
        nodes = [pack.add(sequence.adapter, sequence.prompt) for sequence in group]
        attention = PackedAttention(pack, self._base.device)
        captured = attention.capture()
        last = torch.tensor([pack.nodes[n].start + pack.nodes[n].length - 1 for n in nodes])
        logits = run_pack(self._base, pack, last, attention=attention)
        keys = torch.stack([captured[layer][0] for layer in sorted(captured)]).transpose(1, 2)
        values = torch.stack([captured[layer][1] for layer in sorted(captured)]).transpose(1, 2)
        for index, sequence in zip(nodes, group, strict=True):
            node = pack.nodes[index]
            rows = slice(node.start, node.start + node.length)
            own = (keys[:, :, rows], values[:, :, rows])
            brought = NOTHING if sequence.adapter is None else self._contributions[sequence.adapter]
            if brought.prefix is not None:
                own = (
                    torch.cat([brought.prefix[0].to(own[0].dtype), own[0]], 2),
                    torch.cat([brought.prefix[1].to(own[1].dtype), own[1]], 2),
                )
            self._cache.admit(*own, brought.unseen)
        self._deltas = None
        return logits

    def _decode(self) -> Tensor:
        positions = torch.tensor(self._cache.lengths)
        attention = self._cache.step()
        newest = torch.tensor([s.tokens[-1] for s in self._running], device=self._base.device)
        if self._deltas is None:
            self._deltas = self._deltas_of_batch()
        keep = torch.arange(len(self._running))
        now = Pass(attention, self._deltas, decoding=True)
        return run(self._base, self._base.embedding(newest), positions, now, keep)

    def _deltas_of_batch(self) -> Deltas | None:
        names = list(dict.fromkeys(s.adapter for s in self._running if s.adapter is not None))
        stacks = Stacks(self._contributions, names)
        order = {name: index for index, name in enumerate(names)}
        owners = [-1 if s.adapter is None else order[s.adapter] for s in self._running]
        whose = torch.tensor(owners, device=self._base.device)
        return Deltas(stacks, whose, linears(self._base), decoding=True) if stacks else None

    def _extend(self, logits: Tensor, first: int = 0) -> list[Stream]:
        """Give every sequence from `first` on its next token; release the finished."""
        finished = []
        best = logits.topk(2, dim=-1)
        margins = (best.values[:, 0] - best.values[:, 1]).tolist()
        greedy = best.indices[:, 0].tolist()
        drawn = []
        for row, sequence in enumerate(self._running[first:]):
            token = greedy[row]
            early = len(sequence.tokens) < sequence.sampling.min_tokens
            if sequence.sampling.temperature > 0 or (early and token in self._ends):
                own = logits[row]
                if early:
                    own = own.index_fill(0, self._end_ids, float("-inf"))
                token = choose(own, sequence.sampling, sequence.generator)
            sequence.margins.append(margins[row])
            drawn.append(token)
            self._take(sequence, token)
            if sequence.finish_reason is not None:
                finished.append(sequence)
        _measure(self._running[first:], logits, drawn)
        for sequence in finished:
            slot = self._running.index(sequence)
            self._cache.release(slot)
            last = self._running.pop()
            if last is not sequence:
                self._running[slot] = last
            self._deltas = None
        return finished

    def _take(self, sequence: Stream, token: int) -> None:
        if token in self._ends:
            sequence.finish_reason = "stop"
            sequence.ended_by = token
            return
        sequence.tokens.append(token)
        sequence.text = self._base.tokenizer.decode(sequence.tokens, skip_special_tokens=True)
        found = [at for stop in sequence.sampling.stop if (at := sequence.text.find(stop)) >= 0]
        if found:
            sequence.text = sequence.text[: min(found)]
            sequence.finish_reason = "stop"
            return
        if len(sequence.tokens) >= sequence.sampling.max_tokens:
            sequence.finish_reason = "length"


def _measure(streams: Sequence[Stream], logits: Tensor, drawn: Sequence[int]) -> None:
    """Note what was drawn from `logits`, [streams, vocabulary], for the streams that are measured."""
    rows = [row for row, stream in enumerate(streams) if stream.measured]
    if not rows:
        return
    heat = [streams[row].sampling.temperature or 1.0 for row in rows]
    own = logits[rows].float() / torch.tensor(heat, device=logits.device)[:, None]
    logprobs = own.log_softmax(-1)
    tokens = torch.tensor([drawn[row] for row in rows], device=logits.device)
    entropies = torch.special.entr(logprobs.exp()).sum(-1).tolist()
    for row, logprob, entropy in zip(
        rows, logprobs.gather(1, tokens[:, None])[:, 0].tolist(), entropies, strict=True
    ):
        streams[row].logprobs.append(logprob)
        streams[row].entropies.append(entropy)


def end_tokens(base: Base) -> set[int]:
    """The tokens that end an answer: the tokenizer's and the generation config's."""
    ends = {base.tokenizer.eos_token_id}
    config = getattr(base.model, "generation_config", None)
    extra = getattr(config, "eos_token_id", None)
    ends |= set(extra) if isinstance(extra, list) else {extra}
    return {token for token in ends if token is not None}
