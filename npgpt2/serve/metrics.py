"""What a server tells Prometheus: https://prometheus.io/docs/practices/naming/"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Metrics:
    """One server's numbers, in a registry of their own."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        labels = ["path", "status"]
        self.requests = Counter("npgpt2_requests", "Requests answered.", labels, registry=r)
        self.refused = Counter("npgpt2_refused", "Requests that found the queue full.", registry=r)
        self.held = Gauge("npgpt2_texts_held", "Texts admitted and not ended.", registry=r)
        self.running = Gauge("npgpt2_slots_taken", "Slots that read or write.", registry=r)
        self.read = Counter("npgpt2_prompt_tokens", "Tokens of prompts.", registry=r)
        self.reused = Counter(
            "npgpt2_prompt_tokens_reused", "Of these, known from an earlier prompt.", registry=r
        )
        self.written = Counter("npgpt2_completion_tokens", "Tokens written.", registry=r)
        self.first_token = Histogram(
            "npgpt2_time_to_first_token_seconds", "From a request's admission to its first token.",
            buckets=SECONDS, registry=r,
        )  # fmt: skip
        self.duration = Histogram(
            "npgpt2_request_seconds", "From a request's head to its answer's end.", ["path"],
            buckets=SECONDS, registry=r,
        )  # fmt: skip

    def text(self) -> bytes:
        return generate_latest(self.registry)
