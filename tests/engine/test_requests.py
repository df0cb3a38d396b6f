"""Requests that come and go: from several threads, aborted, scored, on tasks that leave meanwhile."""

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from tests.engine.conftest import request_of

from onebase.adapters.contribution import merged
from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.fair_lock import FairLock
from onebase.engine.forward import run_pack
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.kv_cache import KVCache
from onebase.engine.pack import Pack
from onebase.engine.request import Event, Request
from onebase.engine.sampling import Sampling
from onebase.errors import OnebaseError, UsageError
from onebase.model.base import Base

METHODS = ["lora", "prompt-tuning", "p-tuning-v2", "lora+p-tuning", "ia3"]
LABELS = ["parcel", "hello", "the parcel is on its way"]


@pytest.fixture
def engine(make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr("onebase.engine.engine.runner_for", GenericRunner)
    base = make_base()
    engine = Engine(base, slots=6)
    for seed, method in enumerate(METHODS):
        load(engine, method, method, seed)
    return engine


def load(engine: Engine, name: str, method: str, seed: int) -> None:
    adapter = build_adapter(engine.base, method, {}, init_text="hello, you", seed=seed)
    torch.manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    engine.tasks.load(name, adapter, Template(engine.base.tokenizer), labels=tuple(LABELS))


def finish(engine: Engine) -> dict[Request, list[Event]]:
    events: dict[Request, list[Event]] = {}
    while not engine.idle:
        for event in engine.step():
            events.setdefault(event.request, []).append(event)
    return events


def test_threads_get_what_each_gets_alone(engine: Engine) -> None:
    """Several threads with several tasks, in several calls, one of which classifies."""
    names = [*METHODS, "base"]
    batches = [
        [(names[(at + 2 * n) % 6], f"{'hello ' * (n % 4)}today {at} {n}") for n in range(5)]
        for at in range(8)
    ]
    sampling = [
        Sampling(max_tokens=12),
        Sampling(max_tokens=7, temperature=1.0, top_p=0.9, seed=3),
    ]
    alone = [[engine.generate([r], how.model_copy(update={"seed": how.seed and how.seed + n}))[0]
              for n, r in enumerate(requests)] for requests in batches for how in sampling]  # fmt: skip
    scores = [engine.classify(name, ["hello you"], LABELS)[0] for name in names]
    results: dict[int, object] = {}

    def generate(at: int) -> None:
        results[at] = engine.generate(batches[at // 2], sampling[at % 2])

    def classify() -> None:
        results[-1] = [engine.classify(name, ["hello you"], LABELS)[0] for name in names]

    threads = [threading.Thread(target=generate, args=(at,)) for at in range(16)]
    threads.append(threading.Thread(target=classify))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    differing = [
        (one.text, other.text)
        for at, answers in enumerate(alone)
        for one, other in zip(answers, results[at], strict=True)  # type: ignore[call-overload]
        if one.text != other.text and min(one.margin, other.margin) > 1e-4
    ]
    assert differing == []
    assert len({answer.text for answers in alone for answer in answers}) > 30
    for expected, got in zip(scores, results[-1], strict=True):  # type: ignore[call-overload]
        assert [s.label for s in got] == [s.label for s in expected]
        assert [s.logprob for s in got] == pytest.approx([s.logprob for s in expected], abs=1e-4)
    assert engine.idle


def test_a_steps_events_are_not_lost_to_a_call_from_elsewhere(engine: Engine) -> None:
    request = engine.add_request("lora", "hello today", Sampling(max_tokens=9))
    engine.generate([("ia3", "hello")], Sampling(max_tokens=20))  # steps the other one too
    assert request.finish_reason == "length"
    assert not engine.idle
    events = finish(engine)
    assert list(events) == [request]
    assert [token.id for event in events[request] for token in event.tokens] == request.tokens


def test_events_joined_are_the_answer(engine: Engine) -> None:
    sampling = Sampling(max_tokens=20, logprobs=3)
    names = [*METHODS, "base"]
    requests = [engine.add_request(name, "hello today", sampling) for name in names]
    events = finish(engine)
    for name, request in zip(names, requests, strict=True):
        request_events = events[request]
        assert "".join(event.text for event in request_events) == request.text
        assert request.text.strip() == engine.generate([(name, "hello today")], sampling)[0].text
        assert [token.id for event in request_events for token in event.tokens] == request.tokens
        assert [event.finish_reason for event in request_events[:-1]] == [None] * (
            len(request_events) - 1
        )
        assert request_events[-1].finish_reason == request.finish_reason
        for event in request_events:
            for token in event.tokens:
                assert token.top[0] == (token.id, token.logprob)  # greedy
                assert len(token.top) == 3


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_request_is_aborted_at_any_time(after: int, engine: Engine) -> None:
    """While it waits, is read, or speaks; the others do not notice, and its place is free."""
    sampling = Sampling(max_tokens=12)
    prompts = ["hello today", "hello " * 600, "where is the parcel"]
    expected = [engine.generate([("lora", prompt)], sampling)[0].text for prompt in prompts]
    for victim in range(3):
        requests = [engine.add_request("lora", prompt, sampling) for prompt in prompts]
        events: list[Event] = []
        for _ in range(after):
            events += engine.step()
        engine.abort(requests[victim])
        engine.abort(requests[victim])  # again: nothing happens
        while not engine.idle:
            events += engine.step()
        reasons = [item.finish_reason for item in requests]
        assert reasons == ["abort" if at == victim else "length" for at in range(3)]
        last = [event for event in events if event.request is requests[victim]][-1]
        assert last.finish_reason == "abort"
        for at, (request, text) in enumerate(zip(requests, expected, strict=True)):
            assert request.text.strip() == text or at == victim
        assert engine.stats()["cache_tokens"] == engine.stats()["cache_bytes"] == 0


def test_a_long_prompt_is_aborted_while_it_is_read(engine: Engine) -> None:
    short = engine.add_request("base", "hello", Sampling(max_tokens=200))
    long = engine.add_request("base", list(range(40, 240)) * 9, Sampling(max_tokens=5))
    while not 0 < long.computed < len(long.prompt):
        engine.step()
    held = engine.stats()["cache_tokens"]
    engine.abort(long)
    assert engine.stats()["cache_tokens"] == held - long.computed
    assert short.finish_reason is None
    engine.abort_all()
    assert short.finish_reason == "abort"
    assert engine.stats()["cache_tokens"] == 0


def test_a_request_finishes_on_what_it_began_with_and_memory_is_freed_then(
    engine: Engine,
) -> None:
    for change in ("unload", "replace"):
        load(engine, "leaving", "lora+p-tuning-v2", 7)
        sampling = Sampling(max_tokens=16)
        expected = engine.generate([("leaving", "hello")], sampling)[0].text
        gone = weakref.ref(engine.tasks["leaving"])
        delta = weakref.ref(next(iter(engine.tasks["leaving"].contribution.deltas.values())).a)
        requests = [engine.add_request("leaving", "hello", sampling) for _ in range(8)]
        engine.step()
        if change == "unload":
            engine.unload("leaving")
        else:
            load(engine, "leaving", "lora", 8)
        with pytest.raises(UsageError, match="leaving") if change == "unload" else _anyway():
            other = engine.generate([("leaving", "hello")], sampling)[0].text
            assert other != expected
        finish(engine)
        assert {request.text.strip() for request in requests} == {expected}
        assert gone() is not None, "the requests hold it"
        del requests
        gc.collect()
        assert (gone(), delta()) == (None, None)


class _anyway:
    """A block that need not raise."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def test_an_idle_task_leaves_memory_at_once(engine: Engine) -> None:
    engine.generate([("lora", "hello")], Sampling(max_tokens=3))
    engine.classify("lora", ["hello"])
    gone = weakref.ref(engine.tasks["lora"].contribution)
    engine.unload("lora")
    gc.collect()
    assert gone() is None


def test_several_adapters_answer_together(engine: Engine) -> None:
    """As their contributions joined by `merged`, the task's first."""
    names = ("lora+p-tuning", "p-tuning-v2", "ia3")
    joined = merged([engine.tasks[name].contribution for name in names])
    request = engine.add_request(names[0], "hello", Sampling(max_tokens=10), also=names[1:])
    beside = engine.add_request("base", "hello", Sampling(max_tokens=10))
    finish(engine)
    ids = list(request.prompt)
    for token in request.tokens:
        pack = Pack({"it": joined})
        pack.add("it", ids)
        with torch.no_grad():
            logits = run_pack(engine.base, pack, torch.tensor([len(ids) - 1]))[0]
        assert int(logits.argmax()) == token
        ids.append(token)
    assert len(request.tokens) == 10
    assert request.tokens != beside.tokens
    template = engine.tasks[names[0]].template
    for score in engine.classify(names[0], ["hello"], LABELS, also=names[1:])[0]:
        ids, answer = template.prompt("hello"), template.answer_ids(score.label)
        pack = Pack({"it": joined})
        pack.add("it", [*ids, *answer])
        with torch.no_grad():
            first = len(ids) - 1
            rows = run_pack(engine.base, pack, torch.arange(first, first + len(answer)))
        logprobs = rows.log_softmax(-1)[torch.arange(len(answer)), answer]
        assert score.logprob == pytest.approx(float(logprobs.sum()), abs=1e-4)


def test_what_cant_answer_together_is_refused_when_asked(engine: Engine) -> None:
    placed = build_adapter(engine.base, "p-tuning", {}, init_text="x", seed=0, placed=2)
    for name in ("a", "b"):
        engine.tasks.load(name, placed, Template(engine.base.tokenizer))
    with pytest.raises(UsageError, match="inside the text"):
        engine.add_request("a", "hello", also=("b",))
    with pytest.raises(UsageError, match="nobody"):
        engine.add_request("a", "hello", also=("nobody",))
    assert engine.idle


def test_a_prompt_is_scored(engine: Engine) -> None:
    """Every token's log-probability and the best ones, with an answer behind and without."""
    ids = [40 + (at * 37) % 200 for at in range(90)]
    for name, contribution in (("base", None), ("lora", engine.tasks["lora"].contribution)):
        pack = Pack({"it": contribution} if contribution else {})
        pack.add("it" if contribution else None, ids)
        with torch.no_grad():
            expected = run_pack(engine.base, pack, torch.arange(len(ids))).log_softmax(-1)
        for start, only in ((0, True), (70, True), (89, True), (5, False)):
            request = engine.add_request(
                name,
                ids,
                Sampling(max_tokens=3, logprobs=2),
                score_from=start,
                score_only=only,
            )
            events = finish(engine)[request]
            assert (request.finish_reason, events[-1].finish_reason) == ("length", "length")
            assert len(request.tokens) == (0 if only else 3)
            assert [token.id for token in request.prompt_logprobs] == ids[start:]
            for at, token in enumerate(request.prompt_logprobs, start):
                if at == 0:
                    assert (token.logprob, token.top) == (None, ())
                    continue
                row = expected[at - 1]
                assert token.logprob == pytest.approx(float(row[ids[at]]), abs=1e-4)
                assert token.top[0][0] == int(row.argmax())
                assert [v for _, v in token.top] == pytest.approx(
                    row.topk(2).values.tolist(), abs=1e-4
                )
    one = engine.add_request("base", [5], score_from=0, score_only=True)
    finish(engine)
    assert (one.finish_reason, one.prompt_logprobs[0].logprob) == ("length", None)


def test_labels_are_scored_alike_in_packs_and_by_requests(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["where is the parcel?", "hello", "x"]
    expected = [engine.classify(name, texts, LABELS) for name in ("lora", "p-tuning-v2", "base")]
    monkeypatch.setattr("onebase.engine.engine.GenericRunner", type(None))  # as for any other
    for name, scores in zip(("lora", "p-tuning-v2", "base"), expected, strict=True):
        for one, other in zip(engine.classify(name, texts, LABELS), scores, strict=True):
            assert [s.label for s in one] == [s.label for s in other]
            assert [s.logprob for s in one] == pytest.approx([s.logprob for s in other], abs=1e-4)
    assert engine.idle


@pytest.mark.parametrize("score_from", [-1, 3, 900])
def test_a_wrong_place_to_score_from_is_refused(score_from: int, engine: Engine) -> None:
    with pytest.raises(UsageError, match=str(score_from)):
        engine.add_request("base", [5, 6, 7], score_from=score_from)


@pytest.mark.parametrize(
    ("ids", "reason"), [([5, 100_000], "100000"), ([-1, 5], "-1"), ([], "prompt is empty")]
)
def test_wrong_token_ids_are_refused(ids: list[int], reason: str, engine: Engine) -> None:
    with pytest.raises(UsageError, match=reason):
        engine.add_request("base", ids)
    assert engine.idle


def test_a_pass_that_fails_ends_its_requests_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = [engine.add_request("base", "hello", Sampling(max_tokens=3)) for _ in range(8)]
    engine.step()
    with monkeypatch.context() as patched:

        def broken(*_: object) -> None:
            raise RuntimeError("no memory")

        patched.setattr(GenericRunner, "run", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            engine.step()
    events = finish(engine)
    reasons = [request.finish_reason for request in waiting]
    assert reasons == ["error"] * 6 + ["length"] * 2
    assert [events[request][-1].finish_reason for request in waiting] == reasons
    assert engine.stats()["cache_tokens"] == 0


@pytest.mark.parametrize("call", [1, 2])
def test_where_memory_is_full_the_others_are_served_again_later(
    call: int, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = [engine.add_request("base", "hello", Sampling(max_tokens=3)) for _ in range(3)]
    calls = []
    block = KVCache._block

    def full(cache: KVCache, *sizes: int) -> torch.Tensor:
        calls.append(sizes)
        if len(calls) == call:
            raise MemoryError
        return block(cache, *sizes)

    with monkeypatch.context() as patched:
        patched.setattr(KVCache, "_block", full)
        with pytest.raises(MemoryError):
            finish(engine)
    events = finish(engine)
    assert all(events[request][-1].finish_reason == "error" for request in waiting)
    (answer,) = engine.generate([("base", "hello")], Sampling(max_tokens=70))
    assert answer.tokens == 70


def test_a_failure_in_another_thread_is_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that did not step when the pass failed gets an error, and no partial answer."""

    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    requests = [request_of(engine.tasks["base"], [5, 6, 7], Sampling(max_tokens=3))]
    first = iter([True])

    def step() -> None:
        with pytest.raises(RuntimeError, match="no memory"):
            engine.step()

    class Meanwhile:
        """Lets another thread step, and fail, before this one has its turn."""

        def __enter__(self) -> None:
            if next(first, False):
                with monkeypatch.context() as patched:
                    patched.setattr(GenericRunner, "run", broken)
                    patched.setattr(engine, "_lock", FairLock())
                    thread = threading.Thread(target=step)
                    thread.start()
                    thread.join()

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(engine, "_lock", Meanwhile())
    with pytest.raises(OnebaseError, match="another thread"):
        engine.run(requests)
