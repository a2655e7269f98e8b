"""What a lab consists of and the scripts that build it: pure, so compared as text."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flanpy.cli.lab import split_exec
from flanpy.errors import UsageError
from flanpy.lab import topology
from flanpy.lab.dissect import layers
from flanpy.lab.plan import HostPlan, PodPlan, check_name, fixed_subnets, plan_lab, plan_segment
from flanpy.lab.sniff_one import is_ping_to

PING_IN_UDP = bytes.fromhex(
    "0200000000020200000000010800"
    "4500004c000040004011" + "cf00" + "ac1f0901ac1f0902"
    "205d205d00380000"
    "45000030000100003e01" + "0000" + "0a0501020a050202"
    "0800000000010001" + "61" * 20
)
"""Ethernet, IPv4 172.31.9.1 to .2, UDP 8285 to 8285, IPv4 10.5.1.2 to 10.5.2.2 with TTL 62, echo request, 20 bytes."""


def test_hosts_are_numbered_along_the_underlay() -> None:
    plan = plan_lab(2)
    assert plan.hosts == (HostPlan("host1", IPv4Address("172.31.9.1")), HostPlan("host2", IPv4Address("172.31.9.2")))
    assert plan.services_address == IPv4Address("172.31.9.254")


def test_pods_have_the_last_addresses_of_their_hosts_subnet() -> None:
    segment = plan_segment({"host1": IPv4Network("10.5.7.0/24")}, 2, mtu_bytes=1472)
    gateway = IPv4Address("10.5.7.1")
    assert segment.pods == (
        PodPlan("host1-pod1", "host1", IPv4Interface("10.5.7.254/24"), gateway, "veth-pod1"),
        PodPlan("host1-pod2", "host1", IPv4Interface("10.5.7.253/24"), gateway, "veth-pod2"),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hosts": 0}, "--hosts 0: a lab has 1 to 200 hosts"),
        ({"hosts": 201}, "--hosts 201: a lab has 1 to 200 hosts"),
        ({"mode": "paper"}, "--underlay paper: must be one of superpacket, wire, wire-gro, wire-uso"),
        ({"mtu_bytes": 100}, "--mtu 100: must be 576 to 9000 bytes"),
    ],
)
def test_a_plan_that_cannot_be_says_what_would_be_right(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_lab(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_more_pods_than_addresses_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--pods: 6 pods do not fit into host1's subnet 10.5.7.0/29 \(at most 5\)"):
        plan_segment({"host1": IPv4Network("10.5.7.0/29")}, 6, mtu_bytes=1472)


@pytest.mark.parametrize("name", ["", "-x", "../x", "a/b", "A", "a" * 32, "a b", "a\n"])
def test_a_name_that_is_no_name_for_a_directory_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="a lab's name has 1 to 31 letters"):
        check_name(name)


def test_fixed_subnets_begin_at_the_second_block() -> None:
    assert fixed_subnets(plan_lab(2), IPv4Network("10.96.0.0/16")) == {
        "host1": IPv4Network("10.96.1.0/24"),
        "host2": IPv4Network("10.96.2.0/24"),
    }


def test_every_name_fits_into_a_device_name() -> None:
    ports = {host.port for host in plan_lab(200).hosts}
    segment = plan_segment({"host200": IPv4Network("10.96.200.0/24")}, 100, mtu_bytes=1472, infix="routed")
    assert max(map(len, ports | {pod.port for pod in segment.pods})) <= 15


def test_routes_lead_to_every_other_host() -> None:
    plan = plan_lab(3)
    segment = plan_segment(fixed_subnets(plan, IPv4Network("10.96.0.0/16")), 1, mtu_bytes=1500)
    assert topology.routed_script(plan, segment).split("ip -n host2 ", 1)[1].split("END\n", 1)[0] == (
        "-batch - <<'END'\nroute add 10.96.1.0/24 via 172.31.9.1\nroute add 10.96.3.0/24 via 172.31.9.3\n"
    )


def test_no_loss_removes_the_rules_and_adds_none() -> None:
    assert topology.loss_script(plan_lab(1).hosts[0], 0) == (
        "nft -f - <<'END'\ntable netdev lab_host1\ndelete table netdev lab_host1\nEND\n"
    )


def test_one_host_alone_needs_no_forwarding_entries() -> None:
    plan = plan_lab(1)
    segment = plan_segment(fixed_subnets(plan, IPv4Network("10.97.0.0/16")), 1, mtu_bytes=1450)
    assert "fdb add" not in topology.vxlan_script(plan, segment)


@pytest.mark.parametrize(
    ("words", "halves"),
    [
        (["host1", "--", "ip", "-br", "link"], (["host1"], ["ip", "-br", "link"])),
        (["mine", "host1", "--", "ls"], (["mine", "host1"], ["ls"])),
        (["host1", "--lab", "mine", "--", "ls", "--lab"], (["mine", "host1"], ["ls", "--lab"])),
        (["host1", "ls", "-l"], (["host1"], ["ls", "-l"])),
        (["host1", "--", "sh", "-c", "x", "--", "y"], (["host1"], ["sh", "-c", "x", "--", "y"])),
    ],
)
def test_exec_takes_where_before_the_dashes_and_what_behind(words: list[str], halves: tuple[list[str], list[str]]) -> None:
    assert split_exec(words) == halves


@pytest.mark.parametrize("words", [[], ["host1"], ["host1", "--"], ["--", "ls"], ["a", "b", "c", "--", "ls"]])
def test_exec_without_a_place_or_a_command_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="say where and what"):
        split_exec(words)


def test_the_sniffer_knows_its_port() -> None:
    assert is_ping_to(PING_IN_UDP, 8285)
    assert not is_ping_to(PING_IN_UDP, 8286)


def test_the_sniffer_takes_no_packet_that_is_cut_off_before_its_ports() -> None:
    assert not any(is_ping_to(PING_IN_UDP[:length], 8285) for length in range(42))


def test_the_sniffer_takes_nothing_but_udp() -> None:
    assert not is_ping_to(PING_IN_UDP[:23] + b"\x06" + PING_IN_UDP[24:], 8285)


def test_a_packet_is_taken_apart_down_to_the_pods_own_bytes() -> None:
    found = layers(PING_IN_UDP)
    assert [(layer.name, layer.offset, layer.header_bytes) for layer in found] == [
        ("Ethernet", 0, 14),
        ("IP", 14, 20),
        ("UDP", 34, 8),
        ("IP", 42, 20),
        ("ICMP", 62, 8),
        ("Raw", 70, 20),
    ]
    assert "src=10.5.1.2  dst=10.5.2.2  ttl=62" in found[3].fields


def test_taking_apart_leaves_scapys_own_bindings_alone() -> None:
    from scapy.layers.inet import UDP

    before = list(UDP.payload_guess)
    layers(PING_IN_UDP)
    assert list(UDP.payload_guess) == before
