"""The underlay and the ways over it that need no agent; plain routing and kernel VXLAN side by side.

host1 ─┐              ┌─ host2          each host: bridge br-routed with a pod, bridge br-vxlan with a pod
       └─ underlay ───┘
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

import pytest

from flanpy.errors import LabError
from flanpy.lab import topology
from flanpy.lab.plan import UPLINK, Plan, PodPlan, Segment, fixed_subnets, plan_lab, plan_segment
from flanpy.lab.sandbox import Sandbox
from flanpy.lab.traffic import ping_all, tcp_gbit, tcp_server, wait_for_ping


@dataclass(frozen=True)
class Bed:
    sandbox: Sandbox
    plan: Plan
    routed: Segment
    vxlan: Segment

    def ping(self, segment: Segment, count: int = 2) -> list[int]:
        """How many pings came back, from the first pod to the last and the other way round."""
        a, b = segment.pods[0], segment.pods[-1]
        return [result.received for result in ping_all(self.sandbox, [(a, b), (b, a)], count)]


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    plan = plan_lab(2)
    routed = plan_segment(fixed_subnets(plan, IPv4Network("10.96.0.0/16")), 1, bridge="br-routed", mtu_bytes=1500, infix="routed")
    vxlan = plan_segment(fixed_subnets(plan, IPv4Network("10.97.0.0/16")), 1, bridge="br-vxlan", mtu_bytes=1450, infix="vxlan")
    with Sandbox.create() as sandbox:
        sandbox.script(topology.underlay_script(plan) + topology.pods_script(routed) + topology.pods_script(vxlan))
        sandbox.script(topology.routed_script(plan, routed) + topology.vxlan_script(plan, vxlan))
        yield Bed(sandbox, plan, routed, vxlan)


def test_pods_reach_each_other_over_plain_routes(bed: Bed) -> None:
    assert bed.ping(bed.routed) == [2, 2]


def test_pods_reach_each_other_over_kernel_vxlan(bed: Bed) -> None:
    before = _sent_packets(bed, "flannel.1")
    assert bed.ping(bed.vxlan) == [2, 2]
    assert _sent_packets(bed, "flannel.1") - before == 4


def test_a_cut_host_is_unreachable_until_it_is_joined_again(bed: Bed) -> None:
    bed.sandbox.script(topology.cut_script(bed.plan.hosts[1]))
    try:
        assert bed.ping(bed.routed, 1) == [0, 0]
        assert "NO-CARRIER" in bed.sandbox.run("host2", ["ip", "link", "show", UPLINK]).stdout
    finally:
        bed.sandbox.script(topology.join_script(bed.plan.hosts[1]))
    assert wait_for_ping(bed.sandbox, *bed.routed.pods, timeout_s=10) is not None
    assert bed.ping(bed.routed) == [2, 2]


def test_all_packets_can_be_lost_and_none(bed: Bed) -> None:
    bed.sandbox.script(topology.loss_script(bed.plan.hosts[1], 100))
    try:
        assert bed.ping(bed.routed, 1) == [0, 0]
        dropped = bed.sandbox.run(None, ["nft", "list", "table", "netdev", "lab_host2"]).stdout
        assert "counter packets 0" not in dropped.split("chain ingress")[1].split("}")[0]
    finally:
        bed.sandbox.script(topology.loss_script(bed.plan.hosts[1], 0))
    assert bed.ping(bed.routed) == [2, 2]


def test_half_of_the_packets_can_be_lost(bed: Bed) -> None:
    bed.sandbox.script(topology.loss_script(bed.plan.hosts[1], 50))
    try:
        target = str(bed.routed.pods[-1].address.ip)
        flood = ["ping", "-q", "-i", "0.002", "-c", "400", "-W", "1", target]
        report = bed.sandbox.run(bed.routed.pods[0].name, flood, check=False).stdout
    finally:
        bed.sandbox.script(topology.loss_script(bed.plan.hosts[1], 0))
    received = int(report.split(" received")[0].split()[-1])
    assert 400 * 0.25 * 0.6 < received < 400 * 0.25 * 1.4


def test_a_rate_limit_holds_in_both_directions(bed: Bed) -> None:
    bed.sandbox.script(topology.rate_script(bed.plan.hosts[1], 50))
    try:
        a, b = bed.routed.pods
        assert 0.02 < _gbit(bed, a, b) < 0.06
        assert 0.02 < _gbit(bed, b, a) < 0.06
    finally:
        bed.sandbox.script(topology.rate_script(bed.plan.hosts[1], 0))
    assert _gbit(bed, a, b) > 0.1


@pytest.mark.parametrize(("mode", "fits_the_wire"), [("wire", True), ("wire-gro", True), ("superpacket", False)])
@pytest.mark.parametrize("way", ["routed", "vxlan"])
def test_on_a_wire_every_packet_fits_the_mtu(bed: Bed, way: str, mode: str, fits_the_wire: bool) -> None:
    segment: Segment = getattr(bed, way)
    bed.sandbox.script(topology.mode_script(bed.plan, mode))
    try:
        before = _received(bed)
        _gbit(bed, segment.pods[0], segment.pods[-1])
        frames, octets = (after - earlier for after, earlier in zip(_received(bed), before, strict=True))
    finally:
        bed.sandbox.script(topology.mode_script(bed.plan, bed.plan.mode))
    assert (octets / frames <= 1514) == fits_the_wire


def test_a_place_that_is_there_already_is_an_error(bed: Bed) -> None:
    with pytest.raises(LabError, match="File exists"):
        bed.sandbox.script(topology.pods_script(bed.routed))


def _gbit(bed: Bed, source: PodPlan, target: PodPlan) -> float:
    with tcp_server(bed.sandbox, target):
        return tcp_gbit(bed.sandbox, source, target, 1)


def _received(bed: Bed) -> tuple[int, int]:
    """Frames and bytes that host2's uplink has received."""
    (link,) = json.loads(bed.sandbox.run("host2", ["ip", "-j", "-s", "link", "show", UPLINK]).stdout)
    return link["stats64"]["rx"]["packets"], link["stats64"]["rx"]["bytes"]


def _sent_packets(bed: Bed, device: str) -> int:
    (link,) = json.loads(bed.sandbox.run("host1", ["ip", "-j", "-s", "link", "show", device]).stdout)
    return int(link["stats64"]["tx"]["packets"])
