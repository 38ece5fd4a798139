"""What ``/metrics`` tells Prometheus."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROUTING_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.05, 0.25)


class Monitoring:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def make(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **more: Any) -> Any:
            return kind(f"lcia_{name}", text, labels, registry=self.registry, **more)

        self.requests = make(Counter, "requests", "Requests answered.", ("path", "status"))
        self.request_seconds = make(
            Histogram,
            "request_seconds",
            "Time to the end of a response.",
            ("path",),
            buckets=SECONDS,
        )
        self.first_token_seconds = make(
            Histogram, "first_token_seconds", "Time to the first token.", buckets=SECONDS
        )
        self.routing_seconds = make(
            Histogram, "routing_seconds", "Time to choose a group.", buckets=ROUTING_SECONDS
        )
        self.tokens = make(Counter, "tokens", "Tokens read and generated.", ("kind",))
        self.routed = make(Counter, "routed", "Answers by group and reason.", ("group", "reason"))
        self.cancelled = make(Counter, "cancelled", "Answers given up by their clients.")
        self.failed = make(Counter, "failed", "Answers that failed, by code.", ("code",))

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(f"lcia_{name}", text, registry=self.registry).set_function(value)

    def page(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
