"""Asks the kernel which way a packet would go: the route it would take, who is behind an address on a link. Reads only.

The answers are those of this moment and of the network namespace of the thread that made ``Kernel``; nothing is sent on any link.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from socket import AF_BRIDGE, AF_INET, AF_INET6
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from flanpy.errors import PlatformError
from flanpy.kernel.devices import Device, list_devices
from flanpy.kernel.netlink import Kernel, explained_errno
from flanpy.model import Address, Network

_FIB_MATCH = 0x2000
"""RTM_F_FIB_MATCH (rtnetlink(7), Linux 4.13): answer with the route that matched, not with the way that follows from it."""
_KINDS = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_REFUSING = {
    errno.EINVAL: "blackhole",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "no route",
    errno.EACCES: "prohibit",
    errno.EXDEV: "refused by the reverse path filter",
}
"""What a lookup fails with (fib_props in net/ipv4/fib_semantics.c); EXDEV: the source may not come in there."""


@dataclass(frozen=True, slots=True)
class Way:
    """What the kernel would do with a packet. ``kind`` is ``unicast``, ``local`` (for this machine), or why it goes nowhere."""

    kind: str
    device: str = ""
    mtu_bytes: int = 0
    gateway: Address | None = None
    source: Address | None = None
    matched: Network | None = None
    """The destination of the route that decides; None when the kernel does not tell."""


@dataclass(frozen=True, slots=True)
class Behind:
    """Who has an address on a link: its MAC, and the port of the bridge that the MAC is behind; "" where that is not known."""

    mac: str
    port: str = ""


def find_way(kernel: Kernel, destination: Address, source: Address | None = None, arriving: str = "") -> Way:
    """The way of a packet that this machine sends, or forwards when it came in by the device ``arriving`` from ``source``."""
    devices = {device.index: device for device in list_devices(kernel)}
    question: dict[str, Any] = {"dst": str(destination)}
    if source is not None:
        question["src"] = str(source)
    if arriving:
        question["iif"] = next((index for index, device in devices.items() if device.name == arriving), 0)
    try:
        (found, *_) = kernel.ip.route("get", **question)
    except NetlinkError as error:
        if error.code not in _REFUSING:
            raise PlatformError(f"cannot look up the route to {destination}: {explained_errno(error.code)}") from error
        return Way(_REFUSING[error.code])
    return _way(found, devices, _matched(kernel, question))


def _way(found: Any, devices: Mapping[int, Device], matched: Network | None) -> Way:
    device = devices.get(found.get_attr("RTA_OIF") or 0)
    gateway, source = found.get_attr("RTA_GATEWAY"), found.get_attr("RTA_PREFSRC")
    return Way(
        _KINDS.get(found["type"], f"type {found['type']}"),
        device.name if device else "",
        device.mtu_bytes if device else 0,
        ip_address(gateway) if gateway else None,
        ip_address(source) if source else None,
        matched,
    )


def _matched(kernel: Kernel, question: Mapping[str, Any]) -> Network | None:
    try:
        (found, *_) = kernel.ip.route("get", flags=_FIB_MATCH, **question)
    except (NetlinkError, ValueError):
        return None
    destination = found.get_attr("RTA_DST")
    everything = "::" if found["family"] == AF_INET6 else "0.0.0.0"
    return ip_network((destination or everything, found["dst_len"]))


def find_behind(kernel: Kernel, address: Address, device: str) -> Behind | None:
    """Who has this address on this device, as far as the kernel has talked with it lately; None when it has not."""
    names = {each.index: each.name for each in list_devices(kernel)}
    index = next((each for each, name in names.items() if name == device), 0)
    family = AF_INET if address.version == 4 else AF_INET6
    entries = kernel.ip.get_neighbours(family=family, ifindex=index)
    macs = [entry.get_attr("NDA_LLADDR") for entry in entries if entry.get_attr("NDA_DST") == str(address)]
    mac = next((mac for mac in macs if mac), None)
    if mac is None:
        return None
    ports = [
        names.get(entry["ifindex"], "")
        for entry in kernel.ip.fdb("dump")
        if entry["family"] == AF_BRIDGE and entry.get_attr("NDA_LLADDR") == mac and entry.get_attr("NDA_MASTER") == index
    ]
    return Behind(mac, next((port for port in ports if port and port != device), ""))


def is_bridge(kernel: Kernel, device: str) -> bool:
    """Whether a device is a bridge."""
    return any(each.name == device and each.kind == "bridge" for each in list_devices(kernel))
