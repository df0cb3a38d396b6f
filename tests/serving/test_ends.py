"""A server's answers, whole and streamed, stop where training taught it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engine.test_ends import ANSWER, base_ending, taught
from tests.serving.conftest import starting

from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.model.base import Base

ENDS = [
    pytest.param("<|im_end|>", "<pad>", 0, id="another token than the tokenizer's"),
    pytest.param("<|im_end|>", "<pad>", [0, 7], id="a list"),
    pytest.param("\n### End", None, None, id="a text"),
]


def message(answer: object) -> tuple[str, str]:
    """What was said, and why it ended."""
    assert isinstance(answer, dict)
    (choice,) = answer["choices"]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize(("ending", "eos", "named"), ENDS)
def test_a_server_stops_where_training_taught_it(
    ending: str,
    eos: str | None,
    named: int | list[int] | None,
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    base = base_ending(make_base(), ending, eos, named)
    taught(base, tmp_path)
    with starting(base, AdapterStore(Workspace(tmp_path / "w"))) as start:
        server = start()
        answer = server.chat("t", "where is 3?", max_tokens=24).json()
        assert message(answer) == (ANSWER, "stop")
        message_body = {"role": "user", "content": "where is 3?"}
        *events, last = server.events(
            "/v1/chat/completions", model="t", messages=[message_body], max_tokens=24, temperature=0
        )
    assert last == "[DONE]"
    choices = [event["choices"][0] for event in events if event["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == ANSWER
    assert choices[-1]["finish_reason"] == "stop"


def test_without_an_end_an_answer_comes_to_its_limit(
    make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base = base_ending(make_base(), "", None, None)
    taught(base, tmp_path)
    with starting(base, AdapterStore(Workspace(tmp_path / "w"))) as start:
        answer_text, reason = message(start().chat("t", "where is 3?", max_tokens=24).json())
    assert answer_text.startswith(ANSWER)
    assert reason == "length"
