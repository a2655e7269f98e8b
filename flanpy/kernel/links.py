"""The tunnel device as it should be: MTU, queue length, addresses, up. Changes only what differs, so calling it again is free.

The device itself is opened by ``kernel.tun`` and lives as long as its descriptors; nothing is created here. A device of that
name that is no TUN device belongs to somebody else and is left alone.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Interface
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from flanpy.errors import PlatformError, ResourceBusy
from flanpy.kernel.devices import (
    IFA_F_NODAD,
    IFA_F_NOPREFIXROUTE,
    SCOPE_GLOBAL,
    Device,
    list_addresses,
    list_devices,
)
from flanpy.kernel.netlink import Kernel, explained
from flanpy.model import Address, Interface, Tunnel

TXQUEUELEN = 1000
"""Packets (superpackets count as one) that wait for a worker, for each queue; beyond them the kernel drops."""

_ADDR_GEN_MODE_NONE = 1


@dataclass(frozen=True, slots=True)
class Ensured:
    """The device's index, and what was changed, in words for the log; nothing when all was as wanted."""

    index: int
    changed: tuple[str, ...]


def find_device(kernel: Kernel, name: str) -> Device | None:
    """The device of this name, or None."""
    return next((device for device in list_devices(kernel) if device.name == name), None)


def ensure_tunnel(kernel: Kernel, tunnel: Tunnel) -> Ensured:
    """Make the tunnel device what ``tunnel`` says. Addresses of an earlier run go, but never the last before the new one is there.

    Raises PlatformError when the device is gone, ResourceBusy when its name belongs to another kind of device.
    """
    device = own_device(kernel, tunnel.name, "tun")
    if device is None:
        raise PlatformError(f"{tunnel.name}: the tunnel device is not there; it must be opened before it is configured")
    with explained(f"configure {tunnel.name}"):
        changed = [*_ensure_link(kernel, device, tunnel), *ensure_addresses(kernel, device.index, tunnel.addresses)]
        if not device.is_up:
            kernel.ip.link("set", index=device.index, state="up")
            changed.append("set up")
    return Ensured(device.index, tuple(changed))


def remove_link(kernel: Kernel, name: str, kind: str = "tun") -> bool:
    """Delete a device; whether it was there. Raises ResourceBusy when the name belongs to another kind of device."""
    device = own_device(kernel, name, kind)
    if device is None:
        return False
    with explained(f"remove {name}"):
        try:
            kernel.ip.link("del", index=device.index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise
            return False
    return True


def own_device(kernel: Kernel, name: str, kind: str) -> Device | None:
    """The device of this name, or None. Raises ResourceBusy when it is of another kind and so not ours."""
    device = find_device(kernel, name)
    if device is not None and device.kind != kind:
        there = device.kind or "hardware"
        raise ResourceBusy(f"{name}: a {there} device has this name, not a {kind} device of ours; remove or rename it")
    return device


def refuse_open(kernel: Kernel, name: str) -> None:
    """Raises ResourceBusy when a process has the TUN device of this name open; a device of another kind is not asked about."""
    device = find_device(kernel, name)
    if device is not None and device.kind == "tun" and device.is_open:
        raise ResourceBusy(f"{name}: another process has this TUN device open; stop the agent or flanneld that holds it")


def _ensure_link(kernel: Kernel, device: Device, tunnel: Tunnel) -> list[str]:
    changed = []
    if not device.is_up:
        without_link_local(kernel, device.index)
    if device.mtu_bytes != tunnel.mtu_bytes:
        kernel.ip.link("set", index=device.index, mtu=tunnel.mtu_bytes)
        changed.append(f"MTU {device.mtu_bytes} -> {tunnel.mtu_bytes}")
    if device.txqueuelen != TXQUEUELEN:
        kernel.ip.link("set", index=device.index, txqlen=TXQUEUELEN)
        changed.append(f"txqueuelen {device.txqueuelen} -> {TXQUEUELEN}")
    return changed


def without_link_local(kernel: Kernel, index: int) -> None:
    """No IPv6 link-local address and no router solicitations on the tunnel, unless this kernel has no IPv6 or cannot tell."""
    none = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]})]}
    try:
        kernel.ip.link("set", index=index, IFLA_AF_SPEC=none)
    except NetlinkError as error:
        if error.code not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
            raise


def ensure_addresses(kernel: Kernel, index: int, wanted: tuple[Interface, ...]) -> list[str]:
    """Exactly these addresses. New ones come first: a device that loses its last IPv4 address loses its routes.

    Added twice, because taking away an address can take away those in the same subnet with it (promote_secondaries off), and
    because one that would make a route of its own has to go before it can come back without. One that a device of another kind
    has already stays with that one alone.
    """
    elsewhere = _elsewhere(kernel)
    free = tuple(interface for interface in wanted if interface.ip not in elsewhere)
    changed = _add_missing(kernel, index, free)
    removed = _remove_stale(kernel, index, wanted)
    return [*changed, *removed, *(_add_missing(kernel, index, free) if removed else [])]


def is_overlay(name: str) -> bool:
    """Whether a device is ours or flannel's by its name; one that another backend has left may well have our address still."""
    return name.startswith("flannel")


def _elsewhere(kernel: Kernel) -> set[Address]:
    """Addresses that devices of others have."""
    ours = {device.index for device in list_devices(kernel) if is_overlay(device.name)}
    return {address.ip for address in list_addresses(kernel) if address.index not in ours}


def _there(kernel: Kernel, index: int) -> dict[Interface, int]:
    """The addresses of a device, with their flags."""
    return {address.interface: address.flags for address in list_addresses(kernel) if address.index == index}


def _add_missing(kernel: Kernel, index: int, wanted: tuple[Interface, ...]) -> list[str]:
    there = _there(kernel, index)
    missing = [interface for interface in wanted if interface not in there]
    if any(isinstance(interface, IPv6Interface) for interface in missing):
        _allow_ipv6(index)
    for interface in missing:
        prefix_len = interface.network.prefixlen
        kernel.ip.addr(
            "replace", index=index, address=str(interface.ip), prefixlen=prefix_len, scope=SCOPE_GLOBAL, flags=_flags(interface)
        )
    return [f"address {interface} added" for interface in missing]


def _allow_ipv6(index: int) -> None:
    """Of a host that has IPv6 switched off for new devices, this one is to have it; where that cannot be written the address tells."""
    with suppress(OSError):
        path = Path("/proc/sys/net/ipv6/conf") / socket.if_indextoname(index) / "disable_ipv6"
        if path.read_text(encoding="ascii").strip() != "0":
            path.write_text("0", encoding="ascii")


def _flags(interface: Interface) -> int:
    """No route by the prefix length: the routes are ours to write. No duplicate detection where there are no neighbours."""
    flags = IFA_F_NOPREFIXROUTE if interface.network.prefixlen < interface.max_prefixlen else 0
    return flags | IFA_F_NODAD | IFA_F_NOPREFIXROUTE if isinstance(interface, IPv6Interface) else flags


def _remove_stale(kernel: Kernel, index: int, wanted: tuple[Interface, ...]) -> list[str]:
    stale = [
        interface
        for interface, flags in _there(kernel, index).items()
        if interface not in wanted or (flags ^ _flags(interface)) & IFA_F_NOPREFIXROUTE
    ]
    for interface in stale:
        try:
            kernel.ip.addr("del", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen)
        except NetlinkError as error:
            if error.code != errno.EADDRNOTAVAIL:
                raise
    return [f"address {interface} removed" for interface in stale]
