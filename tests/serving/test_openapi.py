"""Requests drawn from the OpenAPI document, good and bad: the server never fails."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from onebase.adapters.store import StoredAdapter

EXAMPLES = 60
LIMITS = {"seconds": 1.0, "choices": 8, "default_tokens": 8, "body_bytes": 100_000}


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_makes_the_server_fail(
    mode: GenerationMode,
    start: Callable[..., Any],
    store_task: Callable[..., StoredAdapter],
) -> None:
    store_task("support", record={"labels": ["good", "bad"]})
    store_task("support", seed=1)
    server = start(limits=LIMITS)
    expected = server.text("support@2")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = 0
    for operation_result in schema.get_all_operations():
        operation = operation_result.ok()

        @hypothesis.settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(
            case=operation.as_strategy(generation_mode=mode), known=strategies.booleans()
        )
        def answers(case: Case, known: bool) -> None:
            nonlocal tried
            tried += 1
            # Random names lead no further than to a 404.
            if known and isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = "support"
            if known and "task" in (case.path_parameters or {}):
                case.path_parameters["task"] = "support"
            response = case.call(timeout=30)
            # A busy machine may need more than the server's second: that is an answer, not a failure.
            late = response.status_code == 504 and response.json()["error"]["code"] == "timed_out"
            assert late or response.status_code < 500, response.text

        with suppress(Unsatisfiable):  # nothing in it can be wrong
            answers()
    assert tried > EXAMPLES * 5
    assert server.http.post("/v1/adapters", json={"task": "support"}).status_code == 200
    assert server.text("support@2") == expected
