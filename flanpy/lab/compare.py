"""TCP pod to pod over the overlay beside plain routing and kernel VXLAN: same hosts, same underlay, same run, interleaved.

Each way has a bridge and pods of its own on every host (a segment), so nothing is rebuilt between two measurements.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network

from flanpy.lab import topology
from flanpy.lab.cluster import Lab
from flanpy.lab.plan import PodPlan, Segment, fixed_subnets, plan_segment
from flanpy.lab.traffic import tcp_gbit, tcp_server

OVERLAY, ROUTED, VXLAN = "flanpy", "plain routing", "kernel VXLAN"
NETWORKS = {"routed": IPv4Network("10.96.0.0/16"), "vxlan": IPv4Network("10.97.0.0/16")}
VXLAN_HEADER_BYTES = 50
SAMPLE_S = 1
NOISE_LIMIT = 3.0
"""A way whose fastest round is more than so many times its slowest says nothing about the others."""

Pair = tuple[PodPlan, PodPlan]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All samples of one underlay mode, Gbit/s by way, the rounds in order."""

    mode: str
    gbit: Mapping[str, tuple[float, ...]]

    def median(self, way: str) -> float:
        """Median throughput of a way."""
        return statistics.median(self.gbit[way])

    def noisy(self) -> bool:
        """Whether the rounds of some way are too far apart to compare it with another."""
        return any(max(values) > NOISE_LIMIT * min(values) for values in self.gbit.values())

    def ratios(self, way: str, base: str) -> tuple[float, ...]:
        """Throughput of one way in terms of another, round by round, ascending."""
        return tuple(sorted(a / b for a, b in zip(self.gbit[way], self.gbit[base], strict=True)))


def add_ways(lab: Lab) -> dict[str, Pair]:
    """Add the segments to compare with to a lab; returns the first and last host's pods of every way."""
    plan = lab.plan
    routed = _segment(lab, "routed", plan.mtu_bytes)
    vxlan = _segment(lab, "vxlan", plan.mtu_bytes - VXLAN_HEADER_BYTES)
    scripts = [topology.pods_script(routed), topology.pods_script(vxlan)]
    scripts += [topology.routed_script(plan, routed), topology.vxlan_script(plan, vxlan)]
    lab.sandbox.script("".join(scripts))
    ends = (plan.hosts[0].name, plan.hosts[-1].name)
    segments = {OVERLAY: lab.segment(), ROUTED: routed, VXLAN: vxlan}
    return {way: (segment.pods_of(ends[0])[0], segment.pods_of(ends[1])[0]) for way, segment in segments.items()}


def _segment(lab: Lab, kind: str, mtu_bytes: int) -> Segment:
    subnets = fixed_subnets(lab.plan, NETWORKS[kind])
    return plan_segment(subnets, 1, bridge=f"br-{kind}", mtu_bytes=mtu_bytes, infix=kind)


def compare(
    lab: Lab, ways: Mapping[str, Pair], modes: tuple[str, ...], rounds: int, progress: Callable[[str], None]
) -> list[Comparison]:
    """Measure every way in every round of every mode; the underlay is put back to the lab's own mode."""
    with ExitStack() as servers:
        for _, target in ways.values():
            servers.enter_context(tcp_server(lab.sandbox, target))
        servers.callback(lambda: lab.sandbox.script(topology.mode_script(lab.plan, lab.spec.mode)))
        results = []
        for mode in modes:
            lab.sandbox.script(topology.mode_script(lab.plan, mode))
            samples: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(rounds):
                progress(f"underlay {mode}: round {number + 1} of {rounds}")
                for way, (source, target) in ways.items():
                    samples[way].append(tcp_gbit(lab.sandbox, source, target, SAMPLE_S))
            results.append(Comparison(mode, {way: tuple(values) for way, values in samples.items()}))
        return results
