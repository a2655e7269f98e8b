"""Counters by peer in the pure core: who gets a place, whose figures a place holds, and what readers make of hostile memory."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

from flanpy.datapath import PeerCount, VerdictCount
from flanpy.datapath.core import TableBlob, address_bytes, aligned, build_table, ffi, lib, peer_counts
from flanpy.model import Address, ForwardTable, Hop, TableEntry

NOTHING = PeerCount(VerdictCount(0, 0), VerdictCount(0, 0), 0, 0)


def table_of(*peers: Address) -> TableBlob:
    """A table in which each peer has a subnet."""
    entries = tuple(TableEntry(IPv4Network((0x0A000000 + (i << 8), 24)), Hop(peer, 8285)) for i, peer in enumerate(peers))
    return build_table(ForwardTable(1, entries, ()))


class Counts:
    """Memory for counters by peer, as one worker has it."""

    def __init__(self) -> None:
        self._owner, memory = aligned(lib.fp_peer_counts_bytes())
        self.counts = ffi.cast("struct fp_peer_counts *", memory)
        self.memory = memory

    def of(self, table: TableBlob, peer: Address) -> Any:
        """The place of this peer, None when there is none."""
        found = lib.fp_peer_counts_of(self.counts, table.table, ffi.from_buffer("struct fp_address *", address_bytes(peer)))
        return None if found == ffi.NULL else found

    def read(self, *peers: Address) -> dict[Address, PeerCount]:
        """As a reader sees them."""
        return peer_counts(peers, lambda addresses, n, out: lib.fp_peer_counts_add(self.counts, addresses, n, out))


def test_each_peer_of_either_family_has_figures_of_its_own() -> None:
    peers: list[Address] = [IPv4Address(0xAC100000 + number) for number in range(2000)]
    peers += [IPv6Address((0xFD05 << 112) + number) for number in range(1000)]
    counts, table, rng = Counts(), table_of(*peers), random.Random(1)
    oracle: Counter[Address] = Counter()
    uncounted = set()
    for peer in rng.choices(peers, k=20_000):
        place = counts.of(table, peer)
        if place is None:
            uncounted.add(peer)
        else:
            place.sent.packets += 3
            place.received.bytes += 5
            oracle[peer] += 1
    expected = {
        peer: PeerCount(VerdictCount(3 * oracle[peer], 0), VerdictCount(0, 5 * oracle[peer]), 0, 0) if oracle[peer] else NOTHING
        for peer in peers
    }
    assert counts.read(*peers) == expected
    assert len(uncounted) <= len(peers) // 100, "the hash fills some sets while others are empty"


def test_a_stranger_gets_no_place_and_no_reader_finds_it() -> None:
    peer, stranger = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
    counts, table = Counts(), table_of(peer)
    assert counts.of(table, stranger) is None
    counts.of(table, peer).dropped_in += 1
    assert counts.read(stranger, peer) == {stranger: NOTHING, peer: PeerCount(VerdictCount(0, 0), VerdictCount(0, 0), 0, 1)}


def test_a_place_of_a_peer_that_has_gone_is_given_to_another_with_figures_of_zero() -> None:
    counts = Counts()
    crowd: list[Address] = [IPv4Address(0xC6120000 + number) for number in range(20_000)]
    everybody = table_of(*crowd)
    full = next(peer for peer in crowd if not _counted(counts.of(everybody, peer)))
    assert counts.of(everybody, full) is None, "its set is full of peers that are there"
    assert counts.read(full) == {full: NOTHING}
    place = counts.of(table_of(full), full)
    assert counts.read(full) == {full: NOTHING}, "figures of the one before"
    place.sent.bytes += 7
    assert counts.read(full) == {full: PeerCount(VerdictCount(0, 7), VerdictCount(0, 0), 0, 0)}
    before = crowd[: crowd.index(full)]
    assert sum(count == NOTHING for count in counts.read(*before).values()) == 1, "one has lost its place, and no more"


def _counted(place: Any) -> bool:
    if place is not None:
        place.sent.packets += 1
    return place is not None


def test_a_table_without_a_peer_and_its_return_change_nothing_of_what_was_counted() -> None:
    peer, other = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.9")
    counts = Counts()
    counts.of(table_of(peer, other), peer).received.packets += 4
    counts.of(table_of(other), other).received.packets += 1
    counts.of(table_of(other, peer), peer).received.packets += 1
    assert counts.read(peer)[peer].received.packets == 5


def test_a_reader_is_content_with_any_bytes() -> None:
    counts = Counts()
    size = lib.fp_peer_counts_bytes()
    ffi.memmove(counts.memory, random.Random(2).randbytes(size), size)
    peers: list[Address] = [IPv4Address(number) for number in range(1, 200)]
    assert set(counts.read(*peers)) == set(peers)
    assert counts.read() == {}
