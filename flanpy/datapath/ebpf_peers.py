"""What the BPF programs count for each peer: a per-CPU hash by the peer's address, in which the agent alone makes and removes entries.

So it holds the peers of the table and nobody else: a stranger makes none, and a peer that goes takes its own with it. The programs add
to what they find. Entries without memory for them, or more than the map takes, are not counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from flanpy.datapath import PeerCount, VerdictCount
from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.ebpf_layout import PEER_BYTES, address_key
from flanpy.model import Address

KEY_BYTES = 16
_FIGURES = PEER_BYTES // 8
NOTHING = PeerCount(VerdictCount(0, 0), VerdictCount(0, 0), 0, 0)


class PeerCounters:
    """The entries of one map; what an earlier run has left in it goes on."""

    def __init__(self, counters: bpf.Fd, cpus: int) -> None:
        self._map = counters
        self._cpus = cpus
        self._there = set(bpf.keys(counters, KEY_BYTES))

    def have(self, peers: Iterable[Address]) -> None:
        """An entry for each of these peers, and for no other."""
        wanted = {address_key(peer) for peer in peers}
        for gone in self._there - wanted:
            with suppress(FileNotFoundError):
                bpf.delete(self._map, gone)
        kept = self._there & wanted
        for fresh in sorted(wanted - kept):
            with suppress(OSError):  # E2BIG, ENOMEM: it is carried, and not counted
                bpf.update(self._map, fresh, bytes(PEER_BYTES * self._cpus))
                kept.add(fresh)
        self._there = kept

    def read(self, peers: Sequence[Address]) -> dict[Address, PeerCount]:
        """What all CPUs have counted; zeros for whom there is no entry."""
        return {peer: self._count(key) if (key := address_key(peer)) in self._there else NOTHING for peer in peers}

    def _count(self, key: bytes) -> PeerCount:
        try:
            per_cpu = bpf.lookup(self._map, key, PEER_BYTES * self._cpus)
        except OSError:
            return NOTHING
        words = array("Q", per_cpu)
        figures = [sum(words[at::_FIGURES]) for at in range(_FIGURES)]
        return PeerCount(VerdictCount(*figures[:2]), VerdictCount(*figures[2:4]), *figures[4:])


def both(one: Mapping[Address, PeerCount], other: Mapping[Address, PeerCount]) -> dict[Address, PeerCount]:
    """What two halves of a datapath have counted for the same peers."""
    return {peer: _sum(count, other.get(peer, NOTHING)) for peer, count in one.items()}


def _sum(a: PeerCount, b: PeerCount) -> PeerCount:
    return PeerCount(
        VerdictCount(a.sent.packets + b.sent.packets, a.sent.bytes + b.sent.bytes),
        VerdictCount(a.received.packets + b.received.packets, a.received.bytes + b.received.bytes),
        a.dropped_out + b.dropped_out,
        a.dropped_in + b.dropped_in,
    )
