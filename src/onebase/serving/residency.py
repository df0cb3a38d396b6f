"""Which adapters are in memory. Those used least recently leave when there are too many.

One that left, or that its files were replaced of, comes from disk at the next request for it. Files
are read outside of the engine's thread; only what has to run through the base waits for a step.
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
# What an adapter's files can make the readers raise: a record that was edited by hand, too.
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
class Resident:
    """An adapter in memory: its name in the engine, the files it was read from, who uses it."""

    name: str
    task: LoadedTask
    offer: Offer
    bytes: int
    users: int = 0
    stale: bool = False


@dataclass
class Residency:
    """The adapters of a running engine, `limit` bytes of them, those in use aside."""

    engine: Engine
    thread: EngineThread
    store: AdapterStore
    metrics: Metrics
    limit: int
    # By `task@version`, the least recently used first.
    _residents: dict[str, Resident] = field(default_factory=dict)
    _loading: dict[tuple[str, object], asyncio.Task[Resident]] = field(default_factory=dict)
    _serial: "count[int]" = field(default_factory=count)

    @property
    def bytes(self) -> int:
        """What the adapters in memory take, with what the pass keeps of them in a form of its own."""
        return self._own_bytes + self.engine.stats().get("adapter_bytes", 0)

    @property
    def _own_bytes(self) -> int:
        return sum(resident.bytes for resident in self._residents.values())

    def __contains__(self, name: object) -> bool:
        return name in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    @asynccontextmanager
    async def hold(self, offer: Offer | None) -> AsyncIterator[tuple[str, LoadedTask]]:
        """The task of an offer (the base for None), in memory while the block runs, and its name in
        the engine. Raises ApiError naming the adapter when it can't be loaded.
        """
        if offer is None:
            yield BASE_TASK, self.engine.tasks[BASE_TASK]
            return
        resident = await self._resident(offer)
        while resident.stale:  # it had to leave again before this task went on
            resident = await self._resident(offer)
        resident.users += 1
        try:
            yield resident.name, resident.task
        finally:
            resident.users -= 1
            if resident.stale and not resident.users:
                self._unload(resident)
            self._make_room()

    def drop(self, task: str) -> None:
        """Let go of every version of a task; one in use leaves when it is used no more."""
        for name in [name for name in self._residents if name.partition("@")[0] == task]:
            self._retire(name)

    async def _resident(self, offer: Offer) -> Resident:
        known = self._residents.get(offer.name)
        if known is not None and known.offer.state == offer.state:
            self._residents[offer.name] = self._residents.pop(offer.name)  # the latest used
            return known
        key = (offer.name, offer.state)
        if key not in self._loading:
            self._loading[key] = asyncio.create_task(self._load(offer))
            self._loading[key].add_done_callback(lambda _: self._loading.pop(key, None))
        # Shielded: others may wait for it too when this client leaves.
        return await asyncio.shield(self._loading[key])

    async def _load(self, offer: Offer) -> Resident:
        name = f"{offer.name}#{next(self._serial)}"
        try:
            task = await self._read(offer, name)
        except _UNREADABLE as error:
            fields = {"adapter": offer.name, "error": str(error)}
            log.error("adapter not loadable", extra={"fields": fields})
            raise broken_adapter(offer.name) from error
        resident = Resident(name, task, offer, task.bytes)
        if offer.name in self._residents:
            self._retire(offer.name)
        self._residents[offer.name] = resident
        self.metrics.adapter_loads.labels(offer.adapter.task).inc()
        log.info("adapter loaded", extra={"fields": {"adapter": offer.name, "bytes": task.bytes}})
        return resident

    async def _read(self, offer: Offer, name: str) -> LoadedTask:
        def read() -> LoadedTask:
            self.store.verify(offer.adapter)
            return self.engine.load(offer.adapter, name=name)

        return await asyncio.to_thread(read)

    def _make_room(self) -> None:
        """Let the least recently used go until the rest is within the limit."""
        own = self._own_bytes
        # What the pass keeps is freed a step later: until then each adapter stands for its share.
        share = self.bytes / own if own else 1.0
        for name, resident in list(self._residents.items()):
            if self._own_bytes * share <= self.limit:
                return
            if not resident.users:
                self.metrics.adapter_evictions.inc()
                self._retire(name)

    def _retire(self, name: str) -> None:
        resident = self._residents.pop(name)
        resident.stale = True
        if not resident.users:
            self._unload(resident)

    def _unload(self, resident: Resident) -> None:
        self.thread.call(lambda: self.engine.unload(resident.name))
