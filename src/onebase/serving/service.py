"""What every route needs: the engine, what is offered, who is let in, what is counted."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from onebase.engine.engine import Engine
from onebase.engine.pool import BASE_TASK, LoadedTask
from onebase.engine.sampling import Sampling
from onebase.engine.thread import EngineThread
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.serving.admission import Admission
from onebase.serving.catalog import Catalog
from onebase.serving.errors import ApiError, bad_field, internal_error, timed_out
from onebase.serving.exchange import Dispatcher, Exchange, Wanted
from onebase.serving.metrics import Metrics
from onebase.serving.residency import Residency
from onebase.serving.settings import ServerSettings
from onebase.serving.token_text import TokenText

_WATCH_SECONDS = 1.0


class Service:
    """One engine, and the requests that are under way. Made in the event loop that it serves."""

    def __init__(self, engine: Engine, catalog: Catalog, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics()
        self.admission = Admission(settings.limits)
        self.catalog = catalog
        self.dispatcher = Dispatcher(self.metrics)
        self.thread = EngineThread(engine, self.dispatcher.on_events)
        self.residency = Residency(
            engine, self.thread, catalog.store, self.metrics, settings.adapter_bytes
        )
        self._texts: WeakKeyDictionary[Base, TokenText] = WeakKeyDictionary()
        self.ready = False
        self.failure: BaseException | None = None  # why it could not start
        self.created = int(time.time())
        self._watch_metrics()

    async def watch_workspace(self) -> None:
        """Keep the catalog as the workspace is, until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            await asyncio.to_thread(self.catalog.refresh)

    @asynccontextmanager
    async def lease(
        self, model: str, sequences: int, log: dict[str, Any]
    ) -> AsyncIterator["Lease"]:
        """The task that `model` names, in memory, and room for so many sequences, while the block
        runs. `log` gets what the request's line shows. Raises ApiError.
        """
        began = time.perf_counter()
        offer = self.catalog.find(model)
        name = BASE_TASK if offer is None else offer.name
        log["model"] = name
        with self.admission.admit(sequences):
            async with self.residency.hold(offer) as (engine_name, task):
                lease = Lease(self, name, engine_name, task, began, log)
                try:
                    yield lease
                finally:
                    lease.close()
                    self.admission.took(time.perf_counter() - began)

    async def warm_up(self) -> None:
        """Have a first answer drawn, which compiles what answers need, and load the tasks that the
        settings name.
        """
        sampling = Sampling(max_tokens=2)
        request = await asyncio.wrap_future(
            self.thread.submit(BASE_TASK, "Hello", sampling, streamed=False)
        )
        while request.finish_reason is None:
            await asyncio.sleep(0.01)
        if request.finish_reason == "error":
            raise internal_error()
        for task in self.settings.tasks:
            async with self.residency.hold(self.catalog.find(task)):
                pass

    def note_start(self, started: "asyncio.Task[None]") -> None:
        """Note how the start ended: a server that can't answer ends, with the reason."""
        if not started.cancelled():
            self.failure = started.exception()

    def log_text(self, log: dict[str, Any], name: str, text: object) -> None:
        """Put a prompt or an answer into a request's log line, where the settings say so."""
        if self.settings.log_prompts:
            log[name] = text

    def texts(self, base: Base) -> TokenText:
        """The texts of a base's tokens. A full fine-tuned task may have a tokenizer of its own."""
        if base not in self._texts:
            self._texts[base] = TokenText(base.tokenizer)
        return self._texts[base]

    def fingerprint(self, task: LoadedTask) -> str:
        """Names all that an answer's numbers depend on: base, kernel, precision, adapter."""
        base = task.base
        name = base.name.rstrip("/").rpartition("/")[2]
        parts = (
            f"{name}-{base.fingerprint[:8]}",
            base.precision.text,
            self.engine.kernel_of(base),
            task.hash[:12] or BASE_TASK,
        )
        return "/".join(part.replace(" ", "-") for part in parts)

    def _watch_metrics(self) -> None:
        watch = self.metrics.watch
        watch(
            "requests_in_flight", "Sequences answered or waiting.", lambda: self.admission.sequences
        )
        watch("requests_running", "Sequences answered now.", lambda: self._stats("running"))
        watch("requests_waiting", "Sequences in the queue.", lambda: self._stats("waiting"))
        watch("adapters_loaded", "Adapters in memory.", lambda: len(self.residency))
        watch("adapter_bytes", "Bytes of adapters in memory.", lambda: self.residency.bytes)
        for name, text in (
            ("cache_tokens", "Tokens in the KV cache."),
            ("cache_capacity", "Tokens that the KV cache has room for."),
            ("cache_bytes", "Bytes of the KV cache."),
        ):
            watch(name, text, lambda name=name: self._stats(name))  # type: ignore[misc]

    def _stats(self, name: str) -> float:
        return float(self.engine.stats()[name])


@dataclass
class Lease:
    """One HTTP request's hold on a task. `model` is what the reply says: `task@version`."""

    service: Service
    model: str
    engine_name: str
    task: LoadedTask
    began: float
    log: dict[str, Any]
    created: int = field(default_factory=lambda: int(time.time()))
    _exchanges: list[Exchange] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """The reply's system_fingerprint."""
        return self.service.fingerprint(self.task)

    @property
    def texts(self) -> TokenText:
        """The texts of the tokens that it answers in."""
        return self.service.texts(self.task.base)

    async def ask(
        self, sequences: Sequence[Wanted], param: str, *, form: str | None = None
    ) -> Exchange:
        """Have the engine answer. `param` is the field that the prompts stand in, `form` the one
        with the answer's form.

        Raises ApiError where a prompt is too long or a form can't be used.
        """
        for sequence in sequences:
            self.check_length(len(sequence.prompt), param)
        exchange = Exchange(self.task.task, self.service.metrics, self.began)
        self._exchanges.append(exchange)
        service = self.service
        end = service.settings.limits.seconds + self.began
        try:
            async with asyncio.timeout(max(0.0, end - time.perf_counter())):
                await service.dispatcher.submit(
                    exchange, service.thread, self.engine_name, sequences
                )
        except TimeoutError as error:
            raise timed_out() from error
        except UsageError as error:
            raise bad_field(form or param, error.message, error.remedy) from error
        exchange.cut_off_after(end - time.perf_counter())
        return exchange

    def close(self) -> None:
        """Count what was done, abort what still runs."""
        if not self._exchanges:
            return
        for exchange in self._exchanges:
            self.service.dispatcher.release(exchange, self.service.thread)
        metrics, task = self.service.metrics, self.task.task
        requests = [request for exchange in self._exchanges for request in exchange.requests]
        read = sum(len(request.prompt) for request in requests)
        said = sum(len(request.tokens) for request in requests)
        metrics.prompt_tokens.labels(task).inc(read)
        metrics.generated_tokens.labels(task).inc(said)
        metrics.whole.labels(task).observe(time.perf_counter() - self.began)
        self.log["prompt_tokens"], self.log["completion_tokens"] = read, said

    def check_length(self, tokens: int, param: str) -> None:
        """Raise ApiError for a prompt of so many tokens where that is too long."""
        most = self.service.settings.limits.prompt_tokens
        context = self.task.base.context
        if context is not None:
            room = context - self.task.contribution.prefix_tokens - 1
            most = room if most is None else min(most, room)
        if most is not None and tokens > most:
            raise ApiError(
                400,
                "context_length_exceeded",
                say(
                    f"The prompt has {tokens} tokens; {most} are allowed.",
                    f"提示有 {tokens} 个词元，上限为 {most}。",
                ),
                say("Shorten the prompt.", "请缩短提示。"),
                param=param,
            )
