"""The engine's thread: events a step, aborts, calls between steps, draining, failures."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.request import Event, Request
from onebase.engine.sampling import Sampling
from onebase.engine.thread import EngineThread
from onebase.errors import UsageError
from onebase.model.base import Base

SHORT = Sampling(max_tokens=6)
LONG = Sampling(max_tokens=1500)


class Heard:
    """What a thread reported, and by which thread."""

    def __init__(self) -> None:
        self.steps: list[list[Event]] = []
        self.threads: set[str] = set()

    def __call__(self, events: list[Event]) -> None:
        self.steps.append(events)
        self.threads.add(threading.current_thread().name)

    def of(self, request: Request) -> list[Event]:
        return [event for step in self.steps for event in step if event.request is request]

    def wait(self, request: Request) -> list[Event]:
        """Its events once it has ended."""
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            request_events = self.of(request)
            if request_events and request_events[-1].finish_reason:
                return request_events
            time.sleep(0.005)
        raise AssertionError("it did not end")


@pytest.fixture
def engine(make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr("onebase.engine.engine.runner_for", GenericRunner)
    return Engine(make_base())


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def thread(engine: Engine, heard: Heard) -> Iterator[EngineThread]:
    running = EngineThread(engine, heard)
    yield running
    running.stop(0.0)


def test_requests_are_answered_with_one_report_a_step(thread: EngineThread, heard: Heard) -> None:
    expected = thread.engine.generate([("base", "hello today")], SHORT)[0].text
    requests = [thread.submit("base", "hello today", SHORT).result(10) for _ in range(5)]
    for request in requests:
        request_events = heard.wait(request)
        assert "".join(event.text for event in request_events).strip() == expected
        assert [token.id for event in request_events for token in event.tokens] == request.tokens
    assert heard.threads == {"onebase-engine"}
    assert all(len({event.request for event in step}) == len(step) for step in heard.steps)


def test_what_is_wrong_is_told_to_the_one_who_asked(thread: EngineThread) -> None:
    for task, prompt, reason in (
        ("nope", "hello", "nope"),
        ("base", "", "prompt is empty"),
        ("base", "hello " * 4000, "context of 2048"),
    ):
        with pytest.raises(UsageError, match=reason):
            thread.submit(task, prompt).result(10)
    assert thread.alive


def test_order_is_kept(thread: EngineThread) -> None:
    submitted = [thread.submit("base", "hello " * (20 - at), SHORT) for at in range(20)]
    requests = [future.result(10) for future in submitted]
    assert [item.arrived for item in requests] == sorted({item.arrived for item in requests})


def test_an_abort_ends_a_request_and_the_others_go_on(thread: EngineThread, heard: Heard) -> None:
    one, other = (thread.submit("base", "hello", LONG).result(10) for _ in range(2))
    while len(one.tokens) < 3:
        time.sleep(0.005)
    thread.abort(one)
    assert heard.wait(one)[-1].finish_reason == "abort"
    before = len(other.tokens)
    while len(other.tokens) < before + 3:
        time.sleep(0.005)
    thread.abort(other)
    heard.wait(other)
    assert thread.engine.stats()["cache_tokens"] == 0


def test_calls_run_between_steps_while_requests_run(thread: EngineThread, heard: Heard) -> None:
    request = thread.submit("base", "hello", LONG).result(10)
    base = thread.engine.base
    adapter = build_adapter(base, "prompt-tuning", {}, init_text="hello", seed=0)
    load = thread.call(lambda: thread.engine.tasks.load("new", adapter, Template(base.tokenizer)))
    assert load.result(10).task == "new"
    assert heard.wait(thread.submit("new", "hello", SHORT).result(10))[-1].finish_reason == "length"
    where = thread.call(lambda: threading.current_thread().name)
    assert where.result(10) == "onebase-engine"
    assert request.finish_reason is None
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 / 0).result(10)
    thread.call(lambda: thread.engine.unload("new")).result(10)
    assert thread.alive


def test_others_may_use_the_engine_meanwhile(thread: EngineThread, heard: Heard) -> None:
    prompts = [("base", "hello"), ("base", "you")]
    expected = [answer.text for answer in thread.engine.generate(prompts, SHORT)]
    (scores,) = thread.engine.classify("base", ["hello"], ["a", "b"])
    request = thread.submit("base", "hello", LONG).result(10)
    for _ in range(3):
        answers = thread.engine.generate(prompts, SHORT)
        assert [(answer.tokens, answer.text) for answer in answers] == [
            (6, text) for text in expected
        ]
        (again,) = thread.engine.classify("base", ["hello"], ["a", "b"])
        assert [score.label for score in again] == [score.label for score in scores]
        logprobs = [score.logprob for score in scores]
        assert [score.logprob for score in again] == pytest.approx(logprobs, abs=1e-5)
    assert request.finish_reason is None
    thread.abort(request)
    request_events = heard.wait(request)
    assert [token.id for event in request_events for token in event.tokens] == request.tokens


def test_stopping_lets_answers_finish_or_aborts_them(engine: Engine) -> None:
    for sampling, seconds, reason in ((SHORT, 60.0, "length"), (LONG, 0.2, "abort")):
        heard = Heard()
        thread = EngineThread(engine, heard)
        request = thread.submit("base", "hello", sampling).result(10)
        began = time.monotonic()
        thread.stop(seconds)
        assert time.monotonic() - began < 30
        assert not thread.alive
        assert heard.of(request)[-1].finish_reason == reason
        assert thread.call(lambda: None).cancelled()


def test_a_failing_step_ends_its_requests_and_the_thread_goes_on(
    thread: EngineThread,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR, "onebase.engine"):
        patched.setattr(GenericRunner, "run", broken)
        request = thread.submit("base", "hello", SHORT).result(10)
        assert heard.wait(request)[-1].finish_reason == "error"
    assert "no memory" in caplog.text
    assert (
        heard.wait(thread.submit("base", "hello", SHORT).result(10))[-1].finish_reason == "length"
    )
