"""Devices and addresses as the kernel tells them; reads only. The parsers are pure and serve the monitor too.

struct ifinfomsg   u8 family | u8 pad | u16 type | i32 index | u32 flags | u32 change
struct ifaddrmsg   u8 family | u8 prefix_len | u8 flags | u8 scope | u32 index
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from socket import AF_INET, AF_INET6

from flanpy.kernel.messages import attribute, attributes
from flanpy.kernel.netlink import Kernel, settled
from flanpy.model import Address, Interface

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22

IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_LOWER_UP = 0x1, 0x8, 0x40, 0x10000
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_DEPRECATED, IFA_F_TENTATIVE, IFA_F_NOPREFIXROUTE = 0x1, 0x2, 0x20, 0x40, 0x200
SCOPE_GLOBAL = 0

_IFINFOMSG = struct.Struct("=BxHiII")
_IFADDRMSG = struct.Struct("=BBBBI")
_U32 = struct.Struct("=I")
_IFNAME, _MTU, _TXQLEN, _LINKINFO, _EXT_MASK = 3, 4, 13, 18, 29
_INFO_KIND, _SKIP_STATISTICS = 1, 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8


@dataclass(frozen=True, slots=True)
class Device:
    """A network device; ``kind`` is its driver's netlink name (``tun``, ``vxlan``, ...), "" for hardware."""

    index: int
    name: str
    flags: int
    mtu_bytes: int
    txqueuelen: int = 0
    kind: str = ""

    @property
    def is_up(self) -> bool:
        """Whether it has been set up, with or without a carrier."""
        return bool(self.flags & IFF_UP)

    @property
    def is_running(self) -> bool:
        """Whether it is up and has a carrier."""
        return self.is_up and bool(self.flags & IFF_RUNNING)

    @property
    def is_open(self) -> bool:
        """Of a TUN device that is up: whether a process has it open, for it has a carrier so long."""
        return self.is_up and bool(self.flags & IFF_LOWER_UP)

    @property
    def is_loopback(self) -> bool:
        """Whether it is the loopback device."""
        return bool(self.flags & IFF_LOOPBACK)


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    """An address of a device, with its prefix length; ``flags`` are IFA_F_*, ``scope`` is rtnetlink's (0: global)."""

    index: int
    interface: Interface
    flags: int
    scope: int

    @property
    def ip(self) -> Address:
        """The address without its prefix length."""
        return self.interface.ip


def parse_device(body: memoryview) -> Device | None:
    """The device of a link message; None when it is malformed or comes from another family (a bridge port)."""
    if len(body) < _IFINFOMSG.size:
        return None
    family, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
    found = attributes(body, _IFINFOMSG.size)
    name = found.get(_IFNAME)
    if family or name is None:
        return None
    kind = attributes(memoryview(found.get(_LINKINFO, b"")), 0).get(_INFO_KIND, b"")
    return Device(
        index=index,
        name=_text(name),
        flags=flags,
        mtu_bytes=_number(found.get(_MTU)),
        txqueuelen=_number(found.get(_TXQLEN)),
        kind=_text(kind),
    )


def parse_address(body: memoryview) -> DeviceAddress | None:
    """The address of an address message; None when it is malformed or of another family."""
    if len(body) < _IFADDRMSG.size:
        return None
    family, prefix_len, flags, scope, index = _IFADDRMSG.unpack_from(body)
    found = attributes(body, _IFADDRMSG.size)
    payload = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    if _IFA_FLAGS in found:
        flags = _number(found[_IFA_FLAGS])
    try:
        if family == AF_INET:
            return DeviceAddress(index, IPv4Interface((IPv4Address(payload), prefix_len)), flags, scope)
        if family == AF_INET6:
            return DeviceAddress(index, IPv6Interface((IPv6Address(payload), prefix_len)), flags, scope)
    except ValueError:
        pass
    return None


def _text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _number(payload: bytes | None) -> int:
    return int(_U32.unpack(payload)[0]) if payload is not None and len(payload) == 4 else 0


def list_devices(kernel: Kernel) -> tuple[Device, ...]:
    """All devices of the namespace, by index."""
    request = _IFINFOMSG.pack(0, 0, 0, 0, 0) + attribute(_EXT_MASK, _U32.pack(_SKIP_STATISTICS))
    found = settled("list the network devices", lambda: (parse_device(body) for _, body in kernel.dump(RTM_GETLINK, request)))
    return tuple(sorted((device for device in found if device is not None), key=lambda device: device.index))


def list_addresses(kernel: Kernel) -> tuple[DeviceAddress, ...]:
    """All addresses of the namespace, of both families, in the kernel's order."""
    request = _IFADDRMSG.pack(0, 0, 0, 0, 0)
    found = settled("list the addresses", lambda: (parse_address(body) for _, body in kernel.dump(RTM_GETADDR, request)))
    return tuple(address for address in found if address is not None)


def device_names(kernel: Kernel) -> dict[int, str]:
    """Name of each device by its index."""
    return {device.index: device.name for device in list_devices(kernel)}
