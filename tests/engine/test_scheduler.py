"""Who takes part in a step: order, room, and the steps that a simulated machine takes."""

import random
from collections.abc import Callable
from statistics import median, quantiles

import pytest
from tests.engine.conftest import request_of, task_of

from onebase.adapters.contribution import Contribution
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Chunk, Request
from onebase.engine.sampling import Sampling
from onebase.engine.scheduler import PACK_TOKENS, Scheduler
from onebase.model.base import Base

Cost = Callable[[int, int], float]


def advance(scheduler: Scheduler, chunks: list[Chunk]) -> None:
    """Do to the requests of a step what a batch does, drawing some token."""
    for chunk in chunks:
        request = chunk.request
        request.computed += chunk.length
        if request.computed < request.target_length:
            continue
        if request.limit:
            request.tokens.append(1)
        if len(request.tokens) == request.limit:
            scheduler.remove(request)


def new_request(task: LoadedTask, tokens: int, limit: int = 4, **more: object) -> Request:
    return request_of(task, [5] * tokens, Sampling(max_tokens=max(1, limit)), limit=limit, **more)


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_first_come_first_served_whatever_the_task(
    slots: int, make_base: Callable[..., Base]
) -> None:
    """The bound on waiting: a request is admitted after those before it, and after nobody else."""
    base = make_base()
    tasks = [task_of(base, Contribution()) for _ in range(5)]
    drawn = random.Random(0)
    scheduler = Scheduler(GenericRunner(base, slots=slots), max_running=slots)
    requests: list[Request] = []
    admitted: list[Request] = []
    for now in range(4000):
        if len(requests) < 80 and now % 3 == 0:
            for _ in range(drawn.randint(1, 4)):
                size, limit = drawn.choice([1, 3, 40, 900, 3000]), drawn.choice([1, 3, 30])
                requests.append(new_request(drawn.choice(tasks), size, limit))
                scheduler.add(requests[-1])
        if not (scheduler.running or scheduler.waiting) and len(requests) >= 80:
            break
        chunks = scheduler.schedule(float(now))
        decoding = [one for one in scheduler.running if one.tokens]
        assert {chunk.request for chunk in chunks} >= set(decoding), "all of them, in every step"
        admitted += [item for item in scheduler.running if item not in admitted]
        advance(scheduler, chunks)
        scheduler.observe(chunks, 0.01 + 0.001 * sum(chunk.length for chunk in chunks))
    assert not scheduler.running
    assert not scheduler.waiting
    assert admitted == requests


def test_one_that_has_no_room_is_not_overtaken(make_base: Callable[..., Base]) -> None:
    base = make_base()

    class Narrow(GenericRunner):
        """Room for so many tokens."""

        room = 100

        def can_admit(self, request: Request) -> bool:
            held = [*self._prefilling, *self._decoding]
            return not held or sum(one.max_length for one in (*held, request)) <= self.room

    scheduler = Scheduler(Narrow(base))
    task = task_of(base)
    large, small = new_request(task, 90), [new_request(task, 4), new_request(task, 4)]
    for request in (small[0], large, small[1]):
        scheduler.add(request)
    for _ in range(3):
        chunks = scheduler.schedule(0.0)
        assert scheduler.running == [small[0]]
        advance(scheduler, chunks)
    advance(scheduler, scheduler.schedule(0.0))
    scheduler.schedule(0.0)
    assert scheduler.running == [large]
    assert list(scheduler.waiting) == [small[1]]


def test_what_nobody_watches_is_read_in_large_packs(make_base: Callable[..., Base]) -> None:
    base = make_base()
    scheduler = Scheduler(GenericRunner(base))
    for size in (600, 600, 1500):
        scheduler.add(new_request(task_of(base), size, streamed=False))
    lengths = []
    for _ in range(3):
        chunks = scheduler.schedule(0.0)
        lengths.append([chunk.length for chunk in chunks])
        advance(scheduler, chunks)
    # What does not fit is divided evenly; what room is left goes to the next.
    assert lengths == [[600, 300, 116], [1, 300, 692], [1, 1, 692]]
    assert PACK_TOKENS == 1024


def test_a_scored_prompt_comes_in_parts_with_bounded_logits(
    make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base()
    monkeypatch.setattr("onebase.engine.scheduler.LOGIT_BYTES", 4 * base.shape.vocabulary * 50)
    scheduler = Scheduler(GenericRunner(base))
    task = task_of(base)
    scored = new_request(task, 300, limit=0, score_from=120)
    both = new_request(task, 130, limit=2, score_from=0)
    scheduler.add(scored)
    scheduler.add(both)
    rows: dict[Request, list[int]] = {scored: [], both: []}
    while scheduler.running or scheduler.waiting:
        chunks = scheduler.schedule(0.0)
        assert sum(chunk.logits for chunk in chunks if not chunk.request.tokens) <= 50
        for chunk in chunks:
            last = chunk.request.computed + chunk.length
            rows[chunk.request] += range(last - chunk.logits, last)
        advance(scheduler, chunks)
        if scored.computed == scored.target_length:
            scheduler.remove(scored)
    assert rows[scored] == list(range(119, 299)), "each row that predicts a scored token, once"
    assert rows[both] == list(range(131)), "and the one that the first token is drawn from"


def simulate(
    base: Base, cost: Cost, *, every: float, seconds: float, noise: float = 0.1
) -> tuple[list[float], list[float], float]:
    """16 streams decode while prompts of 512 tokens arrive: the gaps between tokens while prompts
    were there to read, how long each prompt waited for its first token, and a step of decoding alone.
    """
    drawn = random.Random(1)
    task = task_of(base)
    scheduler = Scheduler(GenericRunner(base, slots=200), max_running=200)
    for _ in range(16):
        scheduler.add(new_request(task, 30, limit=1 << 20))
    prompts: list[Request] = []
    gaps, waits = [], []
    now, following = 0.0, 2.0
    while now < seconds:
        if now >= following:
            prompts.append(new_request(task, 512, limit=8))
            prompts[-1].arrived = now
            scheduler.add(prompts[-1])
            following += every
        chunks = scheduler.schedule(now)
        tokens = sum(chunk.length for chunk in chunks if not chunk.request.tokens)
        rows = sum(bool(chunk.request.tokens) for chunk in chunks)
        took = cost(rows, tokens) * drawn.uniform(1 - noise, 1 + noise)
        before = [item for item in prompts if not item.tokens]
        advance(scheduler, chunks)
        scheduler.observe(chunks, took)
        now += took
        waits += [now - item.arrived for item in before if item.tokens]
        if following > 2.0 and rows:
            gaps.append(took)
    return gaps, waits, cost(16, 0)


@pytest.mark.parametrize(
    ("name", "cost", "every"),
    [
        ("lean", lambda rows, tokens: 0.012 + 0.001 * rows + 0.001 * tokens, 1.2),
        ("quick reader", lambda rows, tokens: 0.012 + 0.001 * rows + 0.0004 * tokens, 1.0),
        ("slow", lambda rows, tokens: 0.1 + 0.006 * rows + 0.005 * tokens, 8.0),
        (
            "a pass of its own for prompts",
            lambda rows, tokens: 0.05 + 0.001 * rows + (0.05 + 0.0008 * tokens if tokens else 0.0),
            4.0,
        ),
    ],
)
def test_streams_stay_steady_while_prompts_arrive(
    name: str, cost: Cost, every: float, make_base: Callable[..., Base]
) -> None:
    gaps, waits, alone = simulate(make_base(), cost, every=every, seconds=120.0)
    middle, high = median(gaps), quantiles(gaps, n=100)[98]
    print(f"{name}: median {middle / alone:.2f}, p99 {high / middle:.2f}, {max(waits):.1f} s")
    assert len(waits) > 10
    assert middle <= 1.5 * alone
    assert high <= 3 * middle
    assert max(waits) <= (3.0 if name != "slow" else 7.0)
