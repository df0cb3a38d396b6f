"""Requests /healthz from a server every 50 ms until stdin ends, then prints the latencies (seconds)."""

import http.client
import json
import select
import sys
import time
from urllib.parse import urlsplit

EVERY = 0.05


def main() -> None:
    place = urlsplit(sys.argv[1])
    latencies: list[float] = []
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        began = time.perf_counter()
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        connection.close()
        latencies.append(time.perf_counter() - began)
    print(json.dumps(latencies), flush=True)


if __name__ == "__main__":
    main()
