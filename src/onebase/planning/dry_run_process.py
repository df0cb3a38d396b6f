"""The process of a dry run: started, watched, and stopped before it uses up the memory."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from onebase.errors import OnebaseError, error_from_values
from onebase.language import language, say
from onebase.training.job import Job
from onebase.training.run_config import as_given

_EVERY = 0.05  # seconds between two readings of its memory


def run_dry_run(
    jobs: Sequence[Job], *, base: str, precision: str | None, limit: int
) -> dict[str, Any]:
    """What `dry_run` measured, and the `seconds` of its process from start to end.

    A process that takes more than `limit` bytes is stopped; the result is then `needed` alone, the bytes
    that were not enough. Raises what the jobs raise, and OnebaseError where the dry run fails.
    """
    request = request_for(jobs, base=base, precision=precision)
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        stdin.write(json.dumps(request).encode())
        stdin.seek(0)
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "onebase.planning.dry_run"],
            stdin=stdin,
            stdout=out,
            stderr=err,
        )
        try:
            most = _watch(process, limit)
        finally:
            process.kill()
            process.wait()
        seconds = time.perf_counter() - began
        out.seek(0)
        err.seek(0)
        answer, stderr = out.read().decode(), err.read().decode(errors="replace")
    if most > limit or process.returncode == -9:  # killed here, or by the system for its memory
        return {"needed": max(most, limit)}
    if process.returncode != 0:
        raise _failed(stderr)
    measured: dict[str, Any] = json.loads(answer.strip().splitlines()[-1])
    if "out_of_memory" in measured:
        return {"needed": max(most, limit)}
    if "error" in measured:
        raise error_from_values(measured["error"])
    return {"seconds": seconds, **measured}


def request_for(jobs: Sequence[Job], *, base: str, precision: str | None) -> dict[str, Any]:
    """The request to the process, in values that JSON has."""
    return {
        "base": base,
        "precision": precision,
        "jobs": [as_given(job) for job in jobs],
        "language": language(),
        "threads": torch.get_num_threads(),
    }


def _watch(process: "subprocess.Popen[bytes]", limit: int) -> int:
    """Wait for the end of `process`, or stop it where it holds more than `limit` bytes. Returns the
    largest memory read.
    """
    most = 0
    while process.poll() is None:
        try:
            most = max(most, psutil.Process(process.pid).memory_info().rss)
        except psutil.Error:  # it has ended meanwhile
            break
        if most > limit:
            process.kill()
            break
        time.sleep(_EVERY)
    process.wait()
    return most


def _failed(stderr: str) -> OnebaseError:
    reason = (stderr.strip().splitlines() or [""])[-1]
    return OnebaseError(
        say(f"The dry run of the training failed: {reason}", f"试训练失败：{reason}"),
        say(
            "Train on a few of its rows with onebase train --debug to see where it fails.",
            "请用少量数据运行 onebase train --debug 查看原因。",
        ),
    )
