"""Stand-ins: the pod bridge answers ARP and neighbour discovery for pods of our subnet that are on other nodes now (proxy entries).

Pods of one subnet look for each other on their bridge. What the bridge answers for comes to this host, whose route for that single
address leads on. An announcement (gratuitous ARP, RFC 5227 section 3) goes out with every call, so that pods which have the old
copy's MAC in their caches change at once; again and again, for as long as the old copy lives its own questions put it back there.

Only proxy entries within the cluster's network are ours; others on these bridges are left alone. Holds no state.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6

from flanpy.errors import FlanpyError
from flanpy.kernel.devices import device_names, list_addresses
from flanpy.kernel.messages import CREATE, REPLACE, attribute, attributes
from flanpy.kernel.neighbours import RTM_DELNEIGH, RTM_GETNEIGH, RTM_NEWNEIGH
from flanpy.kernel.netlink import Kernel, explained, platform_error, settled
from flanpy.model import Address, Neighbour, Network, StandIns

NTF_PROXY, NUD_REACHABLE = 0x08, 0x02
_NDMSG = struct.Struct("=B3xiHBB")
_DST, _LLADDR = 1, 2
_ETH_ARP, _ARP_REPLY = 0x0806, 2
_BROADCAST = b"\xff" * 6

Place = tuple[int, Address]
"""Index of a device and the address that it stands in for."""


def ensure_stand_ins(kernel: Kernel, wanted: StandIns, ours: Iterable[str]) -> int:
    """Make the pod bridges stand in for exactly these addresses; returns how much was done. ``ours``: devices that are no bridges.

    Raises PlatformError.
    """
    bridges = _bridges(kernel, wanted, frozenset(ours))
    indexes = {name: index for index, name in bridges.items()}
    away = frozenset((index, address) for index in bridges for address in wanted.away)
    gateways = frozenset((indexes[name], address) for name, address in wanted.gateways if name in indexes)
    desired = away | gateways
    there = frozenset(place for place in _list(kernel, bridges) if _within(place[1], wanted.networks))
    for index in {index for index, _ in desired - there}:
        _answer_at_once(bridges[index])
    requests = [(RTM_NEWNEIGH, CREATE | REPLACE, _body(place)) for place in desired - there]
    requests += [(RTM_DELNEIGH, 0, _body(place)) for place in there - desired]
    what = "write the addresses that the pod bridge answers for"
    with explained(what):
        failures = kernel.execute(requests) if requests else {}
    for code, text in failures.values():
        if code not in (errno.ENOENT, errno.ENODEV):
            raise platform_error(what, code, text)
    for index, address in away:
        if isinstance(address, IPv4Address):
            announce(bridges[index], address)
    return len(desired ^ there)


def _bridges(kernel: Kernel, wanted: StandIns, ours: frozenset[str]) -> dict[int, str]:
    """What pods are attached to: the devices with an address within our subnets, but for our own, and those that are named."""
    named = {name for name, _ in wanted.gateways}
    held = {found.index for found in list_addresses(kernel) if _within(found.ip, wanted.subnets)}
    return {index: name for index, name in device_names(kernel).items() if (index in held or name in named) and name not in ours}


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _list(kernel: Kernel, bridges: dict[int, str]) -> list[Place]:
    found: list[Place] = []
    for family in (AF_INET, AF_INET6) if bridges else ():
        request = _NDMSG.pack(family, 0, 0, NTF_PROXY, 0)

        def read(request: bytes = request) -> Iterable[Place]:
            for kind, body in kernel.dump(RTM_GETNEIGH, request):
                place = _parse(body) if kind == RTM_NEWNEIGH else None
                if place is not None and place[0] in bridges:
                    yield place

        found += settled("list the addresses that the pod bridge answers for", read)
    return found


def _parse(body: memoryview) -> Place | None:
    if len(body) < _NDMSG.size:
        return None
    family, index, _, flags, _ = _NDMSG.unpack_from(body)
    payload = attributes(body, _NDMSG.size).get(_DST, b"")
    if not flags & NTF_PROXY or len(payload) != (4 if family == AF_INET else 16):
        return None
    return index, ip_address(payload)


def _body(place: Place) -> bytes:
    index, address = place
    family = AF_INET if address.version == 4 else AF_INET6
    return _NDMSG.pack(family, index, 0, NTF_PROXY, 0) + attribute(_DST, address.packed)


def _answer_at_once(bridge: str) -> None:
    """Without the random delay of up to 0.8 s that the kernel gives to proxies (proxy_delay); IPv6 has to be switched on."""
    for name, value in (
        (f"ipv4/neigh/{bridge}/proxy_delay", "0"),
        (f"ipv6/neigh/{bridge}/proxy_delay", "0"),
        (f"ipv6/conf/{bridge}/proxy_ndp", "1"),
    ):
        with contextlib.suppress(OSError):  # a kernel without IPv6, or /proc/sys read-only: slower, or IPv4 alone
            Path("/proc/sys/net", name).write_text(value, encoding="ascii")


def introduce(kernel: Kernel, residents: Collection[Neighbour]) -> None:
    """Tell this host and everybody on the bridges where these pods are. What cannot be told is found out by asking, later.

    Not every version of the bridge plugin announces the pods that it attaches.
    """
    indexes = {name: index for index, name in device_names(kernel).items()} if residents else {}
    known = [each for each in residents if each.device in indexes]
    with contextlib.suppress(FlanpyError):
        with explained("write the pods' neighbour entries"):
            kernel.execute((RTM_NEWNEIGH, CREATE | REPLACE, _entry(each, indexes[each.device])) for each in known)
    for each in known:
        if isinstance(each.address, IPv4Address):
            announce(each.device, each.address, _mac(each))


def _entry(resident: Neighbour, index: int) -> bytes:
    family = AF_INET if resident.address.version == 4 else AF_INET6
    head = _NDMSG.pack(family, index, NUD_REACHABLE, 0, 0)
    return head + attribute(_DST, resident.address.packed) + attribute(_LLADDR, _mac(resident))


def _mac(resident: Neighbour) -> bytes:
    return bytes.fromhex(resident.mac.replace(":", ""))


def announce(device: str, address: IPv4Address, mac: bytes | None = None) -> None:
    """Tell everybody on the device that this address is at this MAC (None: the device's own); a device that is going is no error."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as sender:
        sender.bind((device, _ETH_ARP))
        own = sender.getsockname()[4]
        party = (mac or own) + address.packed
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, _ARP_REPLY) + party + party
        sender.send(_BROADCAST + own + struct.pack("!H", _ETH_ARP) + arp)
