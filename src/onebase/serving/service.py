"""The state that all routes share: engine, catalog, admission, adapter cache, metrics."""

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
from onebase.serving.adapter_cache import AdapterCache
from onebase.serving.admission import Admission
from onebase.serving.catalog import Catalog
from onebase.serving.errors import ApiError, bad_field, internal_error, timed_out
from onebase.serving.metrics import Metrics
from onebase.serving.sequence_group import Dispatcher, SequenceGroup, SequenceSpec
from onebase.serving.settings import ServerSettings
from onebase.serving.token_text import TokenText

_REFRESH_SECONDS = 1.0


class Service:
    """One engine and its running requests. Must be created in the event loop that it serves."""

    def __init__(self, engine: Engine, catalog: Catalog, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics()
        self.admission = Admission(settings.limits)
        self.catalog = catalog
        self.dispatcher = Dispatcher(self.metrics)
        self.thread = EngineThread(engine, self.dispatcher.on_events)
        self.adapter_cache = AdapterCache(
            engine, self.thread, catalog.store, self.metrics, settings.adapter_bytes
        )
        self._texts: WeakKeyDictionary[Base, TokenText] = WeakKeyDictionary()
        self.ready = False
        self.failure: BaseException | None = None  # why the server could not start
        self.created = int(time.time())
        self._add_gauges()

    async def watch_workspace(self) -> None:
        """Keep the catalog up to date with the workspace, until cancelled."""
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            await asyncio.to_thread(self.catalog.refresh)

    @asynccontextmanager
    async def lease(
        self, model: str, sequences: int, log: dict[str, Any]
    ) -> AsyncIterator["Lease"]:
        """Load the task of `model`, and reserve room for `sequences` while the block runs. Adds fields of
        the request's log line to `log`. Raises ApiError.
        """
        began = time.perf_counter()
        offer = self.catalog.find(model)
        name = BASE_TASK if offer is None else offer.name
        log["model"] = name
        with self.admission.admit(sequences):
            async with self.adapter_cache.use(offer) as (engine_name, task):
                lease = Lease(self, name, engine_name, task, began, log)
                try:
                    yield lease
                finally:
                    lease.close()
                    self.admission.record_duration(time.perf_counter() - began)

    async def warm_up(self) -> None:
        """Generate a first answer, which compiles the kernels, and load the tasks of the settings."""
        sampling = Sampling(max_tokens=2)
        request = await asyncio.wrap_future(
            self.thread.submit(BASE_TASK, "Hello", sampling, streamed=False)
        )
        while request.finish_reason is None:
            await asyncio.sleep(0.01)
        if request.finish_reason == "error":
            raise internal_error()
        for task in self.settings.tasks:
            async with self.adapter_cache.use(self.catalog.find(task)):
                pass

    def record_start(self, start: "asyncio.Task[None]") -> None:
        """Record the exception of a failed start. The server then exits with it."""
        if not start.cancelled():
            self.failure = start.exception()

    def texts(self, base: Base) -> TokenText:
        """The texts of a base's tokens. A fully fine-tuned task may have its own tokenizer."""
        if base not in self._texts:
            self._texts[base] = TokenText(base.tokenizer)
        return self._texts[base]

    def _add_gauges(self) -> None:
        gauge = self.metrics.add_gauge
        gauge(
            "requests_in_flight", "Running and waiting sequences.", lambda: self.admission.sequences
        )
        gauge("requests_running", "Running sequences.", lambda: self._stats("running"))
        gauge("requests_waiting", "Sequences in the queue.", lambda: self._stats("waiting"))
        gauge("adapters_loaded", "Adapters in memory.", lambda: len(self.adapter_cache))
        gauge("adapter_bytes", "Bytes of adapters in memory.", lambda: self.adapter_cache.bytes)
        for name, text in (
            ("cache_tokens", "Tokens in the KV cache."),
            ("cache_capacity", "Tokens that the KV cache has room for."),
            ("cache_bytes", "Bytes of the KV cache."),
        ):
            gauge(name, text, lambda name=name: self._stats(name))  # type: ignore[misc]

    def _stats(self, name: str) -> float:
        return float(self.engine.stats()[name])


@dataclass
class Lease:
    """The use of a task by one HTTP request. `model` is the task's name in the response: `task@version`."""

    service: Service
    model: str
    engine_name: str
    task: LoadedTask
    began: float
    log: dict[str, Any]
    created: int = field(default_factory=lambda: int(time.time()))
    _groups: list[SequenceGroup] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """The response's system_fingerprint: all that the numbers depend on (base, precision, kernel,
        adapter).
        """
        base = self.task.base
        name = base.name.rstrip("/").rpartition("/")[2]
        parts = (
            f"{name}-{base.fingerprint[:8]}",
            base.precision.text,
            self.service.engine.kernel_of(base),
            self.task.hash[:12] or BASE_TASK,
        )
        return "/".join(part.replace(" ", "-") for part in parts)

    def log_text(self, name: str, text: object) -> None:
        """Add a prompt or an answer to the request's log line, if the settings allow it."""
        if self.service.settings.log_prompts:
            self.log[name] = text

    def head(self, id: str, kind: str) -> dict[str, Any]:
        """The first fields of a chat or a completions response."""
        return {
            "id": id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    @property
    def texts(self) -> TokenText:
        """The texts of the task's tokens."""
        return self.service.texts(self.task.base)

    async def submit(
        self, specs: Sequence[SequenceSpec], param: str, *, format_param: str | None = None
    ) -> SequenceGroup:
        """Submit sequences to the engine. `param` is the request field of the prompts, `format_param`
        that of the answer's format.

        Raises ApiError if a prompt is too long or the format is invalid.
        """
        for spec in specs:
            self.check_length(len(spec.prompt), param)
        group = SequenceGroup(self.task.task, self.service.metrics, self.began)
        self._groups.append(group)
        service = self.service
        deadline = service.settings.limits.seconds + self.began
        try:
            async with asyncio.timeout(max(0.0, deadline - time.perf_counter())):
                await service.dispatcher.submit(group, service.thread, self.engine_name, specs)
        except TimeoutError as error:
            raise timed_out() from error
        except UsageError as error:
            raise bad_field(format_param or param, error.message, error.remedy) from error
        group.truncate_after(deadline - time.perf_counter())
        return group

    def close(self) -> None:
        """Abort running sequences and record the metrics."""
        if not self._groups:
            return
        for group in self._groups:
            self.service.dispatcher.release(group, self.service.thread)
        metrics, task = self.service.metrics, self.task.task
        requests = [request for group in self._groups for request in group.requests]
        prompt_tokens = sum(len(request.prompt) for request in requests)
        generated_tokens = sum(len(request.tokens) for request in requests)
        metrics.prompt_tokens.labels(task).inc(prompt_tokens)
        metrics.generated_tokens.labels(task).inc(generated_tokens)
        metrics.request_seconds.labels(task).observe(time.perf_counter() - self.began)
        self.log["prompt_tokens"] = prompt_tokens
        self.log["completion_tokens"] = generated_tokens

    def check_length(self, tokens: int, param: str) -> None:
        """Raise ApiError for a prompt of `tokens` tokens if that is too long."""
        limit = self.service.settings.limits.prompt_tokens
        context = self.task.base.context
        if context is not None:
            fitting = context - self.task.contribution.prefix_tokens - 1
            limit = fitting if limit is None else min(limit, fitting)
        if limit is not None and tokens > limit:
            raise ApiError(
                400,
                "context_length_exceeded",
                say(
                    f"The prompt has {tokens} tokens; {limit} are allowed.",
                    f"提示有 {tokens} 个词元，上限为 {limit}。",
                ),
                say("Shorten the prompt.", "请缩短提示。"),
                param=param,
            )
