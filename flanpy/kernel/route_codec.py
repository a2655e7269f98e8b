"""Routes to rtnetlink message bodies and back; pure, so that tests need no kernel.

    struct rtmsg   u8 family | u8 dst_len | u8 src_len | u8 tos | u8 table | u8 protocol | u8 scope | u8 type | u32 flags
    attributes     RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH, RTA_TABLE

A route leads to a device or, as a blackhole, nowhere. Metric 0 means the kernel's default, which IPv6 turns into 1024: it is read
back as 0.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6

from flanpy.kernel.messages import attribute, attributes
from flanpy.model import Address, Network, Route

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
MAIN_TABLE = 254

_RTMSG = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP = struct.Struct("=HBBi")
_U32 = struct.Struct("=I")
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _MULTIPATH, _TABLE = 1, 4, 5, 6, 7, 9, 15
_UNIVERSE, _LINK, _NOWHERE = 0, 253, 255
_KINDS = {1: "unicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_NUMBERS = {name: number for number, name in _KINDS.items()}
_NOWHERE_KINDS = frozenset(_KINDS) - {1}
"""Routes without a device; IPv6 tells the loopback's for them."""
_ONLINK = 4
_DEFAULT_METRIC6 = 1024
_LARGE_TABLE = 252
"""rtm_table of a table whose number does not fit its eight bits."""


def new_body(route: Route, index: int) -> bytes:
    """The body of a request that writes this route by the device of this index."""
    on_link = route.gateway is None and route.destination.version == 4 and route.kind == "unicast"
    return _body(route, index, _LINK if on_link else _UNIVERSE, _NUMBERS[route.kind], _ONLINK if route.onlink else 0)


def delete_body(route: Route, index: int) -> bytes:
    """The body of a request that deletes this route, of whatever scope it is; one that leads nowhere is told by its type."""
    return _body(route, index, _NOWHERE, 0 if route.device else _NUMBERS.get(route.kind, 0), 0)


def _body(route: Route, index: int, scope: int, kind: int, flags: int) -> bytes:
    destination = route.destination
    family, metric = (AF_INET, route.metric) if destination.version == 4 else (AF_INET6, route.metric or _DEFAULT_METRIC6)
    small_table = route.table if route.table < 256 else _LARGE_TABLE
    parts = [
        _RTMSG.pack(family, destination.prefixlen, 0, 0, small_table, route.protocol, scope, kind, flags),
        attribute(_DST, destination.network_address.packed),
        attribute(_TABLE, _U32.pack(route.table)),
    ]
    if index:
        parts.append(attribute(_OIF, _U32.pack(index)))
    if metric:
        parts.append(attribute(_PRIORITY, _U32.pack(metric)))
    if route.gateway is not None:
        parts.append(attribute(_GATEWAY, route.gateway.packed))
    if route.source is not None:
        parts.append(attribute(_PREFSRC, route.source.packed))
    return b"".join(parts)


def dump_body(family: int, protocol: int = 0, table: int = 0) -> bytes:
    """The body of a request for all routes of a family; protocol and table 0 mean any (filtered by the kernel)."""
    small_table = table if table < 256 else _LARGE_TABLE
    body = _RTMSG.pack(family, 0, 0, 0, small_table if table else 0, protocol, 0, 0, 0)
    return body + attribute(_TABLE, _U32.pack(table)) if table else body


def protocol_of(body: memoryview) -> int:
    """The protocol number of a route message, or -1 when it is too short for one."""
    return int(body[5]) if len(body) >= _RTMSG.size else -1


def is_default(body: memoryview) -> bool:
    """Whether a route message is about everything (prefix length 0)."""
    return len(body) >= _RTMSG.size and body[1] == 0


def parse(body: memoryview, names: Mapping[int, str]) -> Route | None:
    """The route of a message; None when it is malformed, has a type of service, or its device is no longer in ``names``.

    A route of several hops carries their devices' names joined by ``/``, so it never equals a route of ours; one without a
    device (blackhole, unreachable) has the name "".
    """
    if len(body) < _RTMSG.size:
        return None
    family, prefix_len, _, tos, small_table, protocol, _, kind, flags = _RTMSG.unpack_from(body)
    if tos or family not in (AF_INET, AF_INET6):
        return None
    found = attributes(body, _RTMSG.size)
    device = _device(found, names) if kind not in _NOWHERE_KINDS else ""
    if device is None:
        return None
    metric = _number(found.get(_PRIORITY), 0)
    try:
        return Route(
            destination=_network(family, found.get(_DST), prefix_len),
            device=device,
            gateway=_address(family, found.get(_GATEWAY)),
            source=_address(family, found.get(_PREFSRC)),
            metric=0 if family == AF_INET6 and metric == _DEFAULT_METRIC6 else metric,
            table=_number(found.get(_TABLE), small_table),
            protocol=protocol,
            onlink=bool(flags & _ONLINK),
            kind=_KINDS.get(kind, str(kind)),
        )
    except ValueError:
        return None


def _device(found: Mapping[int, bytes], names: Mapping[int, str]) -> str | None:
    if (hops := found.get(_MULTIPATH)) is not None:
        return "/".join(names.get(index, f"#{index}") for index in hop_indexes(hops))
    index = _number(found.get(_OIF), 0)
    return names.get(index) if index else ""


def hop_indexes(hops: bytes) -> list[int]:
    """The device indexes of an RTA_MULTIPATH attribute."""
    indexes = []
    offset = 0
    while offset + _RTNEXTHOP.size <= len(hops):
        length, _, _, index = _RTNEXTHOP.unpack_from(hops, offset)
        if length < _RTNEXTHOP.size:
            break
        indexes.append(index)
        offset += (length + 3) & ~3
    return indexes


def _number(payload: bytes | None, absent: int) -> int:
    return absent if payload is None or len(payload) != 4 else int(_U32.unpack(payload)[0])


def _address(family: int, payload: bytes | None) -> Address | None:
    if payload is None:
        return None
    return IPv4Address(payload) if family == AF_INET else IPv6Address(payload)


def _network(family: int, payload: bytes | None, prefix_len: int) -> Network:
    if family == AF_INET:
        return IPv4Network((payload or b"\0" * 4, prefix_len))
    return IPv6Network((payload or b"\0" * 16, prefix_len))
