"""Metrics for Prometheus. All series about requests are labelled with the task."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_APIS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/classify")
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 30, 60)
_BETWEEN = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
_WHOLE = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_BATCH = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class Metrics:
    """The series of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        task = ["task"]
        self.requests = self._counter(
            "requests", "Requests by HTTP status.", ["task", "api", "status"]
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", task)
        self.generated_tokens = self._counter("generated_tokens", "Tokens of answers.", task)
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From a request to its first token.", task, _FIRST
        )
        self.time_per_token = self._histogram(
            "time_per_output_token_seconds", "Between two tokens of an answer.", task, _BETWEEN
        )
        self.request_seconds = self._histogram(
            "request_seconds", "From a request to the end of its answer.", task, _WHOLE
        )
        self.batch = self._histogram("batch_size", "Sequences with an event in a step.", [], _BATCH)
        self.adapter_loads = self._counter("adapter_loads", "Adapters read into memory.", task)
        self.adapter_evictions = self._counter(
            "adapter_evictions", "Adapters removed from memory to make room for others.", []
        )

    def count_request(self, path: str, status: int, task: str) -> None:
        """Count a request, if its path is one of the generation APIs."""
        if path in _APIS:
            self.requests.labels(task, path, str(status)).inc()

    def add_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that calls `value` when it is scraped."""
        gauge = Gauge(f"onebase_{name}", text, registry=self.registry)
        gauge.set_function(value)

    def text(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"onebase_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: list[str], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(f"onebase_{name}", text, labels, buckets=buckets, registry=self.registry)
