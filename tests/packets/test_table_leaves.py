"""What stands where a lookup ends: the blob byte by byte, and that a sender and an ECN mark are judged as by the hop itself.

10.5.0.0/16 and 10.7.0.0/16 have a node each, with leaves outside and inside of it, 10.8.0.0/16 one with a node below, 10.6.0.0/16 none.
"""

import errno
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest

from flanpy.datapath.core import TableBlob, address_bytes, aligned, build_table, ffi, hop_bytes, lib
from flanpy.model import Address, ForwardTable, Hop, TableEntry
from tests.support.core import PLAIN, Core
from tests.support.packets import Packet

NONE, LOCAL = int(lib.FP_HOP_NONE), int(lib.FP_HOP_LOCAL)
TAKES_ECN, TAG_NODE = 0x01000000, 0x80000000
HEADER, ROOT, NODE = 128, 65536, struct.Struct("<4Q4sI24s")

FIRST = Hop(IPv4Address("172.16.0.2"), 8285, ecn=True)
SECOND = Hop(IPv6Address("fd00::ac10:2"), 8286)
"""Ends as the first one does."""
THIRD = Hop(IPv4Address("172.16.0.3"), 8287)
HOPS = (FIRST, SECOND, THIRD)
ROUTES = {
    "10.5.2.0/24": FIRST,
    "10.5.3.0/24": SECOND,
    "10.6.0.0/16": FIRST,
    "10.7.0.0/24": THIRD,
    "10.8.0.0/32": FIRST,
    "fd05:0:0:2::/64": FIRST,
    "fd05:0:0:3::/64": SECOND,
    "fd05:0:0:4::/64": THIRD,
}
OWN = ("10.5.1.0/24", "fd05:0:0:1::/64")


def packed(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


def leaf(hop: int, key: str | None = None, flags: int = 0) -> bytes:
    """Value and key."""
    return struct.pack("<I", hop | flags) + (IPv4Address(key).packed if key else bytes(4))


NOBODY, OURS = leaf(NONE), leaf(LOCAL)
TO_FIRST, TO_SECOND, TO_THIRD = leaf(0, "172.16.0.2", TAKES_ECN), leaf(1), leaf(2, "172.16.0.3")


def node(begins: int, leaves_at: int, *inside: bytes) -> bytes:
    """All begins are in the first 64 entries, so the count before each later word is that of all."""
    count = begins.bit_count()
    return NODE.pack(begins, 0, 0, 0, bytes([0, count, count, count]), leaves_at // 8, b"".join(inside))


def expected() -> bytes:
    nodes_at = HEADER + 4 * ROOT
    hops_at = nodes_at + 4 * 64
    ranges_at = hops_at + 3 * 24
    leaves = [NOBODY, OURS, TO_FIRST, TO_SECOND, NOBODY]
    leaves_at = ranges_at + 6 * 24
    by_address_at = leaves_at + 8 * len(leaves)
    slots_at = by_address_at + 3 * 4
    root = [NONE] * ROOT
    for number, upper in enumerate((0x0A05, 0x0A07, 0x0A08)):
        root[upper] = TAG_NODE | number
    root[0x0A06] = 0 | TAKES_ECN
    nodes = [
        node(0b11111, leaves_at),
        node(0b11, nodes_at + 64 + 40, TO_THIRD, NOBODY),
        node(0b11, nodes_at + 128 + 40, leaf(TAG_NODE | 3), NOBODY),
        node(0b11, nodes_at + 192 + 40, TO_FIRST, NOBODY),
    ]
    base = 0xFD05_0000_0000_0001
    ranges = [(0, NOBODY), (base, OURS), (base + 1, TO_FIRST), (base + 2, TO_SECOND), (base + 3, TO_THIRD), (base + 4, NOBODY)]
    # 2^66 addresses from the second range's first to the last one's: nine slots of 2^63, and one more for the last range.
    slots = [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    body = b"".join(
        [
            packed(*root),
            *nodes,
            *map(hop_bytes, HOPS),
            *(struct.pack("<QQ", first, 0) + each for first, each in ranges),
            *leaves,
            packed(*sorted(range(3), key=lambda number: address_bytes(HOPS[number].address))),
            packed(*slots),
        ]
    )
    size = (HEADER + len(body) + 63) // 64 * 64
    header = struct.pack("<8sQQ4I", b"fltable4", size, 7, 3, 1, len(leaves), 3)
    header += struct.pack("<6Q", nodes_at, leaves_at, hops_at, by_address_at, ranges_at, slots_at)
    header += struct.pack("<QQ4I", base, 0, len(ranges), len(slots) - 1, 63, 1400)
    return (header.ljust(HEADER, b"\0") + body).ljust(size, b"\0")


def built() -> TableBlob:
    entries = tuple(TableEntry(ip_network(prefix), hop) for prefix, hop in ROUTES.items())
    return build_table(ForwardTable(7, entries, tuple(map(ip_network, OWN)), mtu_bytes=1400))


def test_a_table_is_laid_out_as_the_header_file_says() -> None:
    found, wanted = bytes(built()), expected()
    assert (len(found), found[:HEADER]) == (len(wanted), wanted[:HEADER])
    assert found == wanted


# ------------------------------------------------------------------------------------------------------------- hostile blobs

GOOD = expected()
NODES_AT = HEADER + 4 * ROOT
HOPS_AT = NODES_AT + 4 * 64
RANGES_AT = HOPS_AT + 3 * 24
LEAVES_AT = RANGES_AT + 6 * 24


@pytest.mark.parametrize(
    ("name", "at", "word"),
    [
        ("root: a mark that the hop does not take", HEADER + 4 * 0x0B00, 2 | TAKES_ECN),
        ("root: no mark for a hop that takes it", HEADER + 4 * 0x0A06, 0),
        ("root: an unknown flag", HEADER + 4 * 0x0A06, TAKES_ECN << 1),
        ("leaf: no mark for a hop that takes it", LEAVES_AT + 16, 0),
        ("leaf: a mark that the hop does not take", LEAVES_AT + 24, 1 | TAKES_ECN),
        ("leaf: another hop's key", LEAVES_AT + 20, 0x030010AC),
        ("leaf: a key of a hop that has none", LEAVES_AT + 28, 0x020010AC),
        ("leaf: no key", LEAVES_AT + 20, 0),
        ("leaf: a key of nobody", LEAVES_AT + 4, 0x020010AC),
        ("leaf: a key of ours", LEAVES_AT + 12, 1),
        ("leaf in a node: another key", NODES_AT + 64 + 44, 0x020010AC),
        ("leaf in a node: a key of a node", NODES_AT + 128 + 44, 1),
        ("leaf in a node: an upper node", NODES_AT + 128 + 40, TAG_NODE),
        ("leaf in a node below: a node", NODES_AT + 192 + 40, TAG_NODE | 3),
        ("range: no mark for a hop that takes it", RANGES_AT + 2 * 24 + 16, 0),
        ("range: another key", RANGES_AT + 2 * 24 + 20, 0x030010AC),
        ("range: a key of a hop that has none", RANGES_AT + 3 * 24 + 20, 0x020010AC),
        ("hop: another address", HOPS_AT + 12, 0x090010AC),
        ("hop: another mark", HOPS_AT + 18, 8287 << 16),
    ],
)
def test_a_leaf_that_says_other_than_its_hop_is_refused(name: str, at: int, word: int) -> None:
    data = GOOD[:at] + struct.pack("<I", word) + GOOD[at + 4 :]
    assert data != GOOD
    owner, memory = aligned(len(data))
    ffi.memmove(memory, data, len(data))
    assert lib.fp_table_check(memory, len(data)) == -errno.EINVAL, name
    ffi.memmove(memory, GOOD, len(GOOD))
    assert lib.fp_table_check(memory, len(GOOD)) == 0
    assert owner is not None


# ----------------------------------------------------------------------------------------------- judged as by the hop itself

ZERO4, ZERO6 = Hop(IPv4Address("0.0.0.0"), 8285), Hop(IPv6Address("::"), 8285)
"""Nobody has such an address; what asks for the key must not take one for the other."""
JUDGED = ROUTES | {"10.5.4.0/24": ZERO4, "10.5.5.0/24": ZERO6, "fd05:0:0:5::/64": ZERO6}
SENDERS: tuple[Address, ...] = (
    *(hop.address for hop in (*HOPS, ZERO4, ZERO6)),
    IPv6Address("::172.16.0.2"),
    IPv6Address("fd00::ac10:3"),
    IPv6Address("::1:ffff:ac10:2"),
    IPv4Address("172.16.0.9"),
)


def inside(prefix: str) -> str:
    network = ip_network(prefix)
    return str(network.network_address + (1 if network.prefixlen not in (32, 128) else 0))


def own(network: IPv4Network | IPv6Network) -> str:
    return "10.5.1.5" if network.version == 4 else "fd05:0:0:1::5"


@pytest.mark.parametrize("prefix", JUDGED)
def test_a_peer_may_send_what_it_has_and_nobody_else_whatever_the_addresses(prefix: str) -> None:
    packet = Packet(source=inside(prefix), destination=own(ip_network(prefix)), payload=b"x").raw()
    known = {hop.address for hop in JUDGED.values()}
    found, wanted = {}, {}
    for sender in SENDERS:
        core = Core(entries=tuple(JUDGED.items()))
        core.train([packet], sender=Hop(sender, 1))
        found[sender] = (core.counts(), len(core.writes()))
        verdict = "drop_spoofed" if sender in known else "drop_unknown_peer"
        wanted[sender] = ({}, 1) if sender == JUDGED[prefix].address else ({verdict: (1, len(packet))}, 0)
    assert found == wanted


@pytest.mark.parametrize("prefix", ROUTES)
def test_a_mark_goes_to_peers_that_take_it_wherever_the_lookup_ends(prefix: str) -> None:
    core = Core(entries=tuple(ROUTES.items()))
    packet = Packet(source=own(ip_network(prefix)), destination=inside(prefix), payload=b"x", tos=0xB9).raw()
    assert core.encap(packet, PLAIN) == "encapsulated"
    assert [(send.hop, send.tos) for send in core.sends()] == [(ROUTES[prefix], 1 if ROUTES[prefix].ecn else 0)]
