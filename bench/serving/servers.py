"""The servers of a comparison: `onebase serve` and llama.cpp's, with the same interface."""

import asyncio
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clients import Reply, get, post, together
from sides import Process, Worker, environment, script

COMPLETIONS = "/v1/completions"
ONEBASE = "from onebase.cli.app import main; main()"


class OurServer(Process):
    """`onebase serve` on a free loopback port; it is ready once the constructor returns.

    `first_answer` is the seconds from the start of the process to its first token.
    """

    def __init__(
        self,
        base: str,
        precision: str,
        threads: int,
        *,
        workspace: Path | None = None,
        more: Sequence[str] = (),
        start_seconds: float = 300,
        own_session: bool = True,
    ) -> None:
        self._empty = tempfile.TemporaryDirectory()
        folder = workspace or Path(self._empty.name)
        self.address = f"http://127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-c", ONEBASE, "serve"]
        command += ["--host", "127.0.0.1", "--port", port, "--base", base]
        command += ["--precision", precision, "--workspace", str(folder), *more]
        began = time.perf_counter()
        super().__init__("onebase serve", command, environment(threads), own_session=own_session)
        self._wait(began + start_seconds)
        self.ready_seconds = time.perf_counter() - began
        self.ask(completion("base", [1, 2, 3], 1))
        self.first_answer = time.perf_counter() - began

    def _wait(self, until: float) -> None:
        while time.perf_counter() < until:
            if self.process.poll() is not None:
                raise SystemExit(f"onebase serve ended:\n{self.log()}")
            try:
                status, _ = asyncio.run(get(self.address, "/readyz", 5))
                if status == 200:
                    return
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                pass
            time.sleep(0.05)
        self.kill()
        raise SystemExit(f"onebase serve did not become ready:\n{self.log()}")

    def ask(self, body: dict[str, Any]) -> Reply:
        """One complete answer. Raises SystemExit on an error."""
        reply = asyncio.run(post(self.address, COMPLETIONS, body))
        if reply.status != 200:
            raise SystemExit(f"onebase serve: {reply.status} {reply.body}\n{self.log()}")
        return reply

    def end(self) -> None:
        """Send SIGTERM, so that it drains and ends."""
        self.process.send_signal(signal.SIGTERM)


class LlamaServer(Worker):
    """llama.cpp's server with `slots` slots."""

    def __init__(self, python: str, gguf: Path, slots: int, threads: int, *more: object) -> None:
        command = script(
            "worker_llamacpp.py",
            *("--gguf", gguf, "--slots", slots, "--threads", threads, *more),
            python=python,
        )
        super().__init__("llama.cpp", command, environment(threads))
        self.address = str(self.facts["address"])


def completion(task: str, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    """The request body for a greedy answer of exactly `tokens` tokens from `onebase serve`."""
    return {
        "model": task,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "min_tokens": tokens,
        "temperature": 0,
    }


def llama_completion(task: str, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    """The same for llama.cpp, which keeps an answer from ending early by `ignore_eos`. Its prompt cache is off."""
    body = completion(task, prompt, tokens)
    del body["min_tokens"]
    return {**body, "ignore_eos": True, "cache_prompt": False}


def speed(
    server: OurServer | LlamaServer,
    requests: Sequence[tuple[str, Sequence[int]]],
    tokens: int,
    *,
    stop: bool = True,
) -> float:
    """Generated tokens per second over HTTP. All `requests` are streamed concurrently; the time includes prompts.

    Raises SystemExit if an answer is an error or lacks tokens.
    """
    make = llama_completion if isinstance(server, LlamaServer) else completion
    server.wake()
    bodies = [make(task, prompt, tokens) for task, prompt in requests]
    replies, seconds = together(server.address, COMPLETIONS, bodies)
    if stop:
        server.stop()
    for reply in replies:
        if reply.status != 200 or reply.tokens != tokens:
            raise SystemExit(f"{server.name}: {reply.status}, {reply.tokens} tokens, {reply.body}")
    return sum(reply.tokens for reply in replies) / seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
