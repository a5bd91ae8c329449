"""What /metrics tells, in Prometheus' text format."""

from __future__ import annotations

import time

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from vo3.rollout import Rollout
from vo3.serve.desk import Desk, Ticket

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, desk: Desk):
        engine, counts = desk.engine, desk.engine.counts
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        own = {"registry": registry}
        self.requests = Counter(
            "vo3_requests", "Requests by path and status.", ["path", "status"], **own
        )
        self.outcomes = Counter("vo3_answers", "Answers by outcome.", ["outcome"], **own)
        self.left = Counter("vo3_clients_left", "Questions whose client did not wait.", **own)
        self.seconds = Histogram("vo3_request_seconds", "From arrival to the last byte.", buckets=_SECONDS, **own)  # fmt: skip
        self.queued = Histogram("vo3_queue_seconds", "From arrival to a slot.", buckets=_SECONDS, **own)  # fmt: skip
        self.first = Histogram("vo3_first_token_seconds", "From arrival to the first token; streams only.", buckets=_SECONDS, **own)  # fmt: skip
        self.looks = Histogram("vo3_looks", "Clips that an answer asked for.", buckets=(0, 1, 2, 3, 4, 6, 8, 12), **own)  # fmt: skip
        for name, what, read in (
            ("vo3_waiting", "Questions without a slot.", lambda: desk.waiting),
            ("vo3_running", "Questions being answered.", lambda: desk.running),
            ("vo3_sampled_tokens", "Tokens written.", lambda: counts.sampled),
            ("vo3_prefilled_tokens", "Tokens read.", lambda: counts.prefilled),
            ("vo3_decode_steps", "Decoding steps; each writes a token of every live answer.", lambda: counts.steps),
            ("vo3_host_wait_seconds", "Seconds without work for the device, all answers waiting for clips.", lambda: counts.waited_s),
            ("vo3_programs", "Programs compiled.", lambda: engine.compilations),
        ):  # fmt: skip
            Gauge(name, what, **own).set_function(read)

    def answered(self, rollout: Rollout) -> None:
        """Counts a finished rollout."""
        self.outcomes.labels(rollout.trajectory.outcome).inc()
        self.looks.observe(max(0, len(rollout.clips) - 1))

    def first_token(self, ticket: Ticket) -> None:
        """Times the first token of a stream."""
        if not ticket.spoke:
            ticket.spoke = True
            self.first.observe(time.monotonic() - ticket.arrived)

    def text(self) -> bytes:
        """All of them."""
        return prometheus_client.generate_latest(self.registry)
