"""Time from `onebase serve` to the first token, and the memory of the process at that point.

    python bench/serving/start.py --threads 2 --out FILE.jsonl

One start before the rounds fills the caches. Memory is the resident set after the first answer. The bar is 1.5
times the served weights plus the caches that /metrics reports. Also reported are the resident set of a Python
process that has only imported the same libraries, and the difference to it.
"""

import asyncio
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from clients import get
from results import machine, options, tell, versions
from servers import OurServer
from sides import environment

from onebase.model.fetch import resolve

SECONDS = 6.0
TIMES = 1.5
IMPORTS = """
import onebase.cli.server_start, onebase.engine.lean.quality, onebase.serving.app, re
print(re.search("VmRSS:.*?([0-9]+)", open("/proc/self/status").read())[1])
"""


def resident(process: int) -> int:
    """Resident bytes of a process and its children."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    bytes_here = 4096 * pages
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    return bytes_here + sum(resident(int(child)) for child in children.split())


def weight_bytes(base: str, precision: str) -> int:
    """Bytes of the base's weights as served: one or four for each fp32 weight in its files."""
    file_bytes = sum(file.stat().st_size for file in resolve(base).glob("*.safetensors"))
    return file_bytes // (4 if precision in ("w8a8", "auto") else 1)


async def reported(address: str) -> dict[str, float]:
    """The gauges of /metrics in bytes."""
    _, raw = await get(address, "/metrics")
    lines = [line for line in raw.decode().splitlines() if line and not line.startswith("#")]
    pairs = [line.rsplit(" ", 1) for line in lines]
    return {name: float(value) for name, value in pairs if "bytes" in name}


def main() -> None:
    parser = options(__doc__)
    arguments = parser.parse_args()
    seconds, ready, memory = [], [], []
    gauges: dict[str, float] = {}
    for number in range(arguments.rounds + 1):
        with OurServer(arguments.base, arguments.precision, arguments.threads) as server:
            if number:
                seconds.append(server.first_answer)
                ready.append(server.ready_seconds)
                memory.append(resident(server.process.pid))
                gauges = asyncio.run(reported(server.address))
    bare = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env=environment(arguments.threads),
        stdout=subprocess.PIPE,
        check=True,
    )
    imports = 1024 * int(bare.stdout)
    weights = weight_bytes(arguments.base, arguments.precision)
    cache = sum(value for name, value in gauges.items() if "cache" in name)
    bar = TIMES * weights + cache
    lines: list[dict[str, Any]] = [
        {
            "what": "first token after the start",
            "unit": "s",
            "median": statistics.median(seconds),
            "rounds": seconds,
            "ready": statistics.median(ready),
            "bar": SECONDS,
            "met": statistics.median(seconds) <= SECONDS,
        },
        {
            "what": "resident after the first answer",
            "unit": "MB",
            "median": statistics.median(memory) / 1e6,
            "rounds": [size / 1e6 for size in memory],
            "weights": weights / 1e6,
            "imports alone": imports / 1e6,
            "above them": (statistics.median(memory) - imports) / 1e6,
            "bar": bar / 1e6,
            "met": statistics.median(memory) <= bar,
        },
    ]
    facts = {"threads": arguments.threads, "precision": arguments.precision, "reported": gauges}
    tell(lines, {**facts, **machine(), **versions()}, arguments.out)


if __name__ == "__main__":
    main()
