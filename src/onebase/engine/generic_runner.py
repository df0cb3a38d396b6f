"""The pass over the transformers modules: for every family, precision and device.

Prompts are read in packs, and every sequence whose prompt is read takes part in a batched decoding
step. The rest of a prompt that was begun stands behind what is computed of it as behind a prefix.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onebase.adapters.contribution import NOTHING, Contribution
from onebase.engine.attention import PackedAttention
from onebase.engine.deltas import Deltas, Stacks
from onebase.engine.forward import Pass, compile_virtual, linears, run, run_pack
from onebase.engine.kv_cache import KVCache
from onebase.engine.pack import Pack
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Chunk, Request
from onebase.model.base import Base

KeysValues = tuple[Tensor, Tensor]


class GenericRunner:
    """As Runner. Up to `slots` requests at once."""

    def __init__(self, base: Base, *, slots: int = 64) -> None:
        self.base = base
        self.kernel = f"transformers {base.precision.text} {base.device.type}"
        self._cache = KVCache(base.shape, slots, base.device, base.embedding.weight.dtype)
        self._begun: dict[Request, KeysValues | None] = {}  # prompts that are not read yet
        self._decoding: list[Request] = []  # the others, in the order of their slots
        self._deltas: Deltas | None = None

    def check(self, contribution: Contribution) -> None:
        """As Runner.check: every contribution can be applied."""

    def can_admit(self, request: Request) -> bool:
        """Whether a slot is free."""
        return len(self._begun) + len(self._decoding) < self._cache.slots

    def admit(self, request: Request) -> None:
        """As Runner.admit; nothing is reused."""
        self._begun[request] = None

    def expect(self, chunk: Chunk) -> None:
        """As Runner.expect; nothing is shared."""

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """As Runner.run. Either all requests whose prompts are read have a chunk, or none has."""
        reading = [chunk for chunk in chunks if chunk.request in self._begun]
        decoding = [chunk for chunk in chunks if chunk.request not in self._begun]
        with torch.inference_mode():
            # Decoding first: whoever reads the end of a prompt joins the batch.
            parts = self._decode(decoding) if decoding else []
            parts += self._read(reading) if reading else []
            found = dict(zip((*decoding, *reading), parts, strict=True))
            return torch.cat([found[chunk] for chunk in chunks]).float()

    def release(self, request: Request) -> None:
        """As Runner.release."""
        if request in self._begun:
            del self._begun[request]
            return
        if request not in self._decoding:
            return  # the step that was to put it there failed
        slot = self._decoding.index(request)
        with torch.inference_mode():
            self._cache.release(slot)
        last = self._decoding.pop()
        if last is not request:
            self._decoding[slot] = last
        self._deltas = None

    def compile(self, contribution: Contribution) -> KeysValues:
        """As Runner.compile."""
        assert contribution.virtual is not None
        pack = Pack({"adapter": replace(contribution, virtual=contribution.virtual.detach())})
        node = pack.virtual_node("adapter")
        assert node is not None
        return compile_virtual(self.base, pack, node)

    def forget(self, task: LoadedTask) -> None:
        """As Runner.forget: nothing outlives its requests."""

    def stats(self) -> dict[str, int]:
        """As Runner.stats."""
        begun = [part for part in tuple(self._begun.values()) if part is not None]
        return {
            "cache_tokens": sum(self._cache.lengths) + sum(keys.shape[2] for keys, _ in begun),
            "cache_capacity": self._cache.capacity,
            "cache_bytes": self._cache.bytes + sum(2 * keys.nbytes for keys, _ in begun),
        }

    def _read(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Compute parts of prompts in one pack; their logits, each [chunk.logits, vocabulary]."""
        contributions: dict[str, Contribution] = {}
        names = [self._reads_behind(chunk.request, contributions) for chunk in chunks]
        pack = Pack(contributions)
        added = [pack.add(name, chunk.ids) for name, chunk in zip(names, chunks, strict=True)]
        nodes = [pack.nodes[index] for index in added]
        attention = PackedAttention(pack, self.base.device)
        captured = attention.capture()
        ends = [node.start + node.length for node in nodes]
        kept = [
            torch.arange(end - chunk.logits, end) for end, chunk in zip(ends, chunks, strict=True)
        ]
        logits = run_pack(self.base, pack, torch.cat(kept), attention=attention)
        keys, values = (
            torch.stack([captured[layer][part] for layer in sorted(captured)]).transpose(1, 2)
            for part in (0, 1)
        )
        for chunk, node in zip(chunks, nodes, strict=True):
            rows = slice(node.start, node.start + node.length)
            self._keep(chunk, (keys[:, :, rows], values[:, :, rows]))
        return list(torch.split(logits, [chunk.logits for chunk in chunks]))

    def _reads_behind(self, request: Request, contributions: dict[str, Contribution]) -> str | None:
        """Put what the next part of a prompt stands behind among the pack's `contributions`; its
        name there.
        """
        contribution, before = request.contribution, self._begun[request]
        if before is None and contribution is NOTHING:
            return None
        name = str(id(contribution))
        if before is not None:
            name = f"{name} {id(request)}"
            contribution = replace(contribution, prefix=before)
        contributions[name] = contribution
        return name

    def _keep(self, chunk: Chunk, part: KeysValues) -> None:
        """Put the keys and values of `chunk` behind those before it: in a slot where the prompt is
        read now.
        """
        request = chunk.request
        prefix = self._begun[request] or request.contribution.prefix
        if prefix is not None:
            keys, values = (
                torch.cat([before.to(own.dtype), own], 2)
                for before, own in zip(prefix, part, strict=True)
            )
        else:
            keys, values = part
        if request.computed + chunk.length < len(request.prompt):
            self._begun[request] = (keys.contiguous(), values.contiguous())  # not the whole pack's
            return
        self._cache.admit(keys, values, request.contribution.masked_prefix)
        del self._begun[request]
        self._decoding.append(request)
        self._deltas = None

    def _decode(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """The logits behind each request's newest token, each [1, vocabulary]."""
        assert len(chunks) == len(self._decoding), "a sequence is left out"
        positions = torch.tensor(self._cache.lengths)
        attention = self._cache.step()
        newest = torch.tensor([request.tokens[-1] for request in self._decoding])
        if self._deltas is None:
            self._deltas = self._deltas_of_batch()
        now = Pass(attention, self._deltas, decoding=True)
        embedded = self.base.embedding(newest.to(self.base.device))
        logits = run(self.base, embedded, positions, now, torch.arange(len(newest)))
        rows = dict(zip(self._decoding, torch.split(logits, 1), strict=True))
        return [rows[chunk.request] for chunk in chunks]

    def _deltas_of_batch(self) -> Deltas | None:
        contributions: dict[str, Contribution] = {}
        owners = []
        for request in self._decoding:
            name = str(id(request.contribution))
            if request.contribution is not NOTHING:
                contributions[name] = request.contribution
            owners.append(name)
        order = {name: index for index, name in enumerate(contributions)}
        stacks = Stacks(contributions, list(contributions))
        if not stacks:
            return None
        whose = torch.tensor([order.get(name, -1) for name in owners], device=self.base.device)
        return Deltas(stacks, whose, linears(self.base), decoding=True)
