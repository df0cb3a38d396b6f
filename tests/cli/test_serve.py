"""`onebase serve` and `onebase keys`, run as commands."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from onebase.adapters.workspace import Workspace
from onebase.serving.server_lock import server_runs

COMMAND = "from onebase.cli.app import main; main()"
Serve = Callable[..., "tuple[subprocess.Popen[str], dict[str, Any]]"]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for compiled kernels: they are the same for every server here."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def serve(desk: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start `onebase serve …` in a new process; returns it and its JSON line when it is ready."""
    started = []
    monkeypatch.setenv("ONEBASE_CACHE", str(kernels))

    def start(*arguments: str) -> "tuple[subprocess.Popen[str], dict[str, Any]]":
        command = [sys.executable, "-c", COMMAND, "serve", "--port", "0", "--json", *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=desk
        )
        started.append(process)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def chat(url: str, model: str, **headers: str) -> httpx2.Response:
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": model, "messages": messages, "max_tokens": 4}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_serve_until_ctrl_c(trained: Path, base: str, serve: Serve) -> None:
    process, ready = serve("--precision", "fp32")
    assert ready["precision"] == "fp32"
    assert sorted(ready["tasks"]) == ["mood", "support"]
    url = ready["url"]
    assert httpx2.get(f"{url}/readyz").status_code == 200
    assert server_runs(Workspace(trained))
    answer = chat(url, "support")
    assert answer.json()["model"] == "support@2"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err
    assert not server_runs(Workspace(trained))
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["event"] == "request" and "v1" in line["path"]]
    assert line["model"] == "support@2"
    assert line["status"] == 200
    assert line["completion_tokens"] > 0
    assert line["request"] == answer.headers["x-request-id"]
    assert "hello" not in err
    for word in ("Loading", "Compiling", "Ready"):
        assert word in err
    assert str(trained) not in answer.text


def test_some_tasks_and_prompts_in_the_log(trained: Path, serve: Serve) -> None:
    process, ready = serve("--log-prompts", "--tasks", "support", "--precision", "fp32")
    assert ready["tasks"] == ["support"]
    answer = chat(ready["url"], "support").json()
    assert chat(ready["url"], "mood").status_code == 409
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (line,) = [json.loads(line) for line in err.splitlines() if '"prompt"' in line]
    assert line["prompt"] == ["hello"]
    assert line["answer"] == [answer["choices"][0]["message"]["content"]]


def test_a_host_that_other_machines_can_reach_needs_a_key(
    onebase, trained: Path, serve: Serve
) -> None:
    refused = onebase("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.code == 2
    assert "onebase keys new" in refused.err
    key = onebase("keys", "new", "--scope", "use", "--name", "test", "--json").json
    _, ready = serve("--host", "0.0.0.0", "--precision", "fp32")
    url = ready["url"].replace("0.0.0.0", "127.0.0.1")
    assert chat(url, "support").status_code == 401
    token = {"Authorization": f"Bearer {key['key']}"}
    assert chat(url, "support", **token).status_code == 200
    assert (
        httpx2.post(f"{url}/v1/adapters", json={"task": "mood"}, headers=token).status_code == 403
    )
    assert onebase("keys", "revoke", key["id"]).code == 0
    assert chat(url, "support", **token).status_code == 401


def test_a_port_that_is_taken(onebase, trained: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        began = time.monotonic()
        refused = onebase("serve", "--port", str(taken.getsockname()[1]))
    assert refused.code == 2
    assert "--port" in refused.err
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tasks", "suport"), "suport"),
        (("--tasks", "support@1"), "--tasks support"),
        (("--adapter-memory", "much"), "500MB"),
        (("--port", "70000"), "port"),
        (("--concurrent", "0"), "concurrent"),
        (("--precision", "fp7"), "fp7"),
        (("--host", "no such host"), "--host"),
    ],
)
def test_wrong_usage(onebase, trained: Path, arguments: tuple[str, ...], words: str) -> None:
    if "--port" not in arguments:
        arguments = (*arguments, "--port", "0")
    if "no such host" in arguments:
        onebase("keys", "new")
    refused = onebase("serve", *arguments)
    assert refused.code == 2
    assert words in refused.err


def test_the_server_does_not_start_if_a_task_cannot_be_loaded(onebase, trained: Path) -> None:
    weights = trained / "adapters" / "mood" / "1" / "adapter_model.safetensors"
    weights.write_bytes(b"no weights")
    refused = onebase("serve", "--tasks", "mood", "--port", "0")
    assert refused.code == 1
    assert "mood@1" in refused.err
    assert "Ready" not in refused.err


def test_tasks_of_several_bases(onebase, trained: Path, base: str) -> None:
    for name in ("one", "two"):
        record = trained / "adapters" / "mood" / "1" / "onebase.json"
        value = json.loads(record.read_text(encoding="utf-8"))
        record.write_text(json.dumps({**value, "base": f"another-{name}"}), encoding="utf-8")
    refused = onebase("serve", "--tasks", "support,mood", "--port", "0")
    assert refused.code == 2
    assert "another-two" in refused.err


def test_keys(onebase, desk: Path) -> None:
    assert onebase("keys", "list", "--json").json == {"keys": []}
    first = onebase("keys", "new", "--name", "laptop", "--json").json
    second = onebase("keys", "new", "--scope", "admin")
    assert second.out.strip().startswith("ob-")
    listed = onebase("keys", "list", "--json").json["keys"]
    assert [(key["name"], key["scope"]) for key in listed] == [("laptop", "use"), ("", "admin")]
    assert set(listed[0]) == {"id", "name", "scope", "created"}
    assert onebase("keys", "new", "--scope", "root").code == 2
    assert onebase("keys", "revoke", first["id"]).code == 0
    assert onebase("keys", "revoke", first["id"]).code == 2
    assert len(onebase("keys", "list", "--json").json["keys"]) == 1
    assert oct(os.stat("ws/keys.json").st_mode & 0o777) == "0o600"
