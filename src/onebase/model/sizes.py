"""The size of a base from the headers of its files, without loading it."""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from onebase.model.precision import Precision

_NF4_BYTES = 0.53  # per weight: four bits, and its share of a block's scale
_HEADER_LIMIT = 100 << 20  # the same as in the safetensors library


@dataclass(frozen=True)
class Sizes:
    """The number of `parameters` of a base, and of those in linear layers that may be quantized."""

    parameters: int
    linear: int

    def held_in(self, precision: Precision) -> int:
        """The size of the weights in `precision`, in bytes."""
        width = precision.compute.itemsize
        if not precision.quantized:
            return self.parameters * width
        per_weight = 1.0 if precision.name == "int8" else _NF4_BYTES
        return int(self.linear * per_weight + (self.parameters - self.linear) * width)


def sizes_of(folder: Path) -> Sizes:
    """The sizes of the base in `folder`; zeros if its files can't be read."""
    shapes = [item for file in folder.glob("*.safetensors") for item in _shapes(file)]
    if not shapes:
        # ChatGLM's own files have two bytes per weight.
        stored = sum(file.stat().st_size for file in folder.glob("pytorch_model*.bin"))
        return Sizes(stored // 2, stored // 2)
    linear = [
        prod(shape)
        for name, shape in shapes
        if len(shape) == 2 and "embed" not in name and "lm_head" not in name
    ]
    return Sizes(sum(prod(shape) for _, shape in shapes), sum(linear))


def _shapes(file: Path) -> list[tuple[str, list[int]]]:
    """Name and shape of every tensor in a safetensors file; none if it is damaged."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, _HEADER_LIMIT)))
        return [(name, item["shape"]) for name, item in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return []
