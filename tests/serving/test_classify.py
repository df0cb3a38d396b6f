"""POST /v1/classify gives the engine's scores."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from onebase.engine.engine import Engine
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
            assert found == pytest.approx(asdict(expected), abs=1e-4)
    one = classify(server).json()
    assert one["labels"] == one["data"][0]["labels"]
    assert sum(item["probability"] for item in one["labels"]) == pytest.approx(1)


def test_other_labels(server: Any) -> None:
    labels = classify(server, labels=["yes", "no", "maybe", "no"]).json()["labels"]
    assert {item["label"] for item in labels} == {"yes", "no", "maybe"}
    assert classify(server, model="base", labels=["yes", "no"]).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "support"}, 400),  # it has no labels
        ({"model": "suport"}, 404),
        ({"input": []}, 400),
        ({"input": ["x", ""]}, 400),
        ({"labels": [""]}, 400),
        ({"input": 3}, 400),
    ],
)
def test_what_is_refused(fields: dict[str, Any], status: int, server: Any) -> None:
    assert classify(server, **fields).status_code == status
