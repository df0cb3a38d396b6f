"""Where rewards come from, and how varied answers are."""

from pathlib import Path

import pytest

from onebase.align.rewards import _function, distinct_2
from onebase.errors import UsageError


def test_a_function_is_found_in_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_rewards_here.py").write_text(
        "ten = 10\ndef half(prompt, answer, row):\n    return 0.5\n", encoding="utf-8"
    )
    assert _function("own_rewards_here:half")("", "", {}) == 0.5
    with pytest.raises(UsageError, match="no function"):
        _function("own_rewards_here:ten")
    with pytest.raises(UsageError, match="nothing"):
        _function("own_rewards_here:nothing")
    with pytest.raises(UsageError, match="no_such_module"):
        _function("no_such_module:f")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a b c"], 1.0),
        (["a b a b"], 2 / 3),
        (["a b", "a b"], 0.5),
        (["你好你好"], 2 / 3),  # characters, where nothing is set apart by spaces
        (["", "one"], 1.0),
        ([""], 0.0),
    ],
)
def test_distinct_2(texts: list[str], expected: float) -> None:
    assert distinct_2(texts) == pytest.approx(expected)
