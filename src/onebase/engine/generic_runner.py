"""The runner over the transformers modules: for every model type, precision and device.

Prefill runs in packs. All sequences whose prompt is computed take part in one batched decoding step. A
prompt that is computed in parts treats the keys and values of its computed part as a KV prefix.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onebase.adapters.contribution import NOTHING, Contribution
from onebase.engine.attention import PackedAttention
from onebase.engine.deltas import Deltas, Stacks
from onebase.engine.forward import Pass, linears, node_kv, run, run_pack
from onebase.engine.kv_cache import KVCache
from onebase.engine.pack import Pack
from onebase.engine.pool import LoadedTask
from onebase.engine.prompt_kv import KeysValues, appended
from onebase.engine.request import Chunk, Request
from onebase.model.base import Base


class GenericRunner:
    """A Runner for up to `slots` requests at once."""

    def __init__(self, base: Base, *, slots: int = 64) -> None:
        self.base = base
        self.kernel = f"transformers {base.precision.text} {base.device.type}"
        self._cache = KVCache(base.shape, slots, base.device, base.embedding.weight.dtype)
        # Requests whose prompt is not fully computed, with the keys and values of the computed part.
        self._prefilling: dict[Request, KeysValues | None] = {}
        self._decoding: list[Request] = []  # the others, in the order of their slots
        self._deltas: Deltas | None = None

    def check(self, contribution: Contribution) -> None:
        """As Runner.check; every contribution can be applied."""

    def can_admit(self, request: Request) -> bool:
        """Whether a slot is free."""
        return len(self._prefilling) + len(self._decoding) < self._cache.slots

    def admit(self, request: Request) -> None:
        """As Runner.admit; nothing is reused."""
        self._prefilling[request] = None

    def expect(self, chunk: Chunk) -> None:
        """As Runner.expect; nothing is shared."""

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """As Runner.run. Either all decoding requests have a chunk, or none of them."""
        prefill = [chunk for chunk in chunks if chunk.request in self._prefilling]
        decoding = [chunk for chunk in chunks if chunk.request not in self._prefilling]
        with torch.inference_mode():
            # Decoding first: a request whose prefill ends joins the decoding batch.
            logits = self._decode(decoding) if decoding else []
            logits += self._prefill(prefill) if prefill else []
            logits_of = dict(zip((*decoding, *prefill), logits, strict=True))
            return torch.cat([logits_of[chunk] for chunk in chunks]).float()

    def release(self, request: Request) -> None:
        """As Runner.release."""
        if request in self._prefilling:
            del self._prefilling[request]
            return
        if request not in self._decoding:
            return  # the step that should have added it failed
        slot = self._decoding.index(request)
        with torch.inference_mode():
            self._cache.release(slot)
        last = self._decoding.pop()
        if last is not request:
            self._decoding[slot] = last
        self._deltas = None

    def compute_prompt_kv(self, contribution: Contribution) -> KeysValues:
        """As Runner.compile."""
        assert contribution.virtual is not None
        pack = Pack({"adapter": replace(contribution, virtual=contribution.virtual.detach())})
        node = pack.virtual_node("adapter")
        assert node is not None
        return node_kv(self.base, pack, node)

    def forget(self, task: LoadedTask) -> None:
        """As Runner.forget; nothing is cached beyond its requests."""

    def stats(self) -> dict[str, int]:
        """As Runner.stats."""
        partial = [part for part in tuple(self._prefilling.values()) if part is not None]
        return {
            "cache_tokens": sum(self._cache.lengths) + sum(keys.shape[2] for keys, _ in partial),
            "cache_capacity": self._cache.capacity,
            "cache_bytes": self._cache.bytes + sum(2 * keys.nbytes for keys, _ in partial),
        }

    def _prefill(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Compute parts of prompts in one pack; their logits, each [chunk.logits, vocabulary]."""
        contributions: dict[str, Contribution] = {}
        names = [self._add_contribution(chunk.request, contributions) for chunk in chunks]
        pack = Pack(contributions)
        nodes = [
            pack.nodes[pack.add(name, chunk.ids)] for name, chunk in zip(names, chunks, strict=True)
        ]
        attention = PackedAttention(pack, self.base.device)
        captured = attention.capture()
        ends = [node.start + node.length for node in nodes]
        logit_rows = [
            torch.arange(end - chunk.logits, end) for end, chunk in zip(ends, chunks, strict=True)
        ]
        logits = run_pack(self.base, pack, torch.cat(logit_rows), attention=attention)
        keys, values = (
            torch.stack([captured[layer][part] for layer in sorted(captured)]).transpose(1, 2)
            for part in (0, 1)
        )
        for chunk, node in zip(chunks, nodes, strict=True):
            rows = slice(node.start, node.start + node.length)
            self._store(chunk, (keys[:, :, rows], values[:, :, rows]))
        return list(torch.split(logits, [chunk.logits for chunk in chunks]))

    def _add_contribution(
        self, request: Request, contributions: dict[str, Contribution]
    ) -> str | None:
        """Add the contribution of a request to those of a pack, with the computed part of its prompt
        as prefix; returns its name there.
        """
        contribution, computed = request.contribution, self._prefilling[request]
        if computed is None and contribution is NOTHING:
            return None
        name = str(id(contribution))
        if computed is not None:
            name = f"{name} {id(request)}"
            contribution = replace(contribution, prefix=computed)
        contributions[name] = contribution
        return name

    def _store(self, chunk: Chunk, chunk_kv: KeysValues) -> None:
        """Append the keys and values of `chunk` to the request's. When the prompt is complete, they
        move to a slot of the cache.
        """
        request = chunk.request
        prefix = self._prefilling[request] or request.contribution.prefix
        keys, values = appended(prefix, chunk_kv)
        if request.computed + chunk.length < len(request.prompt):
            # Copies: views would keep the whole pack in memory.
            self._prefilling[request] = (keys.contiguous(), values.contiguous())
            return
        self._cache.admit(keys, values, request.contribution.masked_prefix)
        del self._prefilling[request]
        self._decoding.append(request)
        self._deltas = None

    def _decode(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """The logits after each request's newest token, each [1, vocabulary]."""
        assert len(chunks) == len(self._decoding), "a sequence is left out"
        positions = torch.tensor(self._cache.lengths)
        attention = self._cache.step()
        newest = torch.tensor([request.tokens[-1] for request in self._decoding])
        if self._deltas is None:
            self._deltas = self._deltas_of_batch()
        context = Pass(attention, self._deltas, decoding=True)
        embedded = self.base.embedding(newest.to(self.base.device))
        logits = run(self.base, embedded, positions, context, torch.arange(len(newest)))
        rows = dict(zip(self._decoding, torch.split(logits, 1), strict=True))
        return [rows[chunk.request] for chunk in chunks]

    def _deltas_of_batch(self) -> Deltas | None:
        contributions: dict[str, Contribution] = {}
        names = []
        for request in self._decoding:
            name = str(id(request.contribution))
            if request.contribution is not NOTHING:
                contributions[name] = request.contribution
            names.append(name)
        index_of = {name: index for index, name in enumerate(contributions)}
        stacks = Stacks(contributions, list(contributions))
        if not stacks:
            return None
        owners = torch.tensor([index_of.get(name, -1) for name in names], device=self.base.device)
        return Deltas(stacks, owners, linears(self.base), decoding=True)
