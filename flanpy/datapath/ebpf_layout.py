"""The bytes that the BPF programs work by: Python's half of csrc/bpf/layout.h, which draws the layout.

Pure: a table and the programs' options in, a snapshot out; and counters from bytes. The numbers here and there must agree;
a test compiles the header and compares.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from flanpy.datapath import VerdictCount
from flanpy.errors import DatapathError
from flanpy.model import Address, ForwardTable, Hop

LAYOUT = 4
CHUNK_BYTES, WORDS, HEADER_CHUNK, HOPS_CHUNK, HOPS_PER_CHUNK = 1024, 256, 256, 257, 32
NONE, LOCAL, FIRST_HOP, POINTER = 0, 1, 2, 0x80000000
SOURCE_CHECK, CARRIES, BYPASS, INNER_GRO, SELF_TEST, WHOLE, TRAINS, SIX = 1, 2, 4, 8, 16, 32, 64, 128
HOP_ECN, HOP_SUPERPACKET = 1, 2

COUNTERS_BYTES, VERDICT_SLOTS, OTHER_SLOTS = 768, 32, 32
PEER_BYTES = 48
"""What is counted for one peer on one CPU (struct fp_bpf_peer)."""
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
OUTER_BYTES = {4: 28, 6: 48}
"""IP header without options or extensions (20 or 40) and UDP header (8)."""
CHUNKS_MAX = 1 << 18
"""256 MiB of levels: 65,536 IPv6 prefixes strewn at random over a /32 need half of it."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the programs work by besides the routes (struct fp_bpf_header); interfaces by index, 0: none."""

    device: int
    underlay: int
    address: Address
    port: int
    mtu_bytes: int
    source_check: bool = True
    carries: bool = True
    bridge: int = 0
    gro: int = 0
    self_test: bool = False
    whole: bool = True
    trains: bool = False

    @property
    def outer_bytes(self) -> int:
        """The largest outer packet."""
        return self.mtu_bytes + OUTER_BYTES[self.address.version]

    def packed(self, generation: int, hops: int, six: Shared6 | None = None) -> bytes:
        """The bytes of the header chunk; ``six`` says where the IPv6 prefixes begin."""
        flags = (
            (SOURCE_CHECK if self.source_check else 0)
            | (CARRIES if self.carries else 0)
            | (BYPASS if self.bridge else 0)
            | (INNER_GRO if self.gro else 0)
            | (SELF_TEST if self.self_test else 0)
            | (WHOLE if self.whole else 0)
            | (TRAINS if self.trains else 0)
            | (SIX if self.address.version == 6 else 0)
        )
        numbers = struct.pack("=IIQIIII", LAYOUT, flags, generation, hops, self.mtu_bytes, self.device, self.underlay)
        devices = struct.pack("!H", self.port) + struct.pack("=HIII", 0, self.bridge, self.gro, 0)
        prefixes = six.packed() if six else bytes(40)
        return (numbers + devices + prefixes + address_key(self.address)).ljust(CHUNK_BYTES, b"\0")


@dataclass(frozen=True, slots=True)
class Shared6:
    """What all IPv6 prefixes begin with, in whole bytes: the levels of the search follow behind them, from chunk ``root`` on."""

    root: int
    shared: bytes

    @classmethod
    def of(cls, prefixes: list[tuple[int, int]], root: int) -> Shared6:
        """For (length, network) of each prefix; at most 15 bytes, so that there is one to search by."""
        whole = min(length for length, _ in prefixes) // 8
        first, last = (edge(network for _, network in prefixes).to_bytes(16, "big") for edge in (min, max))
        common = next((at for at in range(16) if first[at] != last[at]), 16)
        return cls(root, first[: min(whole, common, 15)])

    def packed(self) -> bytes:
        """The fields of struct fp_bpf_header about them."""
        value, mask = self.shared.ljust(16, b"\0"), (b"\xff" * len(self.shared)).ljust(16, b"\0")
        numbers = (*struct.unpack("!QQ", value), *struct.unpack("!QQ", mask))
        return struct.pack("=II4Q", self.root, len(self.shared), *numbers)


def halves(address: Address) -> tuple[int, int]:
    """An address of the underlay as a number of 128 bits, upper half first; IPv4 as ::ffff:a.b.c.d."""
    number = int(address) if address.version == 6 else 0xFFFF << 32 | int(address)
    return number >> 64, number & 0xFFFFFFFFFFFFFFFF


def address_key(address: Address) -> bytes:
    """The same as the bytes of struct fp_address."""
    return struct.pack("=QQ", *halves(address))


def peer_key(address: Address) -> int:
    """By which notes about a peer are kept (fp_peer_key): the IPv4 address, or 32 bits mixed from the IPv6 one."""
    if address.version == 4:
        return int(address)
    high, low = halves(address)
    return (((high * 0x9E3779B97F4A7C15 + low) * 0xD6E8FEB86659FD93) & 0xFFFFFFFFFFFFFFFF) >> 32


def build_snapshot(table: ForwardTable, header: Header, narrow: Mapping[Address, int] = MappingProxyType({})) -> bytes:
    """The whole snapshot for a table. ``narrow``: bytes of an outer packet to peers that take less than the rest.

    Raises DatapathError when the table holds what it cannot express.
    """
    _require_family(table, header.address)
    hops = sorted(
        set({id(entry.hop): entry.hop for entry in table.entries}.values())
    )  # hashing an address is slow: once for each object
    if len(hops) > HOPS_MAX:
        raise DatapathError(f"ebpf: {len(hops)} peers in the table; at most {HOPS_MAX} can be held")
    hop_chunks = -(-len(hops) // HOPS_PER_CHUNK)
    words = {family: sorted(_words(table, hops, family)) for family in (4, 6)}
    levels = _Levels(HOPS_CHUNK + hop_chunks)
    for length, network, word in words[4]:
        levels.put(network, length, word)
    six = _put6(levels, words[6]) if words[6] else None
    packed_hops = b"".join(_packed_hop(hop, _inner_bytes(hop, header, narrow)) for hop in hops).ljust(
        hop_chunks * CHUNK_BYTES, b"\0"
    )
    return levels.first.tobytes() + header.packed(table.generation, len(hops), six) + packed_hops + levels.more.tobytes()


def _require_family(table: ForwardTable, own: Address) -> None:
    """Every peer is reached by our own address's family: a node sends from one address."""
    for hop in {id(entry.hop): entry.hop for entry in table.entries}.values():
        if hop.address.version != own.version:
            raise DatapathError(f"ebpf: peer {hop} cannot be reached from {own}: one underlay is of one family")


def _put6(levels: _Levels, words: list[tuple[int, int, int]]) -> Shared6:
    """The IPv6 prefixes, shorter ones first."""
    six = Shared6.of([(length, network) for length, network, _ in words], levels.new(NONE))
    for length, network, word in words:
        levels.put6(six, network, length, word)
        if levels.chunks > CHUNKS_MAX:
            raise DatapathError(
                f"ebpf: the IPv6 prefixes of the table are strewn too widely for its maps (more than {CHUNKS_MAX >> 10} MiB)"
            )
    return six


def _words(table: ForwardTable, hops: list[Hop], family: int) -> Iterable[tuple[int, int, int]]:
    """(prefix length, network, word) of every prefix of a family."""
    numbers = {hop: FIRST_HOP + number for number, hop in enumerate(hops)}
    own = {(prefix.prefixlen, int(prefix.network_address)) for prefix in table.local if prefix.version == family}
    by_object: dict[int, int] = {}
    for entry in table.entries:
        length, network = entry.prefix.prefixlen, int(entry.prefix.network_address)
        # a peer that claims our own subnet: we stay what we are, as in the userspace core
        if entry.prefix.version != family or (length, network) in own:
            continue
        word = by_object.get(id(entry.hop))
        if word is None:
            word = by_object[id(entry.hop)] = numbers[entry.hop]
        yield length, network, word
    yield from ((*prefix, LOCAL) for prefix in own)


def _inner_bytes(hop: Hop, header: Header, narrow: Mapping[Address, int]) -> int:
    if not narrow or hop.address not in narrow:
        return header.mtu_bytes
    return min(header.mtu_bytes, max(narrow[hop.address] - OUTER_BYTES[hop.address.version], 0))


def _packed_hop(hop: Hop, mtu_bytes: int) -> bytes:
    flags = (HOP_ECN if hop.ecn else 0) | (HOP_SUPERPACKET if hop.superpacket else 0)
    return address_key(hop.address) + struct.pack("!H", hop.port) + struct.pack("=HIQ", flags, mtu_bytes, 0)


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
        level[index] = POINTER | self.new(word)
        return len(self.more) - WORDS

    def new(self, word: int) -> int:
        """A new chunk filled with this word: its number in the snapshot."""
        self.more.extend(array("I", [word]) * WORDS)
        return self.base + self.chunks - 1

    @property
    def chunks(self) -> int:
        """Chunks behind the hops."""
        return len(self.more) // WORDS

    def put6(self, six: Shared6, network: int, length: int, word: int) -> None:
        """The same for IPv6: a level for each byte behind the shared ones."""
        address = network.to_bytes(16, "big")
        chunk, at = (six.root - self.base) * WORDS, len(six.shared)
        while length > 8 * (at + 1):
            chunk, at = self._below(self.more, chunk + address[at]), at + 1
        self._fill(chunk + address[at], 1 << (8 * (at + 1) - length), word)


assert array("I").itemsize == 4, "words are 32 bits"
assert sys.byteorder in ("little", "big")


def sum_counters(per_cpu: bytes, verdicts: tuple[str, ...]) -> tuple[dict[str, VerdictCount], dict[str, int]]:
    """Add up all CPUs' counters: verdicts by name, the others by name."""
    totals = [0] * (2 * VERDICT_SLOTS + OTHER_SLOTS)
    for page in struct.iter_unpack(f"={len(totals)}Q", per_cpu):
        totals = [total + value for total, value in zip(totals, page, strict=True)]
    counts = {name: VerdictCount(totals[2 * number], totals[2 * number + 1]) for number, name in enumerate(verdicts)}
    return counts, {name: totals[2 * VERDICT_SLOTS + number] for number, name in enumerate(COUNTERS)}


def sum_of(per_cpu: bytes, names: Iterable[str]) -> int:
    """Only some of the other counters, of all CPUs, all together."""
    words, page = memoryview(per_cpu).cast("Q"), COUNTERS_BYTES // 8
    return sum(sum(words[2 * VERDICT_SLOTS + COUNTERS.index(name) :: page]) for name in names)
