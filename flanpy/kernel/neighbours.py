"""Permanent entries of our overlay devices: neighbours (address -> MAC) and VXLAN forwarding entries (MAC -> node).

Only devices that are named are looked at, and only permanent entries: what the kernel has learned by itself is its own business.
Entries are written by replacing, so that one whose meaning changes is never away in between.

    struct ndmsg   u8 family | 3 pad | i32 index | u16 state | u8 flags | u8 type
    neighbour      family AF_INET or AF_INET6, NDA_DST the address, NDA_LLADDR the MAC
    FDB entry      family AF_BRIDGE, flags NTF_SELF, NDA_LLADDR the MAC, NDA_DST the node
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6

from flanpy.kernel.devices import device_names
from flanpy.kernel.messages import CREATE, REPLACE, attribute, attributes
from flanpy.kernel.netlink import Kernel, explained, explained_errno, settled
from flanpy.model import Address, FdbEntry, Neighbour

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
AF_BRIDGE = 7
NUD_PERMANENT, NTF_SELF = 0x80, 0x02

_NDMSG = struct.Struct("=B3xiHBB")
_DST, _LLADDR, _PORT, _IFINDEX = 1, 2, 6, 8
_GONE = frozenset((errno.ENOENT, errno.ENODEV, errno.ESRCH))

Entry = Neighbour | FdbEntry
Failed = tuple[Entry, str]


def list_entries(kernel: Kernel, devices: Iterable[str]) -> frozenset[Entry]:
    """All permanent entries of these devices."""
    wanted = set(devices)
    names = {index: name for index, name in device_names(kernel).items() if name in wanted}
    return frozenset(entry for family in (AF_INET, AF_INET6, AF_BRIDGE) for entry in _read(kernel, family, names))


def _read(kernel: Kernel, family: int, names: Mapping[int, str]) -> list[Entry]:
    if not names:
        return []
    found: list[Entry] = []
    for index in names:  # the kernel filters, so that a host's thousands of other neighbours are not read
        request = _NDMSG.pack(family, 0, 0, 0, 0) + attribute(_IFINDEX, struct.pack("=I", index))
        found += settled(
            "list the neighbours",
            lambda request=request: _entries(kernel.dump(RTM_GETNEIGH, request), names),  # type: ignore[misc]
        )
    return found


def _entries(messages: Iterable[tuple[int, memoryview]], names: Mapping[int, str]) -> Iterator[Entry]:
    for kind, body in messages:
        entry = parse_entry(body, names) if kind == RTM_NEWNEIGH else None
        if entry is not None:
            yield entry


def parse_entry(body: memoryview, names: Mapping[int, str]) -> Entry | None:
    """The entry of a message; None when it is malformed, not permanent, or of a device that is not in ``names``."""
    if len(body) < _NDMSG.size:
        return None
    family, index, state, _, _ = _NDMSG.unpack_from(body)
    found = attributes(body, _NDMSG.size)
    address, mac = _address(found.get(_DST, b"")), found.get(_LLADDR, b"")
    if index not in names or not state & NUD_PERMANENT or len(mac) != 6 or address is None:
        return None
    if family == AF_BRIDGE:
        return FdbEntry(names[index], mac.hex(":"), address, int.from_bytes(found.get(_PORT, b""), "big"))
    return Neighbour(names[index], address, mac.hex(":"))


def _address(payload: bytes) -> Address | None:
    return IPv4Address(payload) if len(payload) == 4 else IPv6Address(payload) if len(payload) == 16 else None


def write_entries(kernel: Kernel, entries: Iterable[Entry]) -> tuple[Failed, ...]:
    """Write entries, FDB first, so that a neighbour never names a MAC that leads nowhere; returns those that could not be."""
    ordered = sorted(entries, key=lambda entry: isinstance(entry, Neighbour))
    return _execute(kernel, RTM_NEWNEIGH, CREATE | REPLACE, ordered, "write neighbours")


def remove_entries(kernel: Kernel, entries: Iterable[Entry]) -> tuple[Failed, ...]:
    """Remove entries, neighbours first; what is gone already, alone or with its device, is well."""
    ordered = sorted(entries, key=lambda entry: isinstance(entry, FdbEntry))
    return _execute(kernel, RTM_DELNEIGH, 0, ordered, "remove neighbours")


def _execute(kernel: Kernel, kind: int, flags: int, entries: list[Entry], what: str) -> tuple[Failed, ...]:
    if not entries:
        return ()
    indexes = {name: index for index, name in device_names(kernel).items()}
    known = [entry for entry in entries if entry.device in indexes]
    with explained(what):
        failures = kernel.execute((kind, flags, _body(entry, indexes[entry.device])) for entry in known)
    removing = kind == RTM_DELNEIGH
    failed = [
        (known[position], explained_errno(*failure))
        for position, failure in failures.items()
        if not (removing and failure[0] in _GONE)
    ]
    lost = [] if removing else [entry for entry in entries if entry.device not in indexes]
    return (*failed, *((entry, f"there is no device {entry.device}") for entry in lost))


def _body(entry: Entry, index: int) -> bytes:
    mac = bytes.fromhex(entry.mac.replace(":", ""))
    match entry:
        case Neighbour(address=address):
            family = AF_INET if address.version == 4 else AF_INET6
            return _NDMSG.pack(family, index, NUD_PERMANENT, 0, 0) + attribute(_DST, address.packed) + attribute(_LLADDR, mac)
        case FdbEntry(destination=destination, port=port):
            body = _NDMSG.pack(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0)
            body += attribute(_LLADDR, mac) + attribute(_DST, destination.packed)
            return body + attribute(_PORT, port.to_bytes(2, "big")) if port else body
