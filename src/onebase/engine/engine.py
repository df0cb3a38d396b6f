"""The engine: one base in memory answers for all loaded tasks, mixed in one batch.

`add_request` queues a request, `step` generates a token for all running requests, `abort` drops
one. `generate` and `classify` are loops over these. All may be called from several threads.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from onebase.adapters.store import StoredAdapter
from onebase.engine.batch import Batch
from onebase.engine.classification import (
    LabelScore,
    logprob,
    ranked,
    scoring_packs,
    scoring_requests,
)
from onebase.engine.fair_lock import FairLock
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pool import BASE_TASK, AdapterPool, LoadedTask
from onebase.engine.prompt import Ids, Prompt, prompt_ids, request_for, require_scorable
from onebase.engine.request import Event, FinishReason, Request
from onebase.engine.runner import runner_for
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base

_CLASSIFIED_TEXTS = 16  # per batch


@dataclass(frozen=True)
class Answer:
    """One answer. `prompt` is the text that the model was given, `tokens` the length of the answer.
    `margin` is the smallest distance between the two highest logits over all steps; 0 for a tie.
    """

    task: str
    version: int
    prompt: str
    text: str
    tokens: int
    finish_reason: FinishReason
    margin: float


class Engine:
    """Answers for the tasks of `adapters` and for `base`. `base` may be omitted if every task has its
    own, as after full fine-tuning. Up to `slots` requests per base run at once.

    Raises UsageError if an adapter was trained on another base, CorruptFileError if its files are
    damaged.
    """

    def __init__(
        self, base: Base | None = None, adapters: Iterable[StoredAdapter] = (), *, slots: int = 64
    ) -> None:
        self._slots = slots
        self._lock = FairLock()  # held while a model runs or tasks change
        self._batches_lock = Lock()
        self._batches: dict[Base, Batch] = {}
        self._queued: deque[Request] = deque()
        self._events: list[Event] = []
        self.tasks = AdapterPool(lambda base: self._batch(base).runner, self._lock, self._forget)
        if base is not None:
            self.tasks.load_bare(BASE_TASK, base=base)
        for adapter in adapters:
            self.load(adapter)

    @property
    def base(self) -> Base:
        """The base of the task `base`. Raises UsageError if there is none."""
        return self.tasks.base

    def load(
        self, adapter: StoredAdapter, *, name: str | None = None, base: Base | None = None
    ) -> LoadedTask:
        """Load a stored adapter into the running engine, as `name` or under its task's name, on `base`
        or the engine's base. A loaded task of that name is replaced; its running requests finish on
        the old version.
        """
        return self.tasks.load_stored(adapter, name or adapter.task, base)

    def unload(self, name: str) -> None:
        """Unload a task; its running requests finish. Raises UsageError if it is not loaded or is the
        base.
        """
        self.tasks.unload(name)

    def add_request(
        self,
        task: str,
        prompt: Prompt | Sequence[int],
        sampling: Sampling | None = None,
        *,
        also: Sequence[str] = (),
        score_from: int | None = None,
        score_only: bool = False,
        streamed: bool = True,
    ) -> Request:
        """Queue a request. The prompt is a user's text, turns, or token ids. `also` names adapters that
        are applied together with the task, after it.

        With `score_from`, the log-probabilities of the prompt's tokens from that index on are recorded;
        with `score_only`, nothing is generated. `streamed`: a client reads the tokens as they come, so
        long prompts of other requests are processed in small parts.
        Raises UsageError for an unknown task, for adapters that cannot be combined, and for a prompt
        that is empty or too long.
        """
        tasks = tuple(self.tasks[name] for name in (task, *also))
        request = request_for(
            tasks, prompt, sampling or Sampling(), score_from=score_from, score_only=score_only
        )
        request.streamed = streamed
        self._batch(request.base).prepare(request)
        self._queued.append(request)
        return request

    def step(self) -> list[Event]:
        """Generate a token for every running sequence and process some tokens of waiting prompts.
        Returns the events since the last call. If the pass fails, its requests end with "error".
        """
        with self._lock:
            self._step_batches()
            events, self._events = self._events, []
            return events

    def abort(self, request: Request) -> None:
        """Abort a request between two steps and free its KV cache. Does nothing if it has ended."""
        with self._lock:
            self._accept()
            batch = self._batches.get(request.base)
            if batch is not None:
                batch.abort(request)
            self._collect()

    def abort_all(self) -> None:
        """Abort all requests."""
        with self._lock:
            self._accept()
            for batch in list(self._batches.values()):
                for request in batch.requests:
                    batch.abort(request)
            self._collect()

    @property
    def idle(self) -> bool:
        """Whether there is no request and no event."""
        batches = list(self._batches.values())
        return not self._queued and not self._events and all(batch.idle for batch in batches)

    def kernel_of(self, base: Base) -> str:
        """The Runner.kernel of a base."""
        return self._batch(base).runner.kernel

    def stats(self) -> dict[str, int]:
        """How many requests wait and run, and the sums of Runner.stats."""
        sums = {"waiting": len(self._queued), "running": 0}
        for batch in list(self._batches.values()):
            for key, number in batch.stats().items():
                sums[key] = sums.get(key, 0) + number
        return sums

    def generate(
        self,
        requests: Sequence[tuple[str, Prompt]],
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answer (task, prompt) pairs in one mixed batch; the answers are in the same order.

        A request's samples depend only on `sampling.seed` and its index in the list.
        Raises UsageError for an unknown task or an empty prompt.
        """
        sampling = sampling or Sampling()
        queued = []
        for index, (name, prompt) in enumerate(requests):
            seeded = sampling
            if sampling.seed is not None:
                seeded = sampling.model_copy(update={"seed": (sampling.seed + index) % (1 << 63)})
            queued.append(request_for((self.tasks[name],), prompt, seeded))
        self.run(queued)
        return [
            Answer(
                task=request.tasks[0].task,
                version=request.tasks[0].version,
                prompt=request.tasks[0].template.prompt_text(prompt),
                text=request.text.strip(),
                tokens=len(request.tokens),
                finish_reason=request.finish_reason or "length",
                margin=min(request.margins, default=0.0),
            )
            for request, (_, prompt) in zip(queued, requests, strict=True)
        ]

    def classify(
        self,
        task: str,
        texts: Sequence[Prompt | Sequence[int]],
        labels: Sequence[str] | None = None,
        *,
        also: Sequence[str] = (),
    ) -> list[list[LabelScore]]:
        """The log-probability of every label for each text (or conversation, or prompt as token
        ids), the most likely label first. Nothing is sampled.

        `labels` defaults to those that the task was trained with. Raises UsageError if there are none.
        """
        tasks = tuple(self.tasks[name] for name in (task, *also))
        names = tuple(labels or tasks[0].labels)
        if not names:
            raise UsageError(
                say(f"The task {task!r} has no labels.", f"任务 {task!r} 没有标签。"),
                say(
                    "Train it on rows with text and label, or name labels.",
                    "请用含有 text 和 label 的数据训练，或指定标签。",
                ),
            )
        prompts = [prompt_ids(tasks, text) for text in texts]
        answers = [tuple(tasks[0].template.answer_ids(label)) for label in names]
        if prompts:
            require_scorable(tasks, prompts, answers)
        logprobs = self._logprobs(tasks, prompts, answers)
        return [
            ranked(names, logprobs[start : start + len(names)])
            for start in range(0, len(logprobs), len(names))
        ]

    def run(self, requests: Sequence[Request]) -> None:
        """Queue requests and step until all of them have ended, without events for them."""
        for request in requests:
            request.emit_events = request.streamed = False
            if request.detokenizer is None:
                # Raises for what cannot be applied, before any other request is stepped.
                self._batch(request.base).prepare(request)
        self._queued.extend(requests)
        unfinished = list(reversed(requests))
        try:
            while unfinished:
                with self._lock:
                    while unfinished and unfinished[-1].finish_reason is not None:
                        unfinished.pop()
                    if unfinished:
                        self._step_batches()
        finally:
            for request in requests:
                if request.finish_reason is None:
                    self.abort(request)
        for request in requests:
            if request.finish_reason == "error":
                raise request.failure()

    def _logprobs(
        self, tasks: tuple[LoadedTask, ...], prompts: Sequence[Ids], answers: Sequence[Ids]
    ) -> list[float]:
        """The log-probability of every answer after every prompt: all answers after the first prompt,
        then all after the second, and so on.
        """
        if isinstance(self._batch(tasks[0].base).runner, GenericRunner):
            logprobs: list[float] = []
            for score in scoring_packs(tasks, prompts, answers):
                with self._lock:
                    logprobs += score()
            return logprobs
        by_prompt = [scoring_requests(tasks, prompt, answers) for prompt in prompts]
        for start in range(0, len(by_prompt), _CLASSIFIED_TEXTS):
            group = by_prompt[start : start + _CLASSIFIED_TEXTS]
            # One request per text first: the others reuse its KV cache of the prompt.
            self.run([requests[0] for requests in group])
            self.run([request for requests in group for request in requests[1:]])
        return [logprob(request) for requests in by_prompt for request in requests]

    def _batch(self, base: Base) -> Batch:
        """The batch of a base, created by the first call."""
        with self._batches_lock:
            if base not in self._batches:
                runner = runner_for(base, slots=self._slots)
                self._batches[base] = Batch(runner, slots=self._slots)
            return self._batches[base]

    def _step_batches(self) -> None:
        """Run a step of every base."""
        self._accept()
        try:
            for batch in list(self._batches.values()):
                if not batch.idle:
                    batch.step()
        finally:
            self._collect()

    def _accept(self) -> None:
        """Move the queued requests to their bases' batches."""
        while self._queued:
            request = self._queued.popleft()
            self._batch(request.base).add(request)

    def _collect(self) -> None:
        """Collect the batches' events, and free unused tasks of the requests that ended."""
        for batch in list(self._batches.values()):
            self._events += batch.events
            batch.events.clear()
            ended = {task for request in batch.ended for task in request.tasks}
            batch.ended.clear()
            for task in ended:
                self._forget(task)

    def _forget(self, task: LoadedTask) -> None:
        """Free the cached data of a task that is unloaded and that no request uses any more."""
        if self.tasks.holds(task) or any(task in request.tasks for request in self._requests()):
            return
        batch = self._batches.get(task.base)
        if batch is None:
            return
        batch.runner.forget(task)
        bases = {other.base for other in self.tasks.values()}
        if task.base not in bases and batch.idle:
            del self._batches[task.base]

    def _requests(self) -> Iterator[Request]:
        for batch in list(self._batches.values()):
            yield from batch.requests
        yield from list(self._queued)
