"""IP-in-IP tunnel devices as they should be: found and kept, changed in place where the kernel can.

The device has a local address and no remote one: each route's gateway says where the outer packet goes. One that flanneld has made is
adopted. Not the module's own device tunl0, which belongs to everybody.
"""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv4Address

from pyroute2.netlink.exceptions import NetlinkError

from flanpy.errors import PlatformError
from flanpy.kernel.devices import RTM_GETLINK, Device, parse_device
from flanpy.kernel.links import Ensured, ensure_addresses, find_device, own_device, remove_link, without_link_local
from flanpy.kernel.messages import attributes
from flanpy.kernel.netlink import Kernel, explained, settled
from flanpy.model import IpipLink

KIND = "ipip"
_IFINFOMSG = struct.Struct("=BxHiII")
_ALL = _IFINFOMSG.pack(0, 0, 0, 0, 0)
_LINKINFO, _INFO_DATA, _LOCAL, _REMOTE = 18, 2, 2, 3


def ensure_ipip(kernel: Kernel, link: IpipLink) -> Ensured:
    """Make the device what ``link`` says. Raises ResourceBusy when its name is another kind of device's, PlatformError."""
    device = own_device(kernel, link.name, KIND)
    changed: list[str] = []
    if device is not None and _ends(kernel, link.name)[1] != IPv4Address(0):
        remove_link(kernel, link.name, KIND)
        device = None
        changed.append("removed: it led to one remote address")
    if device is None:
        device = _made(kernel, link)
        changed.append("made")
    with explained(f"configure {link.name}"):
        changed += _change(kernel, link, device)
        changed += ensure_addresses(kernel, device.index, link.addresses)
        if not device.is_up:
            kernel.ip.link("set", index=device.index, state="up")
            changed.append("set up")
    return Ensured(device.index, tuple(changed))


def _made(kernel: Kernel, link: IpipLink) -> Device:
    with explained(f"make {link.name}"):
        try:
            kernel.ip.link("add", ifname=link.name, kind=KIND, ipip_local=str(link.local), ipip_remote="0.0.0.0")
        except NetlinkError as error:
            if error.code != errno.EOPNOTSUPP:
                raise
            raise PlatformError(
                f"{link.name}: this kernel has no IP-in-IP tunnels (option CONFIG_NET_IPIP, module ipip): modprobe ipip, take a kernel "
                "that has them, or another Backend.Type such as vxlan"
            ) from error
        device = find_device(kernel, link.name)
        if device is None:
            raise PlatformError(f"{link.name}: it has gone as soon as it was made; it is tried again")
        without_link_local(kernel, device.index)
    return device


def _ends(kernel: Kernel, name: str) -> tuple[IPv4Address, IPv4Address]:
    """Local and remote address of the tunnel of this name."""
    found = settled("list the tunnels", lambda: (bytes(body) for _, body in kernel.dump(RTM_GETLINK, _ALL)))
    for copied in found:
        body = memoryview(copied)
        device = parse_device(body)
        if device is not None and device.name == name and device.kind == KIND:
            info = attributes(memoryview(attributes(body, _IFINFOMSG.size).get(_LINKINFO, b"")), 0)
            data = attributes(memoryview(info.get(_INFO_DATA, b"")), 0)
            return IPv4Address(data.get(_LOCAL, bytes(4))), IPv4Address(data.get(_REMOTE, bytes(4)))
    return IPv4Address(0), IPv4Address(0)


def _change(kernel: Kernel, link: IpipLink, device: Device) -> list[str]:
    changed = []
    if (local := _ends(kernel, link.name)[0]) != link.local:
        kernel.ip.link("set", index=device.index, kind=KIND, ipip_local=str(link.local), ipip_remote="0.0.0.0")
        changed.append(f"local {local} -> {link.local}")
    if device.mtu_bytes != link.mtu_bytes:
        kernel.ip.link("set", index=device.index, mtu=link.mtu_bytes)
        changed.append(f"MTU {device.mtu_bytes} -> {link.mtu_bytes}")
    return changed
