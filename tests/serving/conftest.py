"""A store of adapters on a tiny base, and a server over it in this process."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from fastapi import FastAPI

from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.model.base import Base
from onebase.serving.app import create_app
from onebase.serving.keys import KeyStore
from onebase.serving.server import Server, bind
from onebase.serving.service import Service
from onebase.serving.settings import ServerSettings

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "ia3": {},
    "prompt-tuning": {"virtual_tokens": 5},
    "p-tuning-v2": {"virtual_tokens": 6},
}

StoreTask = Callable[..., StoredAdapter]
Start = Callable[..., "Running"]


def storing(store: AdapterStore, base: Base) -> StoreTask:
    """What stores a shaken adapter as a task's next version."""

    def store_task(
        task: str,
        method: str = "lora",
        *,
        seed: int = 0,
        instruction: str | None = None,
        promote: bool = True,
        on: Base | None = None,
        record: dict[str, Any] | None = None,
    ) -> StoredAdapter:
        used = on or base
        adapter = build_adapter(used, method, METHODS[method], init_text="hello, you", seed=seed)
        torch.manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        known = {
            "base": used.name,
            "base_fingerprint": used.fingerprint,
            "precision": used.precision.text,
            "method": method,
            "template": Template(used.tokenizer, instruction=instruction).config(),
            **(record or {}),
        }
        return store.add(
            task, lambda folder: save_adapter(adapter, folder, used), known, promote=promote
        )

    return store_task


def store_tasks(store_task: StoreTask) -> None:
    """A task of each kind: support (lora, two versions), tone, mood, reply."""
    store_task("support", instruction="Be kind.", seed=1)
    store_task("support", instruction="Be kind.", seed=2)
    store_task("tone", "ia3", seed=3)
    store_task("mood", "prompt-tuning", seed=4, record={"labels": ["good", "bad"]})
    store_task("reply", "p-tuning-v2", seed=5)


@dataclass
class Running:
    """A server in a thread of this process, and a client of it."""

    url: str
    app: FastAPI
    server: Server
    http: httpx2.Client
    store: AdapterStore

    @property
    def service(self) -> Service:
        service: Service = self.app.state.service
        return service

    def chat(self, model: str = "base", text: str = "hello", **fields: Any) -> httpx2.Response:
        messages = [{"role": "user", "content": text}]
        body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0, **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def text(self, model: str = "base", text: str = "hello", **fields: Any) -> str:
        """A whole answer, greedy unless the fields say otherwise."""
        answer = self.chat(model, text, **fields)
        assert answer.status_code == 200, answer.text
        content: str = answer.json()["choices"][0]["message"]["content"]
        return content

    def events(self, path: str, **fields: Any) -> list[Any]:
        """The data of a stream's events, `[DONE]` too."""
        with self.http.stream("POST", path, json={**fields, "stream": True}) as stream:
            assert stream.status_code == 200, stream.read()
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@contextmanager
def starting(base: Base, store: AdapterStore) -> Iterator[Start]:
    """What starts a server over a store, with settings, and waits until it is ready. All of them end
    with the block.
    """
    running: list[tuple[Running, threading.Thread]] = []

    def start(*, slots: int = 8, on: Base | None = None, **settings: Any) -> Running:
        server_settings = ServerSettings.model_validate(
            {"port": 0, "drain_seconds": 5.0, **settings}
        )
        ready = threading.Event()
        engine = Engine(on or base, slots=slots)
        keys = KeyStore(store.workspace, {})
        app = create_app(engine, store, server_settings, keys, on_ready=lambda _: ready.set())
        listening = bind("127.0.0.1", 0)
        server = Server(app, server_settings.drain_seconds)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        running_server = Running(url, app, server, httpx2.Client(base_url=url, timeout=60), store)
        running.append((running_server, thread))
        assert ready.wait(60)
        return running_server

    try:
        yield start
    finally:
        for running_server, thread in running:
            running_server.http.close()
            running_server.server.handle_exit(signal.SIGTERM, None)
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def base(make_base: Callable[..., Base]) -> Base:
    return make_base()


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(Workspace(tmp_path / "ws"))


@pytest.fixture
def store_task(store: AdapterStore, base: Base) -> StoreTask:
    """As `storing`, into this test's store."""
    return storing(store, base)


@pytest.fixture
def start(base: Base, store: AdapterStore) -> Iterator[Start]:
    """As `starting`, over this test's store."""
    with starting(base, store) as begin:
        yield begin


@pytest.fixture
def own_server(start: Start, store_task: StoreTask) -> Running:
    """A server with a task of each kind, for this test alone."""
    store_tasks(store_task)
    return start()


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a task of each kind, for tests that change nothing. Its base is a folder."""
    base = Base.load(str(tiny_folder), device="cpu")
    store = AdapterStore(Workspace(tmp_path_factory.mktemp("served")))
    store_tasks(storing(store, base))
    with starting(base, store) as begin:
        yield begin()
