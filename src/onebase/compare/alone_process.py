"""Starting the process of an arm that is trained alone, showing its events, and taking its costs."""

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from onebase.compare.result import Cost
from onebase.errors import OnebaseError, error_from_values
from onebase.language import say
from onebase.runs.observer import JobStart, Observer

_log = logging.getLogger("onebase")


def run_alone(request: Mapping[str, Any], observer: Observer) -> Cost:
    """What one training took, from the start of its process to its end. The adapter is in the request's
    workspace, unless the training diverged.

    Raises OnebaseError where the training fails; Ctrl-C ends the process too.
    """
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin.write(json.dumps(request).encode())
        stdin.seek(0)
        result: dict[str, Any] = {}
        with subprocess.Popen(
            [sys.executable, "-m", "onebase.compare.alone"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C ends it from here
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    event = json.loads(line)
                    result |= event.get("result", {})
                    _pass_on(event, observer)
                process.wait()
            finally:
                process.kill()
        seconds = time.perf_counter() - began
        stderr.seek(0)
        printed = stderr.read().decode(errors="replace").strip()
    if not result:
        _log.debug(printed)
        reason = (printed.splitlines() or [""])[-1]
        raise _failed(str(request["arm"]["task"]), process.returncode, reason)
    return Cost(result["peak_memory_bytes"], seconds, result["cpu_seconds"])


def _pass_on(event: Mapping[str, Any], observer: Observer) -> None:
    if "error" in event:
        raise error_from_values(event["error"])
    if "started" in event:
        observer.started(
            [JobStart(**{**job, "facts": tuple(job["facts"])}) for job in event["started"]]
        )
    elif "step" in event:
        observer.step(event["task"], event["step"], event["record"])
    elif "evaluated" in event:
        observer.evaluated(event["task"], event["evaluated"], event["record"])
    elif "noted" in event:
        observer.noted(event["noted"])


def _failed(task: str, code: int, reason: str) -> OnebaseError:
    if code == -9:
        return OnebaseError(
            say(
                f"The system stopped the training of {task}: memory ran out.",
                f"系统终止了 {task} 的训练：内存不足。",
            ),
            say(
                "Leave the method out with --methods, or lower batch_size or max_tokens.",
                "请用 --methods 去掉该方法，或减小 batch_size 或 max_tokens。",
            ),
        )
    return OnebaseError(
        say(f"The training of {task} failed: {reason}", f"{task} 的训练失败：{reason}"),
        say(
            "Leave the method out with --methods, or train it alone with onebase train --debug.",
            "请用 --methods 去掉该方法，或用 onebase train --debug 单独训练以查看原因。",
        ),
    )
