"""The cache of adapters in memory, with least-recently-used eviction.

If an adapter was evicted or its files were replaced, the next request for it loads it from disk. Files are
read outside the engine's thread. Only prompt KV that has to be computed waits for a step.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from onebase.adapters.store import AdapterStore
from onebase.engine.engine import Engine
from onebase.engine.pool import BASE_TASK, LoadedTask
from onebase.engine.thread import EngineThread
from onebase.errors import OnebaseError
from onebase.serving.catalog import Offer
from onebase.serving.errors import broken_adapter
from onebase.serving.metrics import Metrics

log = logging.getLogger("onebase.serving")
# The errors that damaged files and hand-edited records can cause.
_UNREADABLE = (
    OnebaseError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    MemoryError,
)


@dataclass
class CachedAdapter:
    """An adapter in memory: its name in the engine, the offer that it was loaded from, and the number of
    its users. A `stale` one is unloaded when it has no users.
    """

    name: str
    task: LoadedTask
    offer: Offer
    bytes: int
    users: int = 0
    stale: bool = False


@dataclass
class AdapterCache:
    """The adapters of a running engine: at most `limit` bytes, except for those in use."""

    engine: Engine
    thread: EngineThread
    store: AdapterStore
    metrics: Metrics
    limit: int
    # By `task@version`, the least recently used first.
    _adapters: dict[str, CachedAdapter] = field(default_factory=dict)
    _loading: dict[tuple[str, object], asyncio.Task[CachedAdapter]] = field(default_factory=dict)
    _serial: "count[int]" = field(default_factory=count)

    @property
    def bytes(self) -> int:
        """The memory of the adapters, including the runner's copies in its own format."""
        return self._loaded_bytes + self.engine.stats().get("adapter_bytes", 0)

    @property
    def _loaded_bytes(self) -> int:
        return sum(cached.bytes for cached in self._adapters.values())

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def __len__(self) -> int:
        return len(self._adapters)

    @asynccontextmanager
    async def use(self, offer: Offer | None) -> AsyncIterator[tuple[str, LoadedTask]]:
        """The engine's name and the task of an offer (the base for None). The adapter stays in memory while
        the block runs. Raises ApiError with the adapter's name if it can't be loaded.
        """
        if offer is None:
            yield BASE_TASK, self.engine.tasks[BASE_TASK]
            return
        cached = await self._get(offer)
        while cached.stale:  # it was removed before this task resumed
            cached = await self._get(offer)
        cached.users += 1
        try:
            yield cached.name, cached.task
        finally:
            cached.users -= 1
            if cached.stale and not cached.users:
                self._unload(cached)
            self._evict()

    def remove(self, task: str) -> None:
        """Remove every version of a task; one in use is unloaded when it has no users."""
        for name in [name for name in self._adapters if name.partition("@")[0] == task]:
            self._remove(name)

    async def _get(self, offer: Offer) -> CachedAdapter:
        cached = self._adapters.get(offer.name)
        if cached is not None and cached.offer.state == offer.state:
            self._adapters[offer.name] = self._adapters.pop(offer.name)  # now the most recent
            return cached
        key = (offer.name, offer.state)
        if key not in self._loading:
            self._loading[key] = asyncio.create_task(self._load(offer))
            self._loading[key].add_done_callback(lambda _: self._loading.pop(key, None))
        # Shielded: other requests may wait for the same load if this client disconnects.
        return await asyncio.shield(self._loading[key])

    async def _load(self, offer: Offer) -> CachedAdapter:
        name = f"{offer.name}#{next(self._serial)}"

        def read() -> LoadedTask:
            self.store.verify(offer.adapter)
            return self.engine.load(offer.adapter, name=name)

        try:
            task = await asyncio.to_thread(read)
        except _UNREADABLE as error:
            fields = {"adapter": offer.name, "error": str(error)}
            log.error("adapter not loadable", extra={"fields": fields})
            raise broken_adapter(offer.name) from error
        cached = CachedAdapter(name, task, offer, task.bytes)
        if offer.name in self._adapters:
            self._remove(offer.name)
        self._adapters[offer.name] = cached
        self.metrics.adapter_loads.labels(offer.adapter.task).inc()
        log.info("adapter loaded", extra={"fields": {"adapter": offer.name, "bytes": task.bytes}})
        return cached

    def _evict(self) -> None:
        """Remove the least recently used adapters until the rest is within the limit."""
        loaded = self._loaded_bytes
        # The runner's copies are freed a step later, so each adapter counts with its share of them.
        factor = self.bytes / loaded if loaded else 1.0
        for name, cached in list(self._adapters.items()):
            if self._loaded_bytes * factor <= self.limit:
                return
            if not cached.users:
                self.metrics.adapter_evictions.inc()
                self._remove(name)

    def _remove(self, name: str) -> None:
        cached = self._adapters.pop(name)
        cached.stale = True
        if not cached.users:
            self._unload(cached)

    def _unload(self, cached: CachedAdapter) -> None:
        self.thread.call(lambda: self.engine.unload(cached.name))
