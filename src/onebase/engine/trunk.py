"""The frozen trunk: hidden states below the lowest layer that adapters change, computed once and cached.

If adapters change nothing below layer k, the input of layer k for a given text is constant: it is the
same in every epoch and for every job on the same data. This is exact for models whose pass can start
in the middle, which is checked once for each base. Texts are computed at position 0, although their
positions are shifted by the length of a prefix in the layers above. The result is the same where only
distances between positions matter, as with rotary embeddings; that is checked, too.
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

StoredType = Literal["fp32", "fp16"]
MEMORY_BYTES = 1 << 30  # kept in memory; the rest is in a file
_PASS_TOKENS = 2048
_TOLERANCE = 1e-4
# With fewer bits, the angles of shifted positions are rounded differently.
_ROUNDED_TOLERANCE = 5e-2
_SHIFT = 64


# For each model, by (layer, shifted): whether a pass may start at that layer.
_checked: "WeakKeyDictionary[nn.Module, dict[tuple[int, bool], bool]]" = WeakKeyDictionary()


def lowest_changed_layer(contribution: Contribution, layers: int) -> int:
    """The lowest layer that an adapter changes; `layers`, the base's layer count, if it changes none."""
    if contribution.virtual is not None or contribution.placed is not None:
        return 0
    changed = [layer_of(name) for name in (*contribution.deltas, *contribution.scalings)]
    if contribution.prefix is not None:
        masked_prefix = contribution.masked_prefix or (0,) * layers
        changed += [
            layer
            for layer, masked in enumerate(masked_prefix)
            if masked < contribution.prefix_tokens
        ]
    return min(changed, default=layers)


class Trunk:
    """Caches the input of a layer for each text: in memory up to `memory_bytes`, beyond that in a
    temporary file. `bytes_limit` bounds both together, and the file takes at most half of the
    disk's free space. What does not fit is recomputed.

    `dtype` is the stored type; fp16 halves the size and rounds.
    """

    def __init__(
        self,
        base: Base,
        *,
        dtype: StoredType = "fp32",
        memory_bytes: int = MEMORY_BYTES,
        bytes_limit: int = 8 << 30,
    ) -> None:
        self._base = base
        self._dtype = torch.float32 if dtype == "fp32" else torch.float16
        self._memory_limit = memory_bytes
        self._bytes_limit = bytes_limit
        self._in_memory: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._in_file: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
        self._memory_used = 0
        self._file_used = 0
        self._full = False
        self._folder: Path | None = None
        self.computed_tokens = 0
        self.reused_tokens = 0

    def usable(self, layer: int, *, shifted: bool = False) -> bool:
        """Whether a pass of this base may start at `layer`; with `shifted`, also for texts behind a
        prefix. Checked once for each base, on a sample.
        """
        if layer <= 0 or layer >= self._base.shape.layers:
            return False
        checked = _checked.setdefault(self._base.model, {})
        if (layer, False) not in checked:
            checked[layer, False] = self._check_split(layer)
        if shifted and (layer, True) not in checked:
            checked[layer, True] = checked[layer, False] and self._check_shifted(layer)
        return checked[layer, shifted]

    def entering(self, layer: int, texts: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """The input of `layer` for each text, each [tokens, hidden]; without gradient."""
        hidden_states: dict[tuple[int, ...], Tensor] = {}
        missing: list[tuple[int, ...]] = []
        for text in dict.fromkeys(texts):
            cached = self._load((layer, text))
            if cached is None:
                missing.append(text)
            else:
                hidden_states[text] = cached
                self.reused_tokens += len(text)
        for text, computed in self._compute(layer, missing):
            hidden_states[text] = self._store((layer, text), computed)
        return [hidden_states[text] for text in texts]

    def prepare(
        self,
        layer: int,
        texts: Sequence[tuple[int, ...]],
        check: Callable[[], None] | None = None,
    ) -> None:
        """Compute and store the input of `layer` for all `texts` that fit. The passes depend only
        on the texts, so that another session computes the same bits. `check` is called after each
        pass.
        """
        stored = self._in_memory.keys() | self._in_file.keys()
        missing = [text for text in dict.fromkeys(texts) if (layer, text) not in stored]
        for group in _groups(missing):
            for text, computed in self._compute(layer, group):
                self._store((layer, text), computed)
            if check:
                check()
            if self._full:
                return

    def _compute(
        self, layer: int, texts: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """The input of `layer` for each text. The common prefix of a pass's texts is computed once."""
        for group in _groups(texts):
            shared = min(common_prefix_length(group), min(map(len, group)) - 1)
            pack = Pack({})
            root = pack.add(None, group[0][:shared]) if shared and len(group) > 1 else None
            if root is None:
                shared = 0
            nodes = [pack.nodes[pack.add(None, text[shared:], root)] for text in group]
            with torch.no_grad():
                hidden = run_below(self._base, pack, layer)
            self.computed_tokens += len(hidden)
            for text, node in zip(group, nodes, strict=True):
                rest = hidden[node.start : node.start + node.length]
                yield text, torch.cat([hidden[:shared], rest])

    def _check_split(self, layer: int) -> bool:
        """Whether a pass in two parts, below `layer` and from there on, gives the same logits."""
        ids = self._sample()
        pack = Pack({})
        pack.add(None, ids)
        rows = torch.arange(len(ids))
        with torch.no_grad():
            whole = run_pack(self._base, pack, rows)
            entering = run_below(self._base, pack, layer)
            split = run_pack(self._base, pack, rows, first=layer, entering=entering)
        return float((split - whole).abs().max() / whole.abs().max()) <= _TOLERANCE

    def _check_shifted(self, layer: int) -> bool:
        """Whether the input of `layer` is the same for a text behind a prefix that all layers mask."""
        shape = self._base.shape
        size = (shape.layers, shape.kv_heads, _SHIFT, shape.head_dim)
        zeros = torch.zeros(size, device=self._base.device)
        masked = Contribution(prefix=(zeros, zeros), masked_prefix=(_SHIFT,) * shape.layers)
        entering = []
        with torch.no_grad():
            for adapter in (None, "masked"):
                pack = Pack({"masked": masked})
                pack.add(adapter, self._sample())
                entering.append(run_below(self._base, pack, layer))
        bare, shifted = entering
        rounded = self._base.precision.compute != torch.float32
        tolerance = _ROUNDED_TOLERANCE if rounded else _TOLERANCE
        return float((shifted - bare).abs().max() / bare.abs().max()) <= tolerance

    def _sample(self) -> tuple[int, ...]:
        return tuple(range(3, min(27, self._base.shape.vocabulary)))

    def _load(self, key: tuple[int, tuple[int, ...]]) -> Tensor | None:
        device, kind = self._base.device, self._base.embedding.weight.dtype
        if key in self._in_memory:
            return self._in_memory[key].to(device, kind)
        if key in self._in_file:
            offset, tokens = self._in_file[key]
            shape = (tokens, self._base.shape.hidden)
            stored_type = np.float32 if self._dtype == torch.float32 else np.float16
            stored = np.memmap(self._file(), stored_type, "r", offset, shape)
            return torch.from_numpy(np.array(stored)).to(device, kind)
        return None

    def _store(self, key: tuple[int, tuple[int, ...]], hidden: Tensor) -> Tensor:
        """Store `hidden` if it fits; returns it as it will be read back."""
        stored = hidden.to("cpu", self._dtype)
        size = stored.numel() * stored.element_size()
        if self._full:  # for good: later texts must not fill gaps, depending on the order of calls
            pass
        elif self._memory_used + size <= self._memory_limit:
            self._in_memory[key] = stored
            self._memory_used += size
        elif self._memory_used + self._file_used + size <= self._bytes_limit:
            self._full = not self._write(key, stored, size)
        else:
            self._full = True
        return stored.to(hidden.device, hidden.dtype)

    def _write(self, key: tuple[int, tuple[int, ...]], stored: Tensor, size: int) -> bool:
        """Append to the file. Returns False if the disk has no room for it."""
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


def lowest_changed_layer_of(
    adapters: Sequence[str | None], contributions: Mapping[str, Contribution], layers: int
) -> int:
    """The lowest layer that any of `adapters` changes."""
    return min(
        (lowest_changed_layer(contributions[name], layers) for name in adapters if name),
        default=layers,
    )


def common_prefix_length(texts: Sequence[tuple[int, ...]]) -> int:
    """The length of the longest common prefix of the texts, in tokens."""
    columns = zip(*texts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _groups(texts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """The texts in groups of at most _PASS_TOKENS tokens, or of one longer text."""
    groups: list[list[tuple[int, ...]]] = []
    size = 0
    for text in texts:
        if not groups or size + len(text) > _PASS_TOKENS:
            groups.append([])
            size = 0
        groups[-1].append(text)
        size += len(text)
    return groups
