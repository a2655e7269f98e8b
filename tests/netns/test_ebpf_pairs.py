"""What every pair of datapaths carries between two pods, both ways, over every sort of underlay and of either family, content checked.

The topology is drawn in tests/support/ebpf.py. Pairs of userspace alone: tests/netns/test_datapath_traffic.py.
"""

import os
import socket
import struct
from hashlib import sha256

import pytest

from flanpy.model import Address
from tests.netns.test_datapath_traffic import send_and_digest
from tests.support.ebpf import EbpfSide, ebpf_overlay, know_neighbours, release
from tests.support.netns import counters, udp_socket

pytestmark = pytest.mark.root

PAIRS = [("ebpf", "ebpf"), ("ebpf", "userspace"), ("userspace", "ebpf")]
UNDERLAYS = {"superpacket": {}, "wire": {"wire": True}, "wire-gro": {"wire": True, "gro": True}, "jumbo": {"mtu": 9000}}
CARRIED = {"encapsulated", "decapsulated", "drop_martian"}
"""The host's own router solicitations and multicast listener reports reach the devices too; userspace drops them as martians."""
TCP_BYTES = {True: 6 << 20, False: 1 << 20}
UDP_SEGMENT, UDP_GRO = 103, 104


def address_of(side: EbpfSide, family: int) -> Address:
    """The pod's."""
    return side.pod_address6 if family == 6 else side.pod_address


def assert_tcp_arrives(sender: EbpfSide, receiver: EbpfSide, family: int, size: int) -> None:
    content = os.urandom(size)
    assert send_and_digest(sender, receiver, content, address_of(receiver, family)) == sha256(content).hexdigest()


def received(by: socket.socket) -> list[bytes]:
    """The datagrams of one receive: several when the kernel has merged them (UDP GRO)."""
    data, control, _, _ = by.recvmsg(1 << 16, socket.CMSG_SPACE(4))
    size = next((struct.unpack("=i", value)[0] for _, kind, value in control if kind == UDP_GRO), len(data))
    return [data[at : at + size] for at in range(0, len(data), size)] or [data]


def assert_datagrams_arrive(sender: EbpfSide, receiver: EbpfSide, family: int, trains: bool, merged: bool) -> None:
    """Single datagrams of every size, and trains (UDP GSO), of one flow in turn: whichever half takes them, none overtakes another."""
    edge = receiver.mtu_bytes - (48 if family == 6 else 28)
    with (
        udp_socket(receiver.pod, address_of(receiver, family)) as taking,
        udp_socket(sender.pod, address_of(sender, family)) as giving,
    ):
        taking.setsockopt(socket.IPPROTO_UDP, UDP_GRO, merged)
        for turn, size in enumerate([1, 3, 64, 500, *range(edge - 2, edge + 3), 2000, 8000, 65000]):
            expected = [os.urandom(size)]
            giving.sendto(expected[0], taking.getsockname())
            if trains:
                train = [struct.pack("!II", turn, number) + os.urandom(1092) for number in range(30)] + [b"%d end" % turn]
                segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", 1100))]
                giving.sendmsg([b"".join(train)], segment, 0, taking.getsockname())
                expected += train
            found: list[bytes] = []
            while len(found) < len(expected):
                found += received(taking)
            assert found == expected, f"{size} bytes"


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("underlay", UNDERLAYS)
@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_all_traffic_arrives_unharmed_both_ways(kinds: tuple[str, str], underlay: str, outer: int) -> None:
    """TCP, UDP, trains of UDP, receivers that merge, pods whose interface leaves no checksum to anybody; of both families."""
    with ebpf_overlay(kinds, ipv6=True, outer=outer, **UNDERLAYS[underlay]) as made:
        know_neighbours(made)
        for offload in (True, False):
            if not offload:
                for side in (made.a, made.b):
                    side.pod.script("ethtool -K eth0 tx off >/dev/null")
            trains = offload or release() >= (6, 12)  # before, UDP_SEGMENT was EIO on an interface without checksum offload
            for family in (4, 6):
                for sender, receiver in ((made.a, made.b), (made.b, made.a)):
                    assert_tcp_arrives(sender, receiver, family, TCP_BYTES[offload])
                    assert_datagrams_arrive(sender, receiver, family, trains, merged=sender is made.a)
        for side in (made.a, made.b):
            assert set(counters(side.stats)) <= CARRIED
            assert side.stats.verdicts["decapsulated"].bytes > 2 * TCP_BYTES[True]
