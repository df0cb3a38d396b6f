"""Training on a base whose rotary embedding changes with the longest text."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import onebase
from onebase.errors import DataError
from onebase.model.base import Base
from onebase.runs.run import RunStore


def write(folder: Path, words: int) -> Path:
    file = folder / f"rows-{words}.jsonl"
    items = [{"input": f"q{at}", "output": "x" * (words if at == 3 else 1)} for at in range(8)]
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return file


@pytest.mark.parametrize("method", ["lora", "p-tuning-v2", "full"])
@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_row_beyond_the_border_is_refused_before_anything_is_written(
    kind: str, method: str, length_bound_base: Callable[..., Base], tmp_path: Path
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    base = length_bound_base(kind)
    settings: dict[str, object] = {"epochs": 1, "held_out": 0.25}
    if method == "p-tuning-v2":
        settings["virtual_tokens"] = 4
    rows = write(tmp_path, 60)

    def job(max_tokens: int) -> onebase.Job:
        own = {**settings, "max_tokens": max_tokens}
        return onebase.Job("t", rows, method, template="{input} ", set=own)

    room = 36 if method == "p-tuning-v2" else 40
    for longer in (64, room + 1):
        with pytest.raises(DataError, match=rf"more than {room} tokens.*rope type {kind}"):
            onebase.train([job(longer)], base=base, workspace=workspace)
    assert RunStore(workspace).list() == []
    # Cut to what the base takes, it learns.
    (stored,) = onebase.train([job(room)], base=base, workspace=workspace)
    assert stored.version == 1
