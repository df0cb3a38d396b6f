"""The lean runner: a base's own weights in compiled kernels, one call per step."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebase.adapters.contribution import NOTHING, Contribution
from onebase.engine.forward import TESTED_TYPES
from onebase.engine.lean import plan, step
from onebase.engine.lean.adapter import LeanAdapter, check_inputs, unpacked
from onebase.engine.lean.blocks import Block, BlockPool, BlockTable
from onebase.engine.lean.buffers import StepBuffers
from onebase.engine.lean.team import Team
from onebase.engine.lean.vector import AVX2, AVX512, BLOCK
from onebase.engine.lean.weights import LeanWeights, unsupported_feature
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Chunk, Request
from onebase.model.base import Base

_VERSION = 1  # increased when the numbers change
_CACHE_SHARE = 0.25  # of the available memory
_MAX_ROWS = 256  # per pass through the layers; more are no faster


def supports(base: Base) -> bool:
    """Whether LeanRunner runs this base: a tested model type on a CPU, in fp32 or w8a8."""
    return (
        base.device.type == "cpu"
        and base.precision.name in ("fp32", "w8a8")
        and base.model.config.model_type in TESTED_TYPES
        and unsupported_feature(base) is None
    )


def kernel_name(precision: str) -> str:
    """The Runner.kernel of LeanRunner in a precision on this processor."""
    features = "avx512" if AVX512 else "avx2" if AVX2 else "generic"
    return f"lean {precision} {features} {_VERSION}"


@dataclass(eq=False)
class _Sequence:
    """One sequence: its adapter's tables and placed virtual tokens, and its blocks."""

    adapter: LeanAdapter | None
    placed: Tensor | None
    table: BlockTable


@dataclass(frozen=True)
class _Work:
    """Tokens of one sequence from index `start` on, as ids or as embeddings [tokens, hidden]. Logits are
    computed for the last `logits` of them.
    """

    sequence: _Sequence
    start: int
    ids: Sequence[int]
    logits: int
    embeddings: Tensor | None = None


class LeanRunner:
    """A Runner with compiled kernels. A step uses `threads` threads, torch's number by default; the KV cache
    takes at most `cache_bytes`.

    A row's logits depend only on its own sequence, bit for bit: not on the batch, the threads, or how a
    prompt is split.
    """

    def __init__(
        self, base: Base, *, threads: int | None = None, cache_bytes: int | None = None
    ) -> None:
        self.base = base
        self.weights = LeanWeights(base)
        model = self.weights.model
        self.kernel = kernel_name(base.precision.name)
        block_bytes = 8 * BLOCK * model.kv_heads * model.head_width * len(model.layers)
        if cache_bytes is None:
            cache_bytes = int(_CACHE_SHARE * psutil.virtual_memory().available)
        self._pool = BlockPool(BLOCK, block_bytes, max(1, cache_bytes // block_bytes))
        self._team = Team(threads or torch.get_num_threads(), step.phases(len(model.layers)))
        self._buffers = StepBuffers(model, self._team.threads)
        self._sequences: dict[Request, _Sequence] = {}
        self._adapters: dict[tuple[LoadedTask, ...], LeanAdapter] = {}
        self._roots: dict[tuple[LoadedTask, ...], bytes] = {}
        self._unnamed = count()
        self._expected: list[Block] = []  # registered; the next run fills them

    def check(self, contribution: Contribution) -> None:
        """As Runner.check."""
        check_inputs(contribution)

    def can_admit(self, request: Request) -> bool:
        """Whether the KV cache has room for all of its tokens now."""
        return not self._sequences or self._pool.has_room(request.max_length)

    def admit(self, request: Request) -> None:
        """As Runner.admit; reuses the cached blocks of its prompt."""
        contribution = request.contribution
        adapter = self._adapter(request.tasks, contribution)
        table = self._pool.open(
            self._root(request.tasks), request.prompt, request.max_length, request.reusable
        )
        request.computed = len(table.blocks) * BLOCK
        self._sequences[request] = _Sequence(adapter, contribution.placed, table)

    def release(self, request: Request) -> None:
        """Free its blocks. Full ones stay cached until their memory is needed."""
        if self._expected:  # a step failed
            self._pool.unregister(self._expected)
            self._expected = []
        sequence = self._sequences.pop(request, None)
        if sequence is not None:
            self._pool.close(sequence.table)

    def forget(self, task: LoadedTask) -> None:
        """Free the tables of a task's adapters."""
        for tasks in [tasks for tasks in self._roots if task in tasks]:
            self._adapters.pop(tasks, None)
            del self._roots[tasks]

    def expect(self, chunk: Chunk) -> None:
        """Register the blocks that a chunk of the next run will fill. In each layer of a pass, keys and
        values are written before any row attends to them, so other chunks of that run may use them.
        """
        table = self._sequences[chunk.request].table
        end = chunk.request.computed + chunk.length
        self._pool.extend(table, end)
        start = len(table.keys) * BLOCK
        if end - start >= BLOCK:
            ids = chunk.request.ids_between(start, end)
            self._expected += self._pool.register(table, ids, start)

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """As Runner.run."""
        works = []
        for chunk in chunks:
            sequence = self._sequences[chunk.request]
            self.expect(chunk)
            works.append(_Work(sequence, chunk.request.computed, chunk.ids, chunk.logits))
        logits = self._forward(works)
        self._expected = []
        return torch.from_numpy(logits)

    def compute_prompt_kv(self, contribution: Contribution) -> tuple[Tensor, Tensor]:
        """As Runner.compute_prompt_kv."""
        virtual = contribution.virtual
        assert virtual is not None, "there are no leading virtual tokens"
        model, tokens = self.weights.model, len(virtual)
        adapter = LeanAdapter(model, contribution, half=self.weights.quantized)
        table = self._pool.open(b"", (), tokens, 0)
        self._pool.extend(table, tokens)
        sequence = _Sequence(adapter, None, table)
        self._forward([_Work(sequence, 0, (0,) * tokens, 0, virtual.detach().float())])
        shape = (len(model.layers), 2, model.kv_heads, BLOCK * model.head_width)
        blocks = [unpacked(self._pool.read(block, shape), model) for block in table.blocks]
        keys, values = (
            torch.from_numpy(np.concatenate(parts, axis=2)[:, :, :tokens].copy())
            for parts in zip(*blocks, strict=True)
        )
        self._pool.close(table)
        return keys, values

    def stats(self) -> dict[str, int]:
        """As Runner.stats."""
        # A copy: another thread may change the dictionary.
        adapters = tuple(self._adapters.values())
        return {
            "cache_tokens": self._pool.used * BLOCK,
            "cache_tokens_kept": self._pool.cached * BLOCK,
            "cache_capacity": self._pool.capacity * BLOCK,
            "cache_bytes": self._pool.allocated,
            "adapter_bytes": sum(adapter.bytes for adapter in adapters),
            "weight_bytes": self.base.bytes,
        }

    def _adapter(
        self, tasks: tuple[LoadedTask, ...], contribution: Contribution
    ) -> LeanAdapter | None:
        if not (contribution.deltas or contribution.scalings or contribution.prefix):
            return None
        if tasks not in self._adapters:
            half = self.weights.quantized
            self._adapters[tasks] = LeanAdapter(self.weights.model, contribution, half=half)
        return self._adapters[tasks]

    def _root(self, tasks: tuple[LoadedTask, ...]) -> bytes:
        """The identity of a request's adapters, on which the reuse of keys and values depends."""
        if tasks not in self._roots:
            names = [
                task.hash
                if task.hash or task.contribution is NOTHING
                else f"-{next(self._unnamed)}"
                for task in tasks
            ]
            self._roots[tasks] = hashlib.sha256("\n".join(names).encode()).digest()
        return self._roots[tasks]

    def _forward(self, works: Sequence[_Work]) -> NDArray[np.float32]:
        """The logits of `works`, in passes of at most _MAX_ROWS rows."""
        rows = sum(work.logits for work in works)
        logits = np.empty((rows, self.weights.model.vocabulary), np.float32)
        start = 0
        for group in _in_groups(works, _MAX_ROWS):
            count = sum(work.logits for work in group)
            self._step(group, logits[start : start + count])
            start += count
        return logits

    def _step(self, works: Sequence[_Work], logits: NDArray[np.float32]) -> None:
        """Run one pass over `works`, which writes `logits`."""
        rows: list[tuple[int, ...]] = []
        entries: list[tuple[int, int]] = []
        keep: list[int] = []
        starts = [0]
        adapters: dict[int, LeanAdapter] = {}
        numbers: dict[int, int] = {}  # of adapters, by id
        keys = ranks = 0
        for sequence, work in enumerate(works):
            adapter, table = work.sequence.adapter, work.sequence.table
            number, prefix = -1, 0
            if adapter is not None:
                number = numbers.setdefault(id(adapter), len(numbers))
                adapters[number] = adapter
                prefix = adapter.prefix_tokens
                entries += adapter.prefix
                ranks = max(ranks, adapter.ranks)
            entries += [(block.address, BLOCK) for block in table.blocks]
            starts.append(len(entries))
            length = len(work.ids)
            keys = max(keys, prefix + work.start + length)
            keep += range(len(rows) + length - work.logits, len(rows) + length)
            for index in range(work.start, work.start + length):
                block = table.blocks[index // BLOCK].address
                rows.append((number, prefix + index, sequence, block, index % BLOCK))
        self.weights.reserve(keys)
        self._buffers.reserve(len(rows), keys, ranks)
        self._embed(works, self._buffers.hidden(len(rows)))
        model = self.weights.model
        used = list(adapters.values())
        adapter_tables = plan.Adapters(
            half=self.weights.quantized,
            deltas=_stacked([item.deltas for item in used], model, (plan.MODULES, 4), np.int64),
            scales=_stacked([item.scales for item in used], model, (plan.MODULES,), np.float32),
            inputs=_stacked([item.inputs for item in used], model, (4,), np.int64),
            masked_prefix=_stacked([item.masked_prefix for item in used], model, (), np.int64),
        )
        row_tables = plan.Rows(
            rows=np.array(rows, np.int64),
            entries=np.array(entries, np.int64).reshape(-1, 2),
            starts=np.array(starts, np.int64),
            keep=np.array(keep, np.int64),
        )
        buffers = self._buffers.table(logits)

        def run_step(thread: int, counters: int) -> None:
            step.run(thread, counters, model, adapter_tables, buffers, row_tables)

        self._team.run(run_step)

    def _embed(self, works: Sequence[_Work], hidden: NDArray[np.float32]) -> None:
        """Write the rows' embeddings to `hidden`: of tokens, of placed virtual tokens, or given ones."""
        ids = np.concatenate([np.asarray(work.ids, np.int64) for work in works])
        with torch.inference_mode():
            embedded = self.base.embedding(torch.from_numpy(np.maximum(ids, 0))).float()
            start = 0
            for work in works:
                rows = slice(start, start + len(work.ids))
                if work.embeddings is not None:
                    embedded[rows] = work.embeddings
                elif work.sequence.placed is not None:
                    row_ids = torch.from_numpy(ids[rows])
                    is_placed = row_ids < 0
                    placed = work.sequence.placed[-1 - row_ids[is_placed]]
                    embedded[rows][is_placed] = placed.to(embedded.dtype)
                start += len(work.ids)
            hidden[:] = embedded.numpy()


def _stacked(
    arrays: Sequence[NDArray[np.generic]], model: plan.Model, shape: tuple[int, ...], kind: type
) -> NDArray[np.generic]:
    if not arrays:
        return np.zeros((0, len(model.layers), *shape), kind)
    return np.stack(arrays)


def _in_groups(works: Sequence[_Work], max_rows: int) -> Iterator[list[_Work]]:
    """The works in order, in groups of at most `max_rows` rows; long ones are split."""
    group: list[_Work] = []
    free_rows = max_rows
    for work in works:
        done = 0
        while done < len(work.ids):
            length = min(free_rows, len(work.ids) - done)
            remaining = len(work.ids) - done - length  # rows of later groups
            embeddings = None if work.embeddings is None else work.embeddings[done : done + length]
            ids = work.ids[done : done + length]
            logits = max(0, min(length, work.logits - remaining))
            group.append(_Work(work.sequence, work.start + done, ids, logits, embeddings))
            done, free_rows = done + length, free_rows - length
            if free_rows == 0:
                yield group
                group, free_rows = [], max_rows
    if group:
        yield group
