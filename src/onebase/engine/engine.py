"""The engine: one base in memory answering for every loaded task, mixed in any batch.

Requests come and go: `add_request` queues one, `step` adds a token to all that run, `abort` drops
one. `generate` and `classify` are loops over them. All may be called from several threads.
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
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pool import BASE_TASK, AdapterPool, LoadedTask
from onebase.engine.prompt import Ids, Prompt, prompt_ids, request_for, require_scorable
from onebase.engine.request import Event, FinishReason, Request
from onebase.engine.runner import runner_for
from onebase.engine.sampling import Sampling
from onebase.engine.turns import Turns
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base

_TEXTS = 16  # are classified side by side


@dataclass(frozen=True)
class Answer:
    """One answer. `prompt` is the text the model saw, `tokens` the answer's length; `margin` the
    smallest distance between the two best logits on the way, 0 where one token led by nothing.
    """

    task: str
    version: int
    prompt: str
    text: str
    tokens: int
    finish_reason: FinishReason
    margin: float


class Engine:
    """Answers for the tasks of `adapters`, and for `base`, which may be left out where every task
    brings a base of its own, as full fine-tuning does. Up to `slots` requests of a base run at once.

    Raises UsageError when an adapter was trained on another base, CorruptFileError when its
    files are damaged.
    """

    def __init__(
        self, base: Base | None = None, adapters: Iterable[StoredAdapter] = (), *, slots: int = 64
    ) -> None:
        self._slots = slots
        self._turns = Turns()  # held by whoever runs a model or changes the tasks
        self._making = Lock()
        self._batches: dict[Base, Batch] = {}
        self._added: deque[Request] = deque()
        self._events: list[Event] = []
        self.tasks = AdapterPool(lambda base: self._batch(base).runner, self._turns, self._forget)
        if base is not None:
            self.tasks.load_bare(BASE_TASK, base=base)
        for adapter in adapters:
            self.load(adapter)

    @property
    def base(self) -> Base:
        """What the name `base` answers on. Raises UsageError where there is none."""
        return self.tasks.base

    def load(
        self, adapter: StoredAdapter, *, name: str | None = None, base: Base | None = None
    ) -> LoadedTask:
        """Load a stored adapter into the running engine under its task's name, or `name`, to answer
        on `base`, or on the engine's own. Requests that began with what answered to it before finish
        with that.
        """
        return self.tasks.load_stored(adapter, name or adapter.task, base)

    def unload(self, name: str) -> None:
        """Forget a task; requests that began with it finish. Raises UsageError when it is not
        loaded or is the base.
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
        steady: bool = True,
    ) -> Request:
        """Queue a request: a user's text, turns, or token ids. `also` names adapters that answer
        together with the task, behind it.

        With `score_from` the log-probabilities of the prompt's tokens from that index on are noted,
        and with `score_only` nothing is generated. `steady`: somebody watches its tokens come, so
        long prompts of others are read a little at a time.
        Raises UsageError for an unknown task, for adapters that can't be combined, and for a prompt
        that is empty or too long.
        """
        tasks = tuple(self.tasks[name] for name in (task, *also))
        request = request_for(
            tasks, prompt, sampling or Sampling(), score_from=score_from, score_only=score_only
        )
        request.steady = steady
        self._batch(request.base).prepare(request)
        self._added.append(request)
        return request

    def step(self) -> list[Event]:
        """Add a token to every sequence that runs and read some of the prompts that wait; what
        happened since the last call. Where the pass fails, the requests in it end with "error".
        """
        with self._turns:
            self._advance()
            events, self._events = self._events, []
            return events

    def abort(self, request: Request) -> None:
        """Drop a request between two steps, whatever it has come to; its place in the KV cache is
        free. Nothing happens where it has ended.
        """
        with self._turns:
            self._take_in()
            batch = self._batches.get(request.base)
            if batch is not None:
                batch.abort(request)
            self._collect()

    def abort_all(self) -> None:
        """Drop every request."""
        with self._turns:
            self._take_in()
            for batch in list(self._batches.values()):
                for request in batch.requests:
                    batch.abort(request)
            self._collect()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do and nothing to report."""
        batches = list(self._batches.values())
        return not self._added and not self._events and all(batch.idle for batch in batches)

    def kernel_of(self, base: Base) -> str:
        """What runs a base, as Runner.kernel names it."""
        return self._batch(base).runner.kernel

    def stats(self) -> dict[str, int]:
        """Numbers to watch: how many requests wait and run, and the sums of Runner.stats."""
        sums = {"waiting": len(self._added), "running": 0}
        for batch in list(self._batches.values()):
            for key, number in batch.stats().items():
                sums[key] = sums.get(key, 0) + number
        return sums

    def generate(
        self,
        requests: Sequence[tuple[str, Prompt]],
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answer (task, prompt) pairs in one mixed batch, in the order asked.

        A request's draws depend on `sampling.seed` and its place in the list alone.
        Raises UsageError for an unknown task or an empty prompt.
        """
        sampling = sampling or Sampling()
        made = []
        for index, (name, prompt) in enumerate(requests):
            own = sampling
            if sampling.seed is not None:
                own = sampling.model_copy(update={"seed": (sampling.seed + index) % (1 << 63)})
            made.append(request_for((self.tasks[name],), prompt, own))
        self.run(made)
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
            for request, (_, prompt) in zip(made, requests, strict=True)
        ]

    def classify(
        self,
        task: str,
        texts: Sequence[str],
        labels: Sequence[str] | None = None,
        *,
        also: Sequence[str] = (),
    ) -> list[list[LabelScore]]:
        """Every label's log-probability for each text, best first; nothing is sampled.

        `labels` defaults to those the task was trained with. Raises UsageError where there are
        none.
        """
        tasks = tuple(self.tasks[name] for name in (task, *also))
        names = tuple(labels or tasks[0].labels)
        if not names:
            raise UsageError(
                say(f"The task {task!r} has no labels.", f"任务 {task!r} 没有标签。"),
                say(
                    "Train it on rows with text and label, or name labels.",
                    "请用含 text 与 label 的数据训练，或给出标签。",
                ),
            )
        prompts = [prompt_ids(tasks, text) for text in texts]
        answers = [tuple(tasks[0].template.answer_ids(label)) for label in names]
        if prompts:
            require_scorable(tasks, prompts, answers)
        logprobs = self._logprobs(tasks, prompts, answers)
        return [
            ranked(names, logprobs[at : at + len(names)])
            for at in range(0, len(logprobs), len(names))
        ]

    def run(self, requests: Sequence[Request]) -> None:
        """Queue requests and step until all of them have ended, reporting no events of theirs."""
        for request in requests:
            request.reported = request.steady = False
            if request.detokenizer is None:
                # What can't be done is refused here, before others' requests are stepped.
                self._batch(request.base).prepare(request)
        self._added.extend(requests)
        left = list(reversed(requests))
        try:
            while left:
                with self._turns:
                    while left and left[-1].finish_reason is not None:
                        left.pop()
                    if left:
                        self._advance()
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
        """The log-probability of every answer behind every prompt, all of the first prompt's
        before all of the second's.
        """
        if isinstance(self._batch(tasks[0].base).runner, GenericRunner):
            found: list[float] = []
            for score in scoring_packs(tasks, prompts, answers):
                with self._turns:
                    found += score()
            return found
        scored = [scoring_requests(tasks, prompt, answers) for prompt in prompts]
        for at in range(0, len(scored), _TEXTS):
            # One of each text's first: the others reuse what it has computed of the prompt.
            self.run([requests[0] for requests in scored[at : at + _TEXTS]])
            self.run([item for requests in scored[at : at + _TEXTS] for item in requests[1:]])
        return [logprob(request) for requests in scored for request in requests]

    def _batch(self, base: Base) -> Batch:
        """The batch of a base, made when it is first asked for."""
        with self._making:
            if base not in self._batches:
                runner = runner_for(base, slots=self._slots)
                self._batches[base] = Batch(runner, slots=self._slots)
            return self._batches[base]

    def _advance(self) -> None:
        """A step of every base."""
        self._take_in()
        try:
            for batch in list(self._batches.values()):
                if not batch.idle:
                    batch.step()
        finally:
            self._collect()

    def _take_in(self) -> None:
        while self._added:
            request = self._added.popleft()
            self._batch(request.base).add(request)

    def _collect(self) -> None:
        """Take the batches' events, and forget the tasks of the requests that ended."""
        for batch in list(self._batches.values()):
            self._events += batch.events
            batch.events.clear()
            ended = {task for request in batch.ended for task in request.tasks}
            batch.ended.clear()
            for task in ended:
                self._forget(task)

    def _forget(self, task: LoadedTask) -> None:
        """Free what is kept of a task that no name answers to and no request uses any more."""
        if self.tasks.holds(task) or any(task in request.tasks for request in self._live()):
            return
        batch = self._batches.get(task.base)
        if batch is None:
            return
        batch.runner.forget(task)
        bases = {other.base for other in self.tasks.values()}
        if task.base not in bases and batch.idle:
            del self._batches[task.base]

    def _live(self) -> Iterator[Request]:
        for batch in list(self._batches.values()):
            yield from batch.requests
        yield from list(self._added)
