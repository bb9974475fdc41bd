"""Metrics for Prometheus: https://prometheus.io/docs/practices/naming/"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        labels = ["path", "status"]
        self.requests = Counter("npgpt2_requests", "Requests answered.", labels, registry=r)
        self.refused = Counter("npgpt2_refused", "Requests refused: queue full.", registry=r)
        self.held = Gauge("npgpt2_texts_held", "Texts admitted and not finished.", registry=r)
        self.running = Gauge("npgpt2_slots_taken", "Slots in prefill or decode.", registry=r)
        self.read = Counter("npgpt2_prompt_tokens", "Prompt tokens.", registry=r)
        self.reused = Counter(
            "npgpt2_prompt_tokens_reused", "Prompt tokens from the prefix cache.", registry=r
        )
        self.written = Counter("npgpt2_completion_tokens", "Generated tokens.", registry=r)
        self.first_token = Histogram(
            "npgpt2_time_to_first_token_seconds", "Time from admission to the first token.",
            buckets=SECONDS, registry=r,
        )  # fmt: skip
        self.duration = Histogram(
            "npgpt2_request_seconds", "Time from the headers to the end of the answer.", ["path"],
            buckets=SECONDS, registry=r,
        )  # fmt: skip

    def text(self) -> bytes:
        return generate_latest(self.registry)
