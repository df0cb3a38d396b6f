"""The sides of a comparison: processes that stay loaded and are measured in turn.

Each side is a worker that reads one JSON job per line and answers with one JSON line. While one side is
measured, the others are stopped (SIGSTOP), because some of them poll when they are idle.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

BENCH = Path(__file__).parent
# Importing onebase sets these for this process; a peer has OpenMP's defaults.
CHOSEN = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}


def environment(threads: int, **more: str) -> dict[str, str]:
    """The environment of a side that may use `threads` threads."""
    inherited = {key: value for key, value in os.environ.items() if key not in CHOSEN}
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**inherited, **dict.fromkeys(counts, str(threads)), **more}


class Process:
    """A process with its own process group, which is stopped, continued and ended as a whole, and by default with
    its own session. It ends with this process, unless this process is killed by SIGKILL.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        variables: dict[str, str],
        *,
        own_session: bool = True,
    ) -> None:
        self.name = name
        signal.signal(signal.SIGTERM, _leave)
        atexit.register(self.kill)
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=variables,
            start_new_session=own_session,
            process_group=None if own_session else 0,
        )

    def wake(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def end(self) -> None:
        """Close its stdin, which tells it to end."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        """Kill it with all of its children."""
        atexit.unregister(self.kill)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it; kill it if it does not end within 20 s."""
        if self.process.poll() is None:
            self.wake()
            self.end()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                print(f"{self.name} does not end by itself", file=sys.stderr)
        self.kill()
        self.process.wait()
        self._log.close()

    def log(self, characters: int = 4000) -> str:
        """The end of its stderr."""
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")[-characters:]

    def failures(self) -> list[str]:
        """The ends of the tracebacks on its stderr, without duplicates."""
        lines = self.log(1 << 24).splitlines()
        return list(dict.fromkeys(line[-1500:] for line in lines if "Traceback" in line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Worker(Process):
    """A process that answers jobs. `facts` is the first JSON line that it prints, when it is ready."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        variables: dict[str, str],
        *,
        start_seconds: float = 300,
        seconds: float = 900,
    ) -> None:
        super().__init__(name, command, variables)
        self._seconds = seconds
        self.facts: dict[str, Any] = self._read(start_seconds)
        self.stop()

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to one job; the process runs only during it."""
        assert self.process.stdin is not None
        self.wake()
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self._read(self._seconds)
        self.stop()
        return answer

    def speed(self, requests: Sequence[tuple[str, Sequence[int]]], tokens: int) -> float:
        """Generated tokens per second; the time includes prompts."""
        answer = self.ask({"requests": requests, "tokens": tokens})
        return float(answer["tokens"] / answer["seconds"])

    def _read(self, seconds: float) -> dict[str, Any]:
        """The next line that is a JSON object, because libraries sometimes print to stdout."""
        assert self.process.stdout is not None
        timer = threading.Timer(seconds, self.kill)
        timer.daemon = True  # otherwise it would delay the end of this process
        timer.start()
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):
            line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.kill()
            raise SystemExit(f"{self.name} gave no answer within {seconds} s:\n{self.log()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


def script(name: str, *arguments: object, python: str | None = None) -> list[str]:
    """The command that runs a worker of this folder."""
    return [python or sys.executable, str(BENCH / name), *map(str, arguments)]
