"""White space around an answer never shows, in a stream either."""

import random

import pytest

from onebase.serving.streaming_strip import StreamingStrip


@pytest.mark.parametrize(
    "text", ["", " ", "a", " a b\n", "\n\n a  \n b \t", "你好 ", " \u3000你 好", "a" * 50 + "  "]
)
@pytest.mark.parametrize("seed", range(20))
def test_the_deltas_joined_are_the_stripped_text(text: str, seed: int) -> None:
    drawn = random.Random(seed)
    stripped, shown, at = StreamingStrip(), [], 0
    while at < len(text):
        size = drawn.randint(0, 3)
        shown.append(stripped.add(text[at : at + size]))
        at += size
    assert "".join(shown) == text.strip()
