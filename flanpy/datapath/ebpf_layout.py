"""The bytes that the BPF programs work by: Python's half of csrc/bpf/layout.h, which draws the layout.

Pure: a table and the programs' options in, a snapshot out; and counters from bytes. The numbers here and there must agree;
a test compiles the header and compares.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from flanpy.datapath import VerdictCount
from flanpy.errors import DatapathError
from flanpy.model import ForwardTable, Hop, TableEntry

LAYOUT = 1
CHUNK_BYTES, WORDS, HEADER_CHUNK, HOPS_CHUNK, HOPS_PER_CHUNK = 1024, 256, 256, 257, 64
NONE, LOCAL, FIRST_HOP, POINTER = 0, 1, 2, 0x80000000
SOURCE_CHECK, CARRIES, BYPASS, INNER_GRO, SELF_TEST, WHOLE, TRAINS = 1, 2, 4, 8, 16, 32, 64
HOP_ECN, HOP_SUPERPACKET = 1, 2

COUNTERS_BYTES, VERDICT_SLOTS, OTHER_SLOTS = 768, 32, 32
COUNTERS = (
    "bpf_up_encapsulated",
    "bpf_up_udp_train",
    "bpf_up_plain_peer",
    "bpf_up_answer",
    "bpf_up_neighbour",
    "bpf_up_fragment",
    "bpf_up_socket",
    "bpf_superpackets_out",
    "bpf_superpackets_in",
    "bpf_inner_gro",
    "bpf_bypassed",
    "bpf_probes_out",
    "bpf_probes_in",
    "bpf_up_tcp_train",
)
"""Names of the counters beside verdicts, in the order of FP_BPF_COUNTERS."""

HOPS_MAX = 1 << 17
"""fp_knows searches so many."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the programs work by besides the routes (struct fp_bpf_header); interfaces by index, 0: none."""

    device: int
    underlay: int
    address: IPv4Address
    port: int
    mtu_bytes: int
    source_check: bool = True
    carries: bool = True
    bridge: int = 0
    gro: int = 0
    self_test: bool = False
    whole: bool = True
    trains: bool = False

    def packed(self, generation: int, hops: int) -> bytes:
        """The bytes of the header chunk."""
        flags = (
            (SOURCE_CHECK if self.source_check else 0)
            | (CARRIES if self.carries else 0)
            | (BYPASS if self.bridge else 0)
            | (INNER_GRO if self.gro else 0)
            | (SELF_TEST if self.self_test else 0)
            | (WHOLE if self.whole else 0)
            | (TRAINS if self.trains else 0)
        )
        network = self.address.packed + struct.pack("!H", self.port)
        numbers = struct.pack("=IIQIIII", LAYOUT, flags, generation, hops, self.mtu_bytes, self.device, self.underlay)
        return (numbers + network + struct.pack("=HII", 0, self.bridge, self.gro)).ljust(CHUNK_BYTES, b"\0")


def build_snapshot(table: ForwardTable, header: Header) -> bytes:
    """The whole snapshot for a table. Raises DatapathError when the table holds what it cannot express."""
    entries = [entry for entry in table.entries if isinstance(entry.prefix, IPv4Network)]
    hops = sorted(
        set({id(entry.hop): entry.hop for entry in entries}.values())
    )  # hashing an address is slow: once for each object
    if len(hops) > HOPS_MAX:
        raise DatapathError(f"ebpf: {len(hops)} peers in the table; at most {HOPS_MAX} can be held")
    hop_chunks = -(-len(hops) // HOPS_PER_CHUNK)
    levels = _Levels(HOPS_CHUNK + hop_chunks)
    for length, network, word in sorted(_words(entries, hops, table.local)):
        levels.put(network, length, word)
    packed_hops = b"".join(map(_packed_hop, hops)).ljust(hop_chunks * CHUNK_BYTES, b"\0")
    return levels.first.tobytes() + header.packed(table.generation, len(hops)) + packed_hops + levels.more.tobytes()


def snapshot_generation(header_chunk: bytes) -> int:
    """The generation in a header chunk."""
    generation: int = struct.unpack_from("=Q", header_chunk, 8)[0]
    return generation


def _words(entries: list[TableEntry], hops: list[Hop], local: Iterable[object]) -> Iterable[tuple[int, int, int]]:
    """(prefix length, network, word) of every prefix."""
    numbers = {hop: FIRST_HOP + number for number, hop in enumerate(hops)}
    own = [(prefix.prefixlen, int(prefix.network_address)) for prefix in local if isinstance(prefix, IPv4Network)]
    by_object: dict[int, int] = {}
    for entry in entries:
        length, network = entry.prefix.prefixlen, int(entry.prefix.network_address)
        if (length, network) in own:  # a peer that claims our own subnet: we stay what we are, as in the userspace core
            continue
        word = by_object.get(id(entry.hop))
        if word is None:
            word = by_object[id(entry.hop)] = numbers[entry.hop]
        yield length, network, word
    yield from ((*prefix, LOCAL) for prefix in own)


def _packed_hop(hop: Hop) -> bytes:
    if not isinstance(hop.address, IPv4Address):
        raise DatapathError(f"ebpf: peer {hop} is reached over IPv6, which these programs do not speak")
    flags = (HOP_ECN if hop.ecn else 0) | (HOP_SUPERPACKET if hop.superpacket else 0)
    return struct.pack("=I", int(hop.address)) + struct.pack("!H", hop.port) + struct.pack("=HQ", flags, 0)


class _Levels:
    """The words of the three levels while they are filled, shorter prefixes before longer ones."""

    def __init__(self, first_free_chunk: int) -> None:
        self.first = array("I", bytes(4 * WORDS * WORDS))
        self.more = array("I")
        self.base = first_free_chunk

    def put(self, network: int, length: int, word: int) -> None:
        """Let every address below the prefix find this word; prefixes of one length do not overlap."""
        if length == 24:
            self.more[self._below(self.first, network >> 16) + (network >> 8 & 0xFF)] = word
            return
        if length <= 16:
            start, count = network >> 16, 1 << (16 - length)
            self.first[start : start + count] = array("I", [word]) * count
            return
        chunk = self._below(self.first, network >> 16)
        if length <= 24:
            self._fill(chunk + (network >> 8 & 0xFF), 1 << (24 - length), word)
        else:
            chunk = self._below(self.more, chunk + (network >> 8 & 0xFF))
            self._fill(chunk + (network & 0xFF), 1 << (32 - length), word)

    def _fill(self, start: int, count: int, word: int) -> None:
        self.more[start : start + count] = array("I", [word]) * count

    def _below(self, level: array[int], index: int) -> int:
        """Where the chunk under this word starts; made, filled with the word itself, when there is none yet."""
        word = level[index]
        if word & POINTER:
            return ((word & ~POINTER) - self.base) * WORDS
        start = len(self.more)
        level[index] = POINTER | (self.base + start // WORDS)
        self.more.extend(array("I", [word]) * WORDS)
        return start


assert array("I").itemsize == 4, "words are 32 bits"
assert sys.byteorder in ("little", "big")


def sum_counters(per_cpu: bytes, verdicts: tuple[str, ...]) -> tuple[dict[str, VerdictCount], dict[str, int]]:
    """Add up all CPUs' counters: verdicts by name, the others by name."""
    totals = [0] * (2 * VERDICT_SLOTS + OTHER_SLOTS)
    for page in struct.iter_unpack(f"={len(totals)}Q", per_cpu):
        totals = [total + value for total, value in zip(totals, page, strict=True)]
    counts = {name: VerdictCount(totals[2 * number], totals[2 * number + 1]) for number, name in enumerate(verdicts)}
    return counts, {name: totals[2 * VERDICT_SLOTS + number] for number, name in enumerate(COUNTERS)}
