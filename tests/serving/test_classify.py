"""POST /v1/classify gives the engine's scores."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from onebase.engine.engine import Engine
from onebase.engine.scoring import score_prompt
from onebase.model.base import Base


def classify(server: Any, **fields: Any) -> Any:
    return server.http.post("/v1/classify", json={"model": "mood", "input": "hello", **fields})


def test_scores_are_the_engines(server: Any, make_base: Callable[..., Base]) -> None:
    engine = Engine(make_base(), [server.store.get("mood")])
    texts = ["hello", "the parcel is on its way"]
    body = classify(server, input=texts).json()
    assert (body["model"], body["task"], body["version"]) == ("mood@1", "mood", 1)
    for entry, scores in zip(body["data"], engine.classify("mood", texts), strict=True):
        assert entry["label"] == scores[0].label
        for found, expected in zip(entry["labels"], scores, strict=True):
            assert found == pytest.approx(asdict(expected), abs=1e-5)
    one = classify(server).json()
    assert one["labels"] == one["data"][0]["labels"]
    assert sum(item["probability"] for item in one["labels"]) == pytest.approx(1)


@pytest.mark.parametrize("task", ["mood", "base"])
def test_other_labels(task: str, server: Any, make_base: Callable[..., Base]) -> None:
    engine = Engine(make_base(), [server.store.get("mood")])
    labels = classify(server, model=task, labels=["yes", "no", "maybe", "no"]).json()["labels"]
    (scores,) = engine.classify(task, ["hello"], ["yes", "no", "maybe"])
    assert sorted(item["label"] for item in labels) == ["maybe", "no", "yes"]
    for found, expected in zip(labels, scores, strict=True):
        assert found == pytest.approx(asdict(expected), abs=1e-5)


def test_scores_that_are_cut_off_are_an_error(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(limits={"seconds": 0.5})

    def slow(*given: Any) -> bool:
        time.sleep(0.1)
        return score_prompt(*given)

    monkeypatch.setattr("onebase.engine.batch.score_prompt", slow)
    labels = ["yes", "no"]
    assert classify(server, model="base", labels=labels).status_code == 200
    cut = classify(server, model="base", labels=labels, input=["hello"] * 20)
    assert cut.status_code == 504
    assert cut.json()["error"]["code"] == "timed_out"
    echo = {"model": "base", "prompt": ["hello, how are you"] * 20, "echo": True, "logprobs": 1}
    for tokens in (0, 4):
        body = {**echo, "max_tokens": tokens}
        assert server.http.post("/v1/completions", json=body).status_code == 504
        (*_, last) = server.events("/v1/completions", **body)
        assert last["error"]["code"] == "timed_out"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "support"}, 400, "labels"),  # it has none
        ({"model": "suport"}, 404, "model"),
        ({"input": []}, 400, "input"),
        ({"input": ["x", ""]}, 400, "input.1"),
        ({"labels": [""]}, 400, "labels.0"),
        ({"input": 3}, 400, "input"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], status: int, param: str, server: Any) -> None:
    refused = classify(server, **fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)
