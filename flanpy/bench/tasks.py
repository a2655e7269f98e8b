"""What is measured on a bed: each task takes one sample set of some figures, once a round for every setup and mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flanpy.bench.beds import Bed
from flanpy.bench.samples import Figure, Settings
from flanpy.bench.tcp import run_tcp


@dataclass(frozen=True, slots=True)
class Value:
    """One measured value of a figure, before the runner says where and in which round; ``distribution`` are latency buckets."""

    figure: str
    value: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    distribution: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """Something to do on a bed that is in the right mode; ``cost_s`` is about how long it takes."""

    title: str
    figures: tuple[Figure, ...]
    cost_s: float
    measure: Callable[[Bed], Sequence[Value]]


CONGESTION_CONTROLS = ("cubic", "bbr")
DIRECTION_TITLES = {"forward": "", "reverse": ", reverse", "both": ", both directions at once"}


def tcp_key(streams: int, direction: str = "forward", congestion: str = "cubic") -> str:
    """Name of a TCP throughput figure: ``tcp_1``, ``tcp_4_both``, ``tcp_1_bbr``."""
    words = ["tcp", str(streams), "" if direction == "forward" else direction, "" if congestion == "cubic" else congestion]
    return "_".join(word for word in words if word)


def tcp_task(streams: int, seconds: float, direction: str = "forward", congestion: str = "cubic") -> Task:
    """TCP throughput with its retransmits and what it cost in CPU time."""
    key = tcp_key(streams, direction, congestion)
    title = f"TCP, {streams} stream{'s' if streams > 1 else ''}{DIRECTION_TITLES[direction]}"
    title += "" if congestion == "cubic" else f", {congestion}"
    figures = (
        Figure(key, title, "Gbit/s"),
        Figure(f"{key}_retransmits", f"{title}: retransmits", "segments/GB", higher_is_better=False, compared=False),
        Figure(f"{key}_cpu", f"{title}: CPU time of the whole machine", "s/GB", higher_is_better=False),
    )

    def measure(bed: Bed) -> Sequence[Value]:
        run = run_tcp(bed, streams=streams, seconds=seconds, direction=direction, congestion=congestion)
        detail = {"retransmits": run.retransmits, "gigabytes": run.gigabytes, "busy_s": run.busy_s, "stolen_s": run.stolen_s}
        retransmits = run.retransmits / run.gigabytes if run.gigabytes else 0.0
        return [
            Value(key, run.gbit_s, detail),
            Value(f"{key}_retransmits", retransmits),
            Value(f"{key}_cpu", run.busy_s_per_gb),
        ]

    return Task(title, figures, max(1, round(seconds)) + 0.4, measure)


def tcp_tasks(settings: Settings, quick: bool) -> Iterator[Task]:
    """One direction with cubic for each number of streams; in the full suite the other directions and bbr as well."""
    for streams in settings.streams:
        yield tcp_task(streams, settings.seconds)
        if not quick:
            yield tcp_task(streams, settings.seconds, "reverse")
            yield tcp_task(streams, settings.seconds, "both")
            yield tcp_task(streams, settings.seconds, "forward", "bbr")
