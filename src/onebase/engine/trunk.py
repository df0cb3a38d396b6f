"""The frozen trunk: what the layers below every adapter make of a text, computed once and kept.

Where adapters change nothing below layer k, what enters layer k for a given text never changes:
it is the same in every epoch and for every job on the same data. Exact where the model's pass can
begin in the middle, which is tried once for each base. Texts are computed at position 0, though
behind a prefix on the layers above they stand further on: where only the distances between
positions matter, as with rotary embeddings, that is the same; it is tried too.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary, finalize

import numpy as np
import torch
from torch import Tensor, nn

from onebase.adapters.contribution import Contribution
from onebase.adapters.lora import layer_of
from onebase.engine.forward import run_below, run_pack
from onebase.engine.pack import Pack
from onebase.model.base import Base

Kept = Literal["fp32", "fp16"]
_PASS_TOKENS = 2048
_TOLERANCE = 1e-4
_ROUNDED_TOLERANCE = 5e-2  # in fewer bits the angles of other positions are rounded otherwise
_MOVED_BY = 64


# Of each base, whether a pass may begin at a layer, and for moved texts (True) too.
_tried: "WeakKeyDictionary[nn.Module, dict[tuple[int, bool], bool]]" = WeakKeyDictionary()


def depth(contribution: Contribution, layers: int) -> int:
    """The lowest layer that an adapter changes; `layers`, the base's number, where it changes
    none.
    """
    if contribution.virtual is not None or contribution.placed is not None:
        return 0
    changed = [layer_of(name) for name in (*contribution.deltas, *contribution.scalings)]
    if contribution.prefix is not None:
        masked_prefix = contribution.masked_prefix or (0,) * layers
        changed += [at for at in range(layers) if masked_prefix[at] < contribution.prefix_tokens]
    return min(changed, default=layers)


class Trunk:
    """Keeps what enters a layer for each text, in memory up to `memory_bytes` and in a temporary
    file beyond, both bounded by `bytes_limit` together (and the file by half of the disk's free
    room): what no longer fits is computed anew.

    `kept` is the type it is kept in; fp16 halves the room and rounds.
    """

    def __init__(
        self,
        base: Base,
        *,
        kept: Kept = "fp32",
        memory_bytes: int = 1 << 30,
        bytes_limit: int = 8 << 30,
    ) -> None:
        self._base = base
        self._kept = torch.float32 if kept == "fp32" else torch.float16
        self._memory_limit = memory_bytes
        self._limit = bytes_limit
        self._in_memory: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._in_file: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
        self._memory_used = 0
        self._file_used = 0
        self._full = False
        self._folder: Path | None = None
        self.computed_tokens = 0
        self.reused_tokens = 0

    def usable(self, layer: int, *, moved: bool = False) -> bool:
        """Whether a pass of this base may begin at `layer`, for texts that have been `moved`
        behind a prefix too: tried once for each base, on a sample.
        """
        if layer <= 0 or layer >= self._base.shape.layers:
            return False
        tried = _tried.setdefault(self._base.model, {})
        if (layer, False) not in tried:
            tried[layer, False] = self._try(layer)
        if moved and (layer, True) not in tried:
            tried[layer, True] = tried[layer, False] and self._try_moved(layer)
        return tried[layer, moved]

    def entering(self, layer: int, texts: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """What enters `layer` for each text, each [tokens, hidden]; no gradient."""
        found: dict[tuple[int, ...], Tensor] = {}
        missing: list[tuple[int, ...]] = []
        for text in dict.fromkeys(texts):
            kept = self._look_up((layer, text))
            if kept is None:
                missing.append(text)
            else:
                found[text] = kept
                self.reused_tokens += len(text)
        for text, part in self._computed(layer, missing):
            found[text] = self._keep((layer, text), part)
        return [found[text] for text in texts]

    def prepare(
        self,
        layer: int,
        texts: Sequence[tuple[int, ...]],
        check: Callable[[], None] | None = None,
    ) -> None:
        """Compute and keep what enters `layer` for all `texts` that there is room for, in passes
        that depend on the texts alone, so that another session finds the same to the last bit.
        `check` is called after each pass.
        """
        wanted = [t for t in dict.fromkeys(texts) if not self._is_kept((layer, t))]
        for group in _groups(wanted):
            for text, part in self._computed(layer, group):
                self._keep((layer, text), part)
            if check:
                check()
            if self._full:
                return

    def _computed(
        self, layer: int, texts: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """What enters `layer` for each text. What all texts of a pass begin with is in it once."""
        for group in _groups(texts):
            shared = min(alike(group), min(map(len, group)) - 1)
            pack = Pack({})
            root = pack.add(None, group[0][:shared]) if shared and len(group) > 1 else None
            at = 0 if root is None else shared
            nodes = [pack.nodes[pack.add(None, text[at:], root)] for text in group]
            with torch.no_grad():
                hidden = run_below(self._base, pack, layer)
            self.computed_tokens += len(hidden)
            for text, node in zip(group, nodes, strict=True):
                own = hidden[node.start : node.start + node.length]
                yield text, torch.cat([hidden[:at], own])

    def _try(self, layer: int) -> bool:
        ids = self._sample()
        pack = Pack({})
        pack.add(None, ids)
        rows = torch.arange(len(ids))
        with torch.no_grad():
            whole = run_pack(self._base, pack, rows)
            entering = run_below(self._base, pack, layer)
            split = run_pack(self._base, pack, rows, first=layer, entering=entering)
        return float((split - whole).abs().max() / whole.abs().max()) <= _TOLERANCE

    def _try_moved(self, layer: int) -> bool:
        """Whether what enters `layer` is the same for a text behind a prefix that no layer sees."""
        shape = self._base.shape
        size = (shape.layers, shape.kv_heads, _MOVED_BY, shape.head_dim)
        nothing = torch.zeros(size, device=self._base.device)
        behind = Contribution(prefix=(nothing, nothing), masked_prefix=(_MOVED_BY,) * shape.layers)
        entering = []
        with torch.no_grad():
            for adapter in (None, "behind"):
                pack = Pack({"behind": behind})
                pack.add(adapter, self._sample())
                entering.append(run_below(self._base, pack, layer))
        bare, moved = entering
        rounded = self._base.precision.compute != torch.float32
        tolerance = _ROUNDED_TOLERANCE if rounded else _TOLERANCE
        return float((moved - bare).abs().max() / bare.abs().max()) <= tolerance

    def _sample(self) -> tuple[int, ...]:
        return tuple(range(3, min(27, self._base.shape.vocabulary)))

    def _is_kept(self, key: tuple[int, tuple[int, ...]]) -> bool:
        return key in self._in_memory or key in self._in_file

    def _look_up(self, key: tuple[int, tuple[int, ...]]) -> Tensor | None:
        device, kind = self._base.device, self._base.embedding.weight.dtype
        if key in self._in_memory:
            return self._in_memory[key].to(device, kind)
        if key in self._in_file:
            at, tokens = self._in_file[key]
            shape = (tokens, self._base.shape.hidden)
            stored = np.memmap(self._file(), self._numpy_type(), "r", at, shape)
            return torch.from_numpy(np.array(stored)).to(device, kind)
        return None

    def _keep(self, key: tuple[int, tuple[int, ...]], hidden: Tensor) -> Tensor:
        """Keep `hidden` if there is room; returns it as it will be read back."""
        stored = hidden.to("cpu", self._kept)
        size = stored.numel() * stored.element_size()
        if self._full:  # and stays so, lest what is kept hang on the order of asking
            pass
        elif self._memory_used + size <= self._memory_limit:
            self._in_memory[key] = stored
            self._memory_used += size
        elif self._memory_used + self._file_used + size <= self._limit:
            self._full = not self._write(key, stored, size)
        else:
            self._full = True
        return stored.to(hidden.device, hidden.dtype)

    def _write(self, key: tuple[int, tuple[int, ...]], stored: Tensor, size: int) -> bool:
        """Append to the file, and whether the disk had room for it."""
        file = self._file()
        if size > shutil.disk_usage(file.parent).free // 2:
            return False
        try:
            with file.open("r+b") as opened:
                opened.seek(self._file_used)
                opened.write(stored.numpy().tobytes())
        except OSError:
            return False
        self._in_file[key] = (self._file_used, len(stored))
        self._file_used += size
        return True

    def _file(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="onebase-trunk-"))
            (self._folder / "hidden").touch()
            finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / "hidden"

    def _numpy_type(self) -> type[np.floating]:
        return np.float32 if self._kept == torch.float32 else np.float16


def depth_of(
    adapters: Sequence[str | None], contributions: Mapping[str, Contribution], layers: int
) -> int:
    """The lowest layer that any of `adapters` changes."""
    return min((depth(contributions[name], layers) for name in adapters if name), default=layers)


def alike(texts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all texts begin with."""
    columns = zip(*texts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _groups(texts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Texts in groups of at most _PASS_TOKENS tokens (and at least one text)."""
    groups: list[list[tuple[int, ...]]] = []
    size = 0
    for text in texts:
        if not groups or size + len(text) > _PASS_TOKENS:
            groups.append([])
            size = 0
        groups[-1].append(text)
        size += len(text)
    return groups
