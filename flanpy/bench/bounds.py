"""What stands in the way of a goal that was not reached, said in the figures of the same run. Pure.

Three questions are asked, in this order: what has plain routing here (it adds nothing to a packet and merges none), is the machine's CPU
time used up, and how many system calls did the datapath need. What was tried beyond that, with which result, is written in
docs/performance.md and docs/ebpf.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flanpy.bench.goals import Point, Verdict
from flanpy.bench.samples import Result
from flanpy.bench.statistics import paired_ratio, summarize
from flanpy.bench.work import calls_a_packet, packets_of

LIMIT = "routed"
"""The setup that adds nothing to a packet and merges none."""
FULL = 0.9
"""From this share of their time on the machine's CPUs count as used up."""
LEAST_CALLS = 0.01
"""Fewer system calls a packet: programs in the kernel carried them, and userspace took a rest."""
TCP_PACKET_BYTES = 1420
"""Payload of a full TCP packet inside a tunnel over an underlay of MTU 1500, about: for calls a megabyte."""


def bounds(result: Result, verdict: Verdict) -> str:
    """Sentences on what bounds this goal here; empty when the run has no figures that tell."""
    parts = (*_ceiling(result, verdict), *_cpu(result, verdict), *_calls(result, verdict.goal.ours))
    return " ".join(parts)


def _ratio(result: Result, figure: str, setups: tuple[str, str], mode: str) -> float | None:
    summary = paired_ratio(*(result.values(figure, setup, mode) for setup in setups))
    return summary.median if summary is not None else None


def _ceiling(result: Result, verdict: Verdict) -> Iterator[str]:
    """What plain routing has, where more is better and the goal is against another setup."""
    goal, figure = verdict.goal, verdict.goal.ours.figure
    if goal.reference is None or goal.reference.figure != figure or LIMIT in (goal.ours.setup, goal.reference.setup):
        return
    reference = goal.reference.setup
    limit = _ratio(result, figure, (LIMIT, reference), goal.ours.mode)
    ours = _ratio(result, figure, (goal.ours.setup, LIMIT), goal.ours.mode)
    if limit is None or ours is None:
        return
    if (limit < goal.bound) if goal.at_least else (limit > goal.bound):
        yield f"Plain routing itself, which adds nothing to a packet, has {limit:.2f} × {reference} here and misses the goal too."
    yield f"We have {ours:.2f} × plain routing."


def _median(result: Result, figure: str, setup: str, mode: str) -> float | None:
    summary = summarize(result.values(figure, setup, mode).values())
    return summary.median if summary is not None else None


def _cpu(result: Result, verdict: Verdict) -> Iterator[str]:
    """How full the CPUs were during a TCP figure, and what a gigabyte may cost to reach the goal."""
    goal, (figure, setup, mode) = verdict.goal, (verdict.goal.ours.figure, verdict.goal.ours.setup, verdict.goal.ours.mode)
    rate_gbit, cost = _median(result, figure, setup, mode), _median(result, f"{figure}_cpu", setup, mode)
    cpus = result.machine.get("cpus")
    if rate_gbit is None or cost is None or not isinstance(cpus, int):
        return
    share = rate_gbit / 8 * cost / cpus
    if share < FULL:
        yield f"The CPUs were busy for {share:.0%} of the time: waiting (wake-ups, acknowledgements, queues) bounds it."
        return
    text = f"All {cpus} CPUs were busy, both ends' TCP included: {cost:.2f} s for a GB"
    yield f"{text} where the goal leaves {cost * verdict.measured.median / goal.bound:.2f} s." if goal.at_least else f"{text}."


def _calls(result: Result, point: Point) -> Iterator[str]:
    """System calls and sleeps of the datapath for this figure's task."""
    done = _done(result, point)
    packets, calls = packets_of(done), calls_a_packet(done)
    if calls < LEAST_CALLS:
        return
    text = f"The datapath needed {calls:.3f} system calls a packet"
    if point.figure.startswith("tcp"):
        text += f" ({calls * 1e6 / TCP_PACKET_BYTES:.0f} a MB)"
    waits = done.get("polls", 0)
    text += f" and slept once in {packets / waits:,.0f} packets" if waits else " and never slept"
    receives = done.get("udp_receives", 0)
    if receives and done.get("udp_received_segments", 0) < 1.5 * receives:
        text += "; each datagram took a receive of its own, for nothing merged them on the way"
    yield f"{text}."


def _done(result: Result, point: Point) -> Mapping[str, int]:
    """What the datapaths did during the task that this point's figure belongs to."""
    task = next((figure.task for figure in result.figures if figure.key == point.figure), "")
    return result.work.get(f"{point.setup}, {point.mode}, {task}", {})
