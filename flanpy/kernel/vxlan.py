"""VXLAN devices as they should be: found and kept, changed in place where the kernel can, made anew where it cannot.

    can be changed       MTU, MAC, learning, local address, uplink, addresses
    cannot               VNI, port, GBP, a remote or group of its own, metadata mode: a device that differs in them is replaced

A device of the name that is no VXLAN device belongs to somebody else and is left alone. One that flanneld has made is adopted as it
is, so its packets go on. Reads by our own messages: a pass over an unchanged device costs one dump.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType

from flanpy.errors import PlatformError
from flanpy.kernel.devices import RTM_GETLINK, Device, parse_device
from flanpy.kernel.links import Ensured, ensure_addresses, find_device, own_device, remove_link, without_link_local
from flanpy.kernel.messages import attributes
from flanpy.kernel.netlink import Kernel, explained, settled
from flanpy.model import Address, VxlanLink

_IFINFOMSG = struct.Struct("=BxHiII")
_ALL = _IFINFOMSG.pack(0, 0, 0, 0, 0)
_ADDRESS, _LINKINFO, _INFO_KIND, _INFO_DATA = 1, 18, 1, 2
_ID, _GROUP, _LINK, _LOCAL, _LEARNING = 1, 2, 3, 4, 7
_PORT, _GROUP6, _LOCAL6, _GBP, _COLLECT_METADATA = 15, 16, 17, 23, 25


@dataclass(frozen=True, slots=True)
class VxlanDevice:
    """A VXLAN device that is there. ``fixed`` is what cannot be changed: VNI, port, GBP, and whether it has a remote or metadata mode."""

    device: Device
    mac: str
    fixed: tuple[int, int, bool, bool]
    local: Address | None
    uplink: int
    learning: bool


def list_vxlan(kernel: Kernel) -> Mapping[str, VxlanDevice]:
    """All VXLAN devices of the namespace, by name."""
    found = settled("list the VXLAN devices", lambda: _parsed(body for _, body in kernel.dump(RTM_GETLINK, _ALL)))
    return MappingProxyType({each.device.name: each for each in found})


def _parsed(bodies: Iterator[memoryview]) -> Iterator[VxlanDevice]:
    for body in bodies:
        device = parse_device(body)
        if device is not None and device.kind == "vxlan":
            yield _vxlan(device, attributes(body, _IFINFOMSG.size))


def _vxlan(device: Device, found: Mapping[int, bytes]) -> VxlanDevice:
    info = attributes(memoryview(found.get(_LINKINFO, b"")), 0)
    data = attributes(memoryview(info.get(_INFO_DATA, b"")), 0)
    other = any(data.get(key, b"").strip(b"\0") for key in (_GROUP, _GROUP6, _COLLECT_METADATA))
    port = int.from_bytes(data.get(_PORT, b""), "big")
    return VxlanDevice(
        device=device,
        mac=found.get(_ADDRESS, b"").hex(":"),
        fixed=(_number(data.get(_ID)), port, _GBP in data, other),
        local=_local(data),
        uplink=_number(data.get(_LINK)),
        learning=bool(_number(data.get(_LEARNING))),
    )


def _number(payload: bytes | None) -> int:
    return int.from_bytes(payload or b"", sys.byteorder)


def _local(data: Mapping[int, bytes]) -> Address | None:
    if len(data.get(_LOCAL, b"")) == 4:
        return IPv4Address(data[_LOCAL])
    return IPv6Address(data[_LOCAL6]) if len(data.get(_LOCAL6, b"")) == 16 else None


# ------------------------------------------------------------------------------------------------ as it should be


def ensure_vxlan(kernel: Kernel, link: VxlanLink) -> Ensured:
    """Make the device what ``link`` says. Raises ResourceBusy when its name is another kind of device's, PlatformError."""
    own_device(kernel, link.name, "vxlan")
    uplink = own_uplink(kernel, link.uplink)
    changed: list[str] = []
    there = list_vxlan(kernel).get(link.name)
    if there is not None and there.fixed != (link.vni, link.port, link.gbp, False):
        remove_link(kernel, link.name, "vxlan")
        changed.append("removed: VNI, port or GBP cannot be changed in place")
        there = None
    if there is None:
        there = _made(kernel, link, uplink)
        changed.append("made")
    with explained(f"configure {link.name} (UDP port {link.port})"):
        changed += _change(kernel, link, there, uplink)
        changed += ensure_addresses(kernel, there.device.index, link.addresses)
        if not there.device.is_up:
            kernel.ip.link("set", index=there.device.index, state="up")
            changed.append("set up")
    return Ensured(there.device.index, tuple(changed))


def own_uplink(kernel: Kernel, name: str) -> int:
    """The index of the underlay device. Raises PlatformError when it has gone."""
    device = find_device(kernel, name)
    if device is None:
        raise PlatformError(f"{name}: the underlay device is gone; the overlay device waits for it")
    return device.index


def _made(kernel: Kernel, link: VxlanLink, uplink: int) -> VxlanDevice:
    """Make the device, down still and without an IPv6 link-local address, and read it back."""
    with explained(f"make {link.name} (kernel option CONFIG_VXLAN, module vxlan)"):
        kernel.ip.link(
            "add",
            ifname=link.name,
            kind="vxlan",
            mtu=link.mtu_bytes,
            address=link.mac,
            vxlan_id=link.vni,
            vxlan_port=link.port,
            **_changeable(link, uplink),
            **({"vxlan_gbp": True} if link.gbp else {}),
        )
    there = list_vxlan(kernel).get(link.name)
    if there is None:
        raise PlatformError(f"{link.name}: it has gone as soon as it was made; it is tried again")
    with explained(f"configure {link.name}"):
        without_link_local(kernel, there.device.index)
    return there


def _changeable(link: VxlanLink, uplink: int) -> dict[str, object]:
    local = "vxlan_local" if link.local.version == 4 else "vxlan_local6"
    return {"vxlan_link": uplink, local: str(link.local), "vxlan_learning": int(link.learning)}


def _change(kernel: Kernel, link: VxlanLink, there: VxlanDevice, uplink: int) -> list[str]:
    index, changed = there.device.index, []
    if (there.local, there.uplink, there.learning) != (link.local, uplink, link.learning):
        kernel.ip.link("set", index=index, kind="vxlan", vxlan_id=link.vni, **_changeable(link, uplink))
        changed.append(f"local {there.local} -> {link.local}, uplink, learning")
    if there.mac != link.mac:
        kernel.ip.link("set", index=index, address=link.mac)
        changed.append(f"MAC {there.mac} -> {link.mac}")
    if there.device.mtu_bytes != link.mtu_bytes:
        kernel.ip.link("set", index=index, mtu=link.mtu_bytes)
        changed.append(f"MTU {there.device.mtu_bytes} -> {link.mtu_bytes}")
    return changed
