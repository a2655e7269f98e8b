"""The goals that the datapath is held against, and whether a result reaches them. Pure.

A goal compares the median of one point (figure, setup, mode) with a fixed number, or with another point of the same run: then the
ratio is taken round by round and its median counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flanpy.bench.samples import NO_MODE, Result
from flanpy.bench.statistics import Summary, paired_ratio, summarize

OURS = ("userspace", "ebpf", "ebpf-bypass")
LEAST_ROUNDS, LEAST_SECONDS = 3, 1.0
"""Shorter runs are noise and not judged."""


@dataclass(frozen=True, slots=True)
class Point:
    """What is compared: a figure of a setup in a mode."""

    figure: str
    setup: str
    mode: str = NO_MODE


@dataclass(frozen=True, slots=True)
class Goal:
    """``ours`` must be at least (or at most) ``bound`` times ``reference``, or ``bound`` itself when that is None."""

    title: str
    ours: Point
    bound: float
    reference: Point | None = None
    at_least: bool = True
    unit: str = "x"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a goal: the measured value with its spread, and whether its median reaches the bound.

    ``judged`` is False after a run that was too short to tell.
    """

    goal: Goal
    measured: Summary
    judged: bool = True

    @property
    def reached(self) -> bool:
        """Whether the median meets the bound."""
        if self.goal.at_least:
            return self.measured.median >= self.goal.bound
        return self.measured.median <= self.goal.bound


def _ratio(title: str, ours: Point, other: str, bound: float, at_least: bool = True) -> Goal:
    """A goal against another setup in the same figure and mode."""
    return Goal(f"{title}, against {other}", ours, bound, Point(ours.figure, other, ours.mode), at_least)


def _tcp(setup: str) -> Iterator[Goal]:
    yield _ratio("TCP, 1 stream, wire (first goal)", Point("tcp_1", setup, "wire"), "vxlan", 0.8)
    yield _ratio("TCP, 1 stream, superpacket (first goal)", Point("tcp_1", setup, "superpacket"), "proxy", 15)
    for mode, bound in (("wire", 1.2), ("wire-uso", 1.2), ("wire-gro", 1.1), ("superpacket", 0.8)):
        yield _ratio(f"TCP, 1 stream, {mode}", Point("tcp_1", setup, mode), "vxlan", bound)
    for other in ("proxy", "flanneld"):
        yield _ratio("TCP, 1 stream, superpacket", Point("tcp_1", setup, "superpacket"), other, 20)
    yield _ratio("TCP, 1 stream, superpacket (stretch)", Point("tcp_1", setup, "superpacket"), "vxlan", 1.0)
    for mode in ("wire", "wire-gro", "superpacket"):
        one = Point("tcp_1", setup, mode)
        yield Goal(f"TCP, 4 streams, {mode}, against 1 stream", Point("tcp_4", setup, mode), 1.0, one)
        yield Goal(f"TCP, both directions at once, {mode}, against one", Point("tcp_1_both", setup, mode), 1.0, one)
    yield _ratio("CPU seconds per GB, superpacket", Point("tcp_1_cpu", setup, "superpacket"), "vxlan", 2.0, at_least=False)


def _packets(setup: str) -> Iterator[Goal]:
    for mode in ("superpacket", "wire", "wire-gro"):
        yield _ratio(f"UDP 64 B at <= 0.5 % loss, {mode}", Point("udp_64", setup, mode), "proxy", 5.0)
        yield _ratio(f"UDP 64 B at <= 0.5 % loss, {mode}", Point("udp_64", setup, mode), "vxlan", 1.0)
        for part in ("p50", "p99"):
            yield _ratio(
                f"latency {part}, idle, {mode}", Point(f"latency_idle_{part}", setup, mode), "proxy", 1.0, at_least=False
            )
        yield _ratio(f"latency p99 under TCP, {mode}", Point("latency_loaded_p99", setup, mode), "vxlan", 2.0, at_least=False)


def _in_kernel() -> Iterator[Goal]:
    """What the ebpf datapath is for; the bypass goes further."""
    for setup, one, routed, four in (("ebpf", 1.4, 0.95, 1.8), ("ebpf-bypass", 1.5, 1.0, 2.0)):
        yield _ratio("TCP, 1 stream, superpacket (in the kernel)", Point("tcp_1", setup, "superpacket"), "vxlan", one)
        yield _ratio("TCP, 1 stream, superpacket (in the kernel)", Point("tcp_1", setup, "superpacket"), "routed", routed)
        yield _ratio("TCP, 4 streams, superpacket (in the kernel)", Point("tcp_4", setup, "superpacket"), "vxlan", four)
    for mode in ("wire", "wire-gro"):
        yield _ratio(f"TCP, 1 stream, {mode} (in the kernel)", Point("tcp_1", "ebpf", mode), "vxlan", 1.1)
    yield _ratio(
        "CPU seconds per GB, superpacket (in the kernel)", Point("tcp_1_cpu", "ebpf", "superpacket"), "vxlan", 0.7, at_least=False
    )
    for mode in ("superpacket", "wire", "wire-gro"):
        yield _ratio(f"UDP 64 B at <= 0.5 % loss, {mode} (in the kernel)", Point("udp_64", "ebpf", mode), "vxlan", 1.5)
        for part in ("p50", "p99"):
            yield _ratio(
                f"latency {part}, idle, {mode} (in the kernel)",
                Point(f"latency_idle_{part}", "ebpf", mode),
                "vxlan",
                0.9,
                at_least=False,
            )


def _at_most(title: str, figure: str, setup: str, bound: float, unit: str) -> Goal:
    return Goal(title, Point(figure, setup), bound, None, at_least=False, unit=unit)


def _core_and_agent() -> Iterator[Goal]:
    for direction in ("encap", "decap"):
        for key, title in (("64", "64 packets to one peer"), ("alone", "packets, each to another peer")):
            many, one = (Point(f"core_{direction}_{key}_routes_{routes}", "flanpy") for routes in (65536, 1))
            yield Goal(f"{direction} of {title} with 65,536 routes, against 1", many, 1.03, one, at_least=False)
    yield _at_most("lookup, 256 routes, random", "core_lookup_256_random", "flanpy", 5, "ns")
    yield _at_most("lookup, 65,536 routes, random", "core_lookup_65536_random", "flanpy", 15, "ns")
    yield _at_most("idle agent", "agent_idle_cpu", "agent", 0.1, "%")
    yield _at_most("idle agent, ebpf", "agent_idle_cpu", "ebpf", 0.1, "%")
    yield _at_most("lease written -> packets flow, p99", "agent_convergence_p99", "agent", 100, "ms")
    yield _at_most("agent memory, 3 hosts", "agent_memory", "agent", 64, "MB")
    yield _at_most("agent memory, 3 hosts, ebpf", "agent_memory", "ebpf", 64, "MB")
    yield _at_most("agent memory, 65,536 routes", "agent_memory_65536", "agent", 200, "MB")
    yield _at_most("start -> ready", "agent_ready", "agent", 1.0, "s")


GOALS: tuple[Goal, ...] = (
    *(goal for setup in OURS for goal in (*_tcp(setup), *_packets(setup))),
    *_in_kernel(),
    *_core_and_agent(),
)
"""Every goal; those without samples in a result are left out of its report."""


def judge(result: Result, goals: tuple[Goal, ...] = GOALS) -> tuple[Verdict, ...]:
    """The goals that this result has samples for."""
    verdicts = []
    long_enough = result.settings.rounds >= LEAST_ROUNDS and result.settings.seconds >= LEAST_SECONDS
    for goal in goals:
        ours = result.values(goal.ours.figure, goal.ours.setup, goal.ours.mode)
        if goal.reference is None:
            measured = summarize(ours.values())
        else:
            reference = goal.reference
            measured = paired_ratio(ours, result.values(reference.figure, reference.setup, reference.mode))
        if measured is not None:
            judged = long_enough and not (result.interrupted and measured.count < LEAST_ROUNDS)
            verdicts.append(Verdict(goal, measured, judged))
    return tuple(verdicts)
