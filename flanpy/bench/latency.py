"""Request and response from pod to pod, 64 B over UDP, one request outstanding: idle, sparse, and beside a TCP stream.

idle     the next request follows the answer at once, as netperf's UDP_RR does
sparse   a request every 2 ms: everything on the way has gone to sleep in between
loaded   a request every millisecond while one TCP stream takes all it can get in the same direction
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from flanpy.bench import tcp
from flanpy.bench.beds import Bed
from flanpy.bench.native import Answers
from flanpy.bench.samples import Figure, Settings
from flanpy.bench.stations import ask, stations
from flanpy.bench.tasks import Task, Value

PAYLOAD_BYTES = 64
PARTS = (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
SPARSE_S = 0.002
LOADED_S = 0.001


def latency_task(kind: str, title: str, cost_s: float, run: Callable[[Bed], Answers]) -> Task:
    """p50, p99 and p99.9 of the round trips of one kind."""
    key = f"latency_{kind}"
    figures = tuple(
        Figure(f"{key}_{part}", f"Request and response, {title}: {part.replace('p999', 'p99.9')}", "us", higher_is_better=False)
        for part, _ in PARTS
    )

    def measure(bed: Bed) -> Sequence[Value]:
        answers = run(bed)
        trips = answers.round_trip
        detail = {"requests": answers.requests, "lost": answers.lost}
        if not trips.count:
            return []
        first, *rest = (Value(f"{key}_{part}", trips.quantile_ns(share) / 1000, detail) for part, share in PARTS)
        return [Value(first.figure, first.value, detail, trips.buckets), *rest]

    return Task(title, figures, cost_s, measure)


def _under_load(bed: Bed, seconds: float) -> Answers:
    stations(bed)  # started before the load, not under it
    load = tcp.start_load(bed, seconds + tcp.WARM_UP_S + 1)
    try:
        tcp.await_load(bed, load, tcp.WARM_UP_S)
        return ask(bed, payload_bytes=PAYLOAD_BYTES, interval_s=LOADED_S, seconds=seconds)
    finally:
        tcp.stop_load(load)


def latency_tasks(settings: Settings) -> Iterator[Task]:
    """All three kinds."""
    seconds = settings.seconds
    yield latency_task("idle", "idle", seconds, lambda bed: ask(bed, payload_bytes=PAYLOAD_BYTES, interval_s=0, seconds=seconds))
    yield latency_task(
        "sparse",
        "one every 2 ms",
        seconds,
        lambda bed: ask(bed, payload_bytes=PAYLOAD_BYTES, interval_s=SPARSE_S, seconds=seconds),
    )
    yield latency_task("loaded", "beside a TCP stream", seconds + 1.5, lambda bed: _under_load(bed, seconds))
