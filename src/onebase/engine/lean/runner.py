"""The lean pass as a runner: requests' rows in, logits out, one call a step."""

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
from onebase.engine.lean.weights import LeanWeights, refusal
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Chunk, Request
from onebase.model.base import Base

_VERSION = 1  # raised when the numbers change
_CACHE_SHARE = 0.25  # of the memory that is free
_ROWS = 256  # at most so many in one pass through the layers: more would gain nothing


def supports(base: Base) -> bool:
    """Whether the lean pass runs this base: a proven family on a CPU, in fp32 or w8a8."""
    return (
        base.device.type == "cpu"
        and base.precision.name in ("fp32", "w8a8")
        and base.model.config.model_type in TESTED_TYPES
        and refusal(base) is None
    )


def kernel_name(precision: str) -> str:
    """As Runner.kernel, of this pass in a precision on this processor."""
    features = "avx512" if AVX512 else "avx2" if AVX2 else "generic"
    return f"lean {precision} {features} {_VERSION}"


@dataclass(eq=False)
class _Sequence:
    """What is kept of one sequence: its adapter's tables and placed tokens, and its blocks."""

    adapter: LeanAdapter | None
    placed: Tensor | None
    table: BlockTable


@dataclass(frozen=True)
class _Work:
    """Tokens of one sequence from index `start` on: ids, or embeddings [tokens, hidden]. Logits are wanted
    of the last `logits`.
    """

    sequence: _Sequence
    start: int
    ids: Sequence[int]
    logits: int
    embeddings: Tensor | None = None


class LeanRunner:
    """A base's own weights under compiled kernels. `threads` work on a step, torch's number by default;
    the KV cache holds at most `cache_bytes`.

    A row's logits depend on its own sequence alone, bit for bit: not on the batch, the threads, or how a
    prompt was cut.
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
        self._expected: list[Block] = []  # known, and filled by the next run

    def check(self, contribution: Contribution) -> None:
        """As Runner.check."""
        check_inputs(contribution)

    def can_admit(self, request: Request) -> bool:
        """Whether there is room now for all of its tokens."""
        return not self._sequences or self._pool.has_room(request.max_length)

    def admit(self, request: Request) -> None:
        """Give it a place, with what is kept of a sequence that began alike."""
        contribution = request.contribution
        adapter = self._adapter(request.tasks, contribution)
        table = self._pool.open(
            self._root(request.tasks), request.prompt, request.max_length, request.reusable
        )
        request.computed = len(table.blocks) * BLOCK
        self._sequences[request] = _Sequence(adapter, contribution.placed, table)

    def release(self, request: Request) -> None:
        """Free its blocks; full ones stay for reuse while there is room."""
        if self._expected:  # a step that failed
            self._pool.disown(self._expected)
            self._expected = []
        sequence = self._sequences.pop(request, None)
        if sequence is not None:
            self._pool.close(sequence.table)

    def forget(self, task: LoadedTask) -> None:
        """Free the tables of a task."""
        for tasks in [tasks for tasks in self._roots if task in tasks]:
            self._adapters.pop(tasks, None)
            del self._roots[tasks]

    def expect(self, chunk: Chunk) -> None:
        """Make the blocks known that a chunk of the next run will fill: in a pass keys and values are
        written, layer by layer, before any row attends.
        """
        table = self._sequences[chunk.request].table
        end = chunk.request.computed + chunk.length
        self._pool.extend(table, end)
        start = len(table.keys) * BLOCK
        if end - start >= BLOCK:
            self._expected += self._pool.note(table, chunk.request.ids_between(start, end), start)

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """The logits that the chunks want, float32 [rows wanted, vocabulary]."""
        works = []
        for chunk in chunks:
            sequence = self._sequences[chunk.request]
            self.expect(chunk)
            works.append(_Work(sequence, chunk.request.computed, chunk.ids, chunk.logits))
        logits = self._through(works)
        self._expected = []
        return torch.from_numpy(logits)

    def compute_prompt_kv(self, contribution: Contribution) -> tuple[Tensor, Tensor]:
        """Keys and values of the leading virtual tokens, each [layers, kv_heads, tokens, head]."""
        virtual = contribution.virtual
        assert virtual is not None, "nothing to compile"
        model, tokens = self.weights.model, len(virtual)
        adapter = LeanAdapter(model, contribution, half=self.weights.quantized)
        table = self._pool.open(b"", (), tokens, 0)
        self._pool.extend(table, tokens)
        sequence = _Sequence(adapter, None, table)
        self._through([_Work(sequence, 0, (0,) * tokens, 0, virtual.detach().float())])
        shape = (len(model.layers), 2, model.kv_heads, BLOCK * model.head_width)
        pieces = [unpacked(self._pool.read(block, shape), model) for block in table.blocks]
        self._pool.close(table)
        keys, values = (
            torch.from_numpy(
                np.concatenate([pair[at] for pair in pieces], axis=2)[:, :, :tokens].copy()
            )
            for at in range(2)
        )
        return keys, values

    def stats(self) -> dict[str, int]:
        """Numbers to watch, in tokens and bytes. May be asked from another thread than the runner's."""
        adapters = tuple(self._adapters.values())  # not the dictionary: it may change meanwhile
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
        """What tells the adapters of one request from others, for keys and values to be reused."""
        if tasks not in self._roots:
            names = [
                task.hash
                if task.hash or task.contribution is NOTHING
                else f"-{next(self._unnamed)}"
                for task in tasks
            ]
            self._roots[tasks] = hashlib.sha256("\n".join(names).encode()).digest()
        return self._roots[tasks]

    def _through(self, works: Sequence[_Work]) -> NDArray[np.float32]:
        wanted = sum(work.logits for work in works)
        logits = np.empty((wanted, self.weights.model.vocabulary), np.float32)
        at = 0
        for group in _in_groups(works, _ROWS):
            own = sum(work.logits for work in group)
            self._step(group, logits[at : at + own])
            at += own
        return logits

    def _step(self, works: Sequence[_Work], logits: NDArray[np.float32]) -> None:
        """Some rows, at most _ROWS, through the base."""
        rows: list[tuple[int, ...]] = []
        entries: list[tuple[int, int]] = []
        keep: list[int] = []
        starts = [0]
        adapters: dict[int, LeanAdapter] = {}
        numbers: dict[int, int] = {}
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
            for at in range(work.start, work.start + length):
                block = table.blocks[at // BLOCK].address
                rows.append((number, prefix + at, sequence, block, at % BLOCK))
        self.weights.reach(keys)
        self._buffers.reach(len(rows), keys, ranks)
        self._embed(works, self._buffers.hidden(len(rows)))
        model = self.weights.model
        own = list(adapters.values())
        tables = plan.Adapters(
            half=self.weights.quantized,
            deltas=_stacked(
                [adapter.deltas for adapter in own], model, (plan.MODULES, 4), np.int64
            ),
            scales=_stacked(
                [adapter.scales for adapter in own], model, (plan.MODULES,), np.float32
            ),
            inputs=_stacked([adapter.inputs for adapter in own], model, (4,), np.int64),
            masked_prefix=_stacked([adapter.masked_prefix for adapter in own], model, (), np.int64),
        )
        table_of_rows = plan.Rows(
            rows=np.array(rows, np.int64),
            entries=np.array(entries, np.int64).reshape(-1, 2),
            starts=np.array(starts, np.int64),
            keep=np.array(keep, np.int64),
        )
        buffers = self._buffers.table(logits)

        def work_of(thread: int, counters: int) -> None:
            step.run(thread, counters, model, tables, buffers, table_of_rows)

        self._team.run(work_of)

    def _embed(self, works: Sequence[_Work], hidden: NDArray[np.float32]) -> None:
        """The rows' embeddings: those of tokens, of placed virtual tokens, or given ones."""
        ids = np.concatenate([np.asarray(work.ids, np.int64) for work in works])
        with torch.inference_mode():
            embedded = self.base.embedding(torch.from_numpy(np.maximum(ids, 0))).float()
            at = 0
            for work in works:
                rows = slice(at, at + len(work.ids))
                if work.embeddings is not None:
                    embedded[rows] = work.embeddings
                elif work.sequence.placed is not None:
                    marked = torch.from_numpy(ids[rows])
                    where = marked < 0
                    placed = work.sequence.placed[-1 - marked[where]]
                    embedded[rows][where] = placed.to(embedded.dtype)
                at += len(work.ids)
            hidden[:] = embedded.numpy()


def _stacked(
    arrays: Sequence[NDArray[np.generic]], model: plan.Model, shape: tuple[int, ...], kind: type
) -> NDArray[np.generic]:
    if not arrays:
        return np.zeros((0, len(model.layers), *shape), kind)
    return np.stack(arrays)


def _in_groups(works: Sequence[_Work], most: int) -> Iterator[list[_Work]]:
    """The works in their order, in groups of at most so many rows; a long one is cut."""
    group: list[_Work] = []
    room = most
    for work in works:
        done = 0
        while done < len(work.ids):
            length = min(room, len(work.ids) - done)
            left = len(work.ids) - done - length  # rows that come in later groups
            embeddings = None if work.embeddings is None else work.embeddings[done : done + length]
            ids = work.ids[done : done + length]
            logits = max(0, min(length, work.logits - left))
            group.append(_Work(work.sequence, work.start + done, ids, logits, embeddings))
            done, room = done + length, room - length
            if room == 0:
                yield group
                group, room = [], most
    if group:
        yield group
