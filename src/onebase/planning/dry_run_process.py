"""Asking for a trial: a process of its own, watched, and stopped before the memory is used up."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import psutil
import torch

from onebase.errors import (
    CapacityError,
    CorruptFileError,
    DataError,
    MissingBaseError,
    OnebaseError,
    UsageError,
)
from onebase.language import language, say
from onebase.training.job import Job

_ERRORS = {
    kind.code: kind
    for kind in (
        OnebaseError,
        UsageError,
        DataError,
        CapacityError,
        MissingBaseError,
        CorruptFileError,
    )
}
_EVERY = 0.05  # seconds between two looks at the trial's memory


def run_probe(
    jobs: Sequence[Job], *, base: str, precision: str | None, limit: int
) -> dict[str, Any]:
    """What `probe` measured, and the `seconds` of its process from start to end.

    Where it takes more than `limit` bytes it is stopped, and all there is is `needed`: the bytes
    that were not enough. Raises what the jobs raise, and OnebaseError where the trial fails.
    """
    request = request_for(jobs, base=base, precision=precision)
    with (
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "onebase.planning.dry_run"],
            stdin=asked,
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
        answer, complaint = out.read().decode(), err.read().decode(errors="replace")
    if most > limit or process.returncode == -9:  # ours, or the system's own when memory ends
        return {"needed": max(most, limit)}
    if process.returncode != 0:
        raise _failed(complaint)
    measured: dict[str, Any] = json.loads(answer.strip().splitlines()[-1])
    if "out_of_memory" in measured:
        return {"needed": max(most, limit)}
    if "error" in measured:
        error = measured["error"]
        raise _ERRORS.get(error["code"], OnebaseError)(error["message"], error["remedy"])
    return {"seconds": seconds, **measured}


def request_for(jobs: Sequence[Job], *, base: str, precision: str | None) -> dict[str, Any]:
    """What the trial's process is asked, as values that JSON has."""
    return {
        "base": base,
        "precision": precision,
        "jobs": [_plain(job) for job in jobs],
        "language": language(),
        "threads": torch.get_num_threads(),
    }


def _plain(job: Job) -> dict[str, Any]:
    held_out = None if job.held_out is None else str(job.held_out)
    return {**asdict(job), "data": str(job.data), "held_out": held_out}


def _watch(process: "subprocess.Popen[bytes]", limit: int) -> int:
    """Wait for the end of `process`, or stop it where it holds more than `limit` bytes; the most
    that was seen.
    """
    most = 0
    while process.poll() is None:
        try:
            most = max(most, psutil.Process(process.pid).memory_info().rss)
        except psutil.Error:  # it has just ended
            break
        if most > limit:
            process.kill()
            break
        time.sleep(_EVERY)
    process.wait()
    return most


def _failed(complaint: str) -> OnebaseError:
    reason = (complaint.strip().splitlines() or [""])[-1]
    return OnebaseError(
        say(f"The trial of the training failed: {reason}", f"试训练失败：{reason}"),
        say(
            "Train a few rows of it with onebase train --debug to see where.",
            "请用少量数据运行 onebase train --debug 查看原因。",
        ),
    )
