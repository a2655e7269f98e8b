"""An underlay address that another machine has too: found by ARP, whoever else answers there.

node  uplink 192.0.2.1 ── br0 ── 192.0.2.1 other (or another address)
         second ─────────┘
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flanpy.kernel.address_probe import other_holder, probe, sender_of
from tests.support.clusters import Agent, bare
from tests.support.namespaces import Namespace, inside, namespace

OURS = IPv4Address("192.0.2.1")
THEIR_MAC = "02:00:00:00:00:09"


@dataclass(frozen=True)
class Link:
    """One Ethernet with a node and another machine on it."""

    node: Namespace
    other: Namespace

    def holder(self, device: str = "uplink", wait_s: float = 5.0) -> str | None:
        with inside(self.node):
            return other_holder(device, OURS, wait_s)


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with namespace() as switch, namespace() as node, namespace() as other:
        switch.ip("link add br0 type bridge\nlink set br0 up\n")
        for number, (where, name) in enumerate(((node, "uplink"), (node, "second"), (other, "eth0"))):
            switch.ip(
                f"link add port{number} type veth peer name {name} netns {where.path}\nlink set port{number} master br0 up\n"
            )
        node.ip(f"address add {OURS}/24 dev uplink\nlink set uplink up\nlink set second up\n")
        other.ip(f"link set eth0 address {THEIR_MAC} up\naddress add 192.0.2.9/24 dev eth0\n")
        yield Link(node, other)


def test_nobody_else_has_it_though_our_second_interface_answers_and_a_proxy_would(link: Link) -> None:
    link.other.script("sysctl -qw net.ipv4.conf.all.proxy_arp=1 net.ipv4.ip_forward=1; ip route add default dev lo")
    assert link.holder(wait_s=0.3) is None


def test_another_machine_with_the_address_is_told_by_its_mac(link: Link) -> None:
    link.other.ip(f"address add {OURS}/24 dev eth0\n")
    try:
        assert link.holder() == THEIR_MAC
    finally:
        link.other.ip(f"address del {OURS}/24 dev eth0\n")


def test_where_there_is_no_ethernet_nobody_is_asked(link: Link) -> None:
    assert link.holder("lo") is None


def test_what_is_no_answer_for_the_address_is_none() -> None:
    mac = bytes.fromhex(THEIR_MAC.replace(":", ""))
    answer = b"\0\1\x08\0\6\4\0\2" + mac + OURS.packed + bytes(10)
    assert sender_of(answer, OURS) == mac
    assert sender_of(answer, IPv4Address("192.0.2.2")) is None
    assert sender_of(probe(mac, OURS), OURS) is None
    assert [sender_of(answer[:size], OURS) for size in range(28)] == [None] * 28
    for at in range(6):
        assert sender_of(answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :], OURS) is None


def test_an_agent_warns_of_a_machine_that_has_its_address(tmp_path: Path) -> None:
    with bare(tmp_path) as one:
        one.sandbox.script(
            "ip netns add rival\n"
            f"ip link add rival mtu 1500 type veth peer name eth0 netns rival address {THEIR_MAC}\n"
            "ip link set rival master underlay up\n"
            "ip -n rival address add 172.31.9.1/24 dev eth0\n"
            "ip -n rival link set eth0 up\n"
        )
        with Agent(one, "--iface=eth0") as agent:
            agent.says(
                f"underlay: {THEIR_MAC} on the link of eth0 has the address 172.31.9.1 too: other nodes reach one of the two"
            )
