"""Metrics in Prometheus' format: the names that dashboards of other servers know, with the prefix unspool_."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 100000)


class Metrics:
    """Counters and histograms of one server.

    Args:
        running, waiting: return the numbers of prompts now.
        cache_usage: returns the share of the KV cache that is reserved now, from 0 to 1.
    """

    def __init__(
        self, running: Callable[[], float], waiting: Callable[[], float], cache_usage: Callable[[], float]
    ) -> None:
        self._registry = registry = CollectorRegistry()
        Gauge("unspool_num_requests_running", "Prompts that run now.", registry=registry).set_function(running)
        Gauge("unspool_num_requests_waiting", "Prompts that wait now.", registry=registry).set_function(waiting)
        Gauge(
            "unspool_kv_cache_usage_perc", "Share of the KV cache that is reserved, 0 to 1.", registry=registry
        ).set_function(cache_usage)
        self.prompt_tokens = Counter("unspool_prompt_tokens", "Prompt tokens.", registry=registry)
        self.cache_queries = Counter(
            "unspool_prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", registry=registry
        )
        self.cache_hits = Counter(
            "unspool_prefix_cache_hits", "Prompt tokens that the prefix cache provided.", registry=registry
        )
        self.generation_tokens = Counter("unspool_generation_tokens", "Generated tokens.", registry=registry)
        self.success = Counter(
            "unspool_request_success", "Finished outputs.", ["finished_reason", "strategy"], registry=registry
        )
        self.errors = Counter("unspool_request_errors", "Requests with an error.", ["status"], registry=registry)
        self.rejections = Counter(
            "unspool_admission_rejections", "Requests turned away by a full queue.", registry=registry
        )
        self.first_token = self._seconds("time_to_first_token_seconds", "From arrival to the first token.")
        self.inter_token = self._seconds("inter_token_latency_seconds", "Between two pieces of one stream.")
        self.latency = self._seconds("e2e_request_latency_seconds", "From arrival to the end.")
        self.queue_time = self._seconds("request_queue_time_seconds", "From arrival to the start.")
        self.of_prompts = self._tokens("request_prompt_tokens", "Tokens of a prompt.")
        self.of_outputs = self._tokens("request_generation_tokens", "Generated tokens of a prompt.")

    def _seconds(self, name: str, help: str) -> Histogram:
        return Histogram(f"unspool_{name}", help, buckets=_SECONDS, registry=self._registry)

    def _tokens(self, name: str, help: str) -> Histogram:
        return Histogram(f"unspool_{name}", help, buckets=_TOKENS, registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class Watch:
    """Times of one request, written to the metrics as they pass."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._arrived = self._last = time.perf_counter()
        self._seen = False

    def started(self) -> None:
        """Note that the request leaves the queue."""
        self._metrics.queue_time.observe(time.perf_counter() - self._arrived)

    def token(self) -> None:
        """Note that new tokens have come."""
        now = time.perf_counter()
        (self._metrics.inter_token if self._seen else self._metrics.first_token).observe(
            now - (self._last if self._seen else self._arrived)
        )
        self._seen, self._last = True, now

    @property
    def seconds(self) -> float:
        """Seconds since the arrival."""
        return time.perf_counter() - self._arrived

    def ended(self) -> None:
        """Note the end of the request."""
        self._metrics.latency.observe(self.seconds)
