"""Thin typed view of the compiled core: names of verdicts, and the table blob of a ForwardTable.

Holds no state and starts nothing; the worker threads are userspace.py's. To import it is a PlatformError where the core is not built,
or was built from other headers than lie beside it.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from itertools import count
from pathlib import Path
from typing import Any

from flanpy.datapath import PeerCount, VerdictCount, core_api
from flanpy.errors import DatapathError, PlatformError
from flanpy.model import Address, ForwardTable, Hop, TableEntry

try:
    from flanpy.datapath._core import ffi as _ffi
    from flanpy.datapath._core import lib as _lib
except ImportError as error:
    raise PlatformError(f"the compiled C core is not there: {error}; {core_api.CURE}") from error

ffi: Any = _ffi
lib: Any = _lib


def _built_from() -> str | None:
    """The digest of the headers that the core was built from; early ones tell none."""
    return str(ffi.string(lib.fp_api_digest()).decode()) if hasattr(lib, "fp_api_digest") else None


if _stale := core_api.problem(_built_from(), Path(__file__).resolve().parents[2] / "csrc"):
    raise PlatformError(f"{_stale}; {core_api.CURE}")

_HOP = struct.Struct("=16sHHI")
_ROUTE6 = struct.Struct("=16sII")
_V4_IN_V6 = b"\0" * 10 + b"\xff\xff"


def _names(name_of: Any) -> Iterator[str]:
    for number in count():
        name = name_of(number)
        if name == ffi.NULL:
            return
        yield ffi.string(name).decode()


VERDICTS: tuple[str, ...] = tuple(_names(lib.fp_verdict_name))
"""Names in the order of ``enum fp_verdict``."""
VERDICT_MEANINGS: dict[str, str] = dict(zip(VERDICTS, _names(lib.fp_verdict_meaning), strict=True))
WORK_COUNTERS: tuple[str, ...] = tuple(_names(lib.fp_work_name))
"""Names in the order of ``enum fp_work_counter``."""
WORK_MEANINGS: dict[str, str] = dict(zip(WORK_COUNTERS, _names(lib.fp_work_meaning), strict=True))


def cpu() -> str:
    """The checksum implementation that runs on this CPU."""
    return str(ffi.string(lib.fp_cpu()).decode())


def address_bytes(address: Address) -> bytes:
    """An address as the core compares it: 16 bytes, IPv4 mapped into IPv6."""
    return address.packed if address.version == 6 else _V4_IN_V6 + address.packed


def peer_counts(peers: Sequence[Address], add: Callable[[Any, int, Any], None]) -> dict[Address, PeerCount]:
    """What pages have counted for these peers: ``add`` lets C add them to ``struct fp_peer_count[]`` for ``struct fp_address[]``."""
    wanted = list(dict.fromkeys(peers))
    addresses = ffi.from_buffer("struct fp_address[]", b"".join(map(address_bytes, wanted)))
    counts = ffi.new("struct fp_peer_count[]", len(wanted))
    add(addresses, len(wanted), counts)
    return {
        peer: PeerCount(
            VerdictCount(count.sent.packets, count.sent.bytes),
            VerdictCount(count.received.packets, count.received.bytes),
            count.dropped_out,
            count.dropped_in,
        )
        for peer, count in zip(wanted, counts, strict=True)
    }


def hop_bytes(hop: Hop) -> bytes:
    """``struct fp_hop``."""
    return _HOP.pack(address_bytes(hop.address), hop.port, lib.FP_HOP_ECN if hop.ecn else 0, 0)


class TableBlob:
    """A checked, immutable table in C memory: ``memory`` (aligned to 64) and ``size`` are what the C side takes."""

    __slots__ = ("_owner", "memory", "size")

    def __init__(self, owner: Any, memory: Any, size: int) -> None:
        self._owner = owner
        self.memory = memory
        self.size = size

    @property
    def table(self) -> Any:
        """``const struct fp_table *``, valid as long as this object lives."""
        return ffi.cast("struct fp_table *", self.memory)

    def __bytes__(self) -> bytes:
        return bytes(ffi.buffer(self.memory, self.size))

    def lookup(self, address: Address) -> int:
        """Number of the hop, ``lib.FP_HOP_LOCAL`` or ``lib.FP_HOP_NONE``."""
        if address.version == 6:
            return int(lib.fp_table_lookup6(self.table, ffi.from_buffer("uint8_t[]", address.packed)))
        return int(lib.fp_table_lookup4(self.table, int(address)))


def aligned(size: int) -> tuple[Any, Any]:
    """Zeroed C memory on a cache line: (owner to keep alive, pointer)."""
    owner = ffi.new("uint8_t[]", size + 64)
    return owner, owner + -int(ffi.cast("uintptr_t", owner)) % 64


def _hop_numbers(entries: Iterable[TableEntry]) -> tuple[list[Hop], dict[int, int]]:
    """Different hops in order of appearance, and the number of each hop object by its identity (hashing values is slow)."""
    by_identity: dict[int, int] = {}
    by_value: dict[Hop, int] = {}
    for entry in entries:
        if id(entry.hop) not in by_identity:
            by_identity[id(entry.hop)] = by_value.setdefault(entry.hop, len(by_value))
    return list(by_value), by_identity


def _route_words(table: ForwardTable, hop_number: dict[int, int]) -> array[int]:
    """``struct fp_route4[]``: prefix, length, hop. A local prefix wins over a peer's claim to the very same prefix."""
    words = array("I")
    local = {prefix for prefix in table.local if isinstance(prefix, IPv4Network)}
    for own in local:
        words.extend((int(own.network_address), own.prefixlen, lib.FP_HOP_LOCAL))
    for entry in table.entries:
        prefix = entry.prefix
        if prefix.version == 4 and (not local or prefix not in local):
            words.extend((int(prefix.network_address), prefix.prefixlen, hop_number[id(entry.hop)]))
    return words


def _routes6(table: ForwardTable, hop_number: dict[int, int]) -> bytearray:
    """``struct fp_route6[]``, by the same rule."""
    local = {prefix for prefix in table.local if isinstance(prefix, IPv6Network)}
    packed = [_ROUTE6.pack(own.network_address.packed, own.prefixlen, lib.FP_HOP_LOCAL) for own in local]
    packed += [
        _ROUTE6.pack(entry.prefix.network_address.packed, entry.prefix.prefixlen, hop_number[id(entry.hop)])
        for entry in table.entries
        if entry.prefix.version == 6 and entry.prefix not in local
    ]
    return bytearray(b"".join(packed))


def build_table(table: ForwardTable) -> TableBlob:
    """The blob that the datapath forwards by. DatapathError when two entries claim one prefix."""
    hops, hop_number = _hop_numbers(table.entries)
    words, packed6 = _route_words(table, hop_number), _routes6(table, hop_number)
    v4, v6 = (
        ffi.from_buffer("struct fp_route4[]", words, require_writable=True),
        ffi.from_buffer("struct fp_route6[]", packed6, require_writable=True),
    )
    packed_hops = ffi.from_buffer("struct fp_hop[]", b"".join(map(hop_bytes, hops)))
    lib.fp_routes_sort(v4, len(v4))
    lib.fp_routes6_sort(v6, len(v6))
    routes = ffi.new("struct fp_routes *", (v4, len(v4), v6, len(v6), packed_hops, len(hops), table.mtu_bytes))
    size = lib.fp_table_bytes(routes)
    if size == 0:
        raise DatapathError(f"route table {table.generation}: two entries have one prefix; each prefix may have one hop")
    owner, memory = aligned(size)
    error = lib.fp_table_build(memory, size, table.generation, routes)
    if error != 0:
        raise DatapathError(f"route table {table.generation}: cannot be built: {os.strerror(-error)}")
    return TableBlob(owner, memory, size)
