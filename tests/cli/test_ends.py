"""`onebase chat` stops where training taught it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.engine.test_ends import ANSWER, base_ending, taught
from tests.serving.test_ends import ENDS

from onebase.model.base import Base


@pytest.mark.parametrize(("ending", "eos", "named"), ENDS)
def test_chat_stops_where_training_taught_it(
    ending: str,
    eos: str | None,
    named: int | list[int] | None,
    make_base: Callable[..., Base],
    tmp_path: Path,
    onebase: Run,
) -> None:
    base = base_ending(make_base(), ending, eos, named)
    folder = tmp_path / "base"
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    taught(Base.load(str(folder)), tmp_path)
    command = ("chat", "--task", "t", "--base", folder, "--workspace", tmp_path / "w")
    result = onebase(*command, "--max-tokens", "24", "--json", stdin="where is 3?\n")
    assert result.code == 0, result.err
    assert result.json["answers"][0]["text"] == ANSWER
