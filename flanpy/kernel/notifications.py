"""What the kernel's notifications tell, as values, and which of them are worth a wake-up; pure, the sockets are ``kernel.monitor``'s.

filter_program   runs in the kernel on each notification: routes of others, and changes of our own making, go no further
View             what is known of devices and addresses, so that a message that tells nothing new makes no event
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from socket import htonl, htons

from flanpy.kernel.devices import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    Device,
    DeviceAddress,
    parse_address,
    parse_device,
)
from flanpy.kernel.messages import Message
from flanpy.kernel.neighbours import NUD_PERMANENT, RTM_DELNEIGH, RTM_NEWNEIGH
from flanpy.kernel.route_codec import RTM_DELROUTE, RTM_NEWROUTE, parse, protocol_of
from flanpy.model import Interface, Route


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """A device is new, different or gone. ``up`` means set up and with a carrier."""

    index: int
    name: str
    up: bool
    mtu: int
    gone: bool


@dataclass(frozen=True, slots=True)
class AddressChanged:
    """A device has got or lost an address."""

    index: int
    address: Interface
    gone: bool


@dataclass(frozen=True, slots=True)
class RouteChanged:
    """A route of our protocol, or a default route, was written or removed; ``route`` is None when its device is unknown by now."""

    route: Route | None
    protocol: int
    gone: bool


@dataclass(frozen=True, slots=True)
class NeighbourChanged:
    """A neighbour or forwarding entry of an overlay device was removed, or a permanent one written."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Overrun:
    """Changes were too many to be told, or were lost: anything may have changed."""

    reason: str


KernelEvent = LinkChanged | AddressChanged | RouteChanged | NeighbourChanged | Overrun

OVERLAY_DEVICES = "flannel"
"""What the names of overlay devices begin with; entries of other devices are none of our business."""


def subject(event: KernelEvent) -> object:
    """What an event is about: of several about one subject within a burst the last counts."""
    match event:
        case LinkChanged(index=index):
            return index
        case AddressChanged(index=index, address=address):
            return index, address
        case RouteChanged(route=route, protocol=protocol, gone=gone):
            return (route, protocol) if route is not None else (protocol, gone)
        case NeighbourChanged(index=index):
            return NeighbourChanged, index
        case Overrun():
            return Overrun


@dataclass(slots=True)
class View:
    """What is known of devices and addresses. Bounded by what the kernel has of them: what is gone is forgotten."""

    links: dict[int, LinkChanged] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    addresses: set[tuple[int, Interface]] = field(default_factory=set)

    @classmethod
    def of(cls, devices: Iterable[Device], addresses: Iterable[DeviceAddress]) -> View:
        """The view that a look at the whole gives."""
        links = {device.index: _link_changed(device, gone=False) for device in devices}
        names = {index: link.name for index, link in links.items()}
        return cls(links, names, {(address.index, address.interface) for address in addresses})

    def events(self, message: Message) -> Iterator[KernelEvent]:
        """The news of one message, if there are any."""
        match message.kind:
            case kind if kind in (RTM_NEWLINK, RTM_DELLINK):
                yield from self._link(message.body, gone=kind == RTM_DELLINK)
            case kind if kind in (RTM_NEWADDR, RTM_DELADDR):
                yield from self._address(message.body, gone=kind == RTM_DELADDR)
            case kind if kind in (RTM_NEWROUTE, RTM_DELROUTE):
                yield RouteChanged(parse(message.body, self.names), protocol_of(message.body), kind == RTM_DELROUTE)

            case kind if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                yield from self._neighbour(message.body)

    def _neighbour(self, body: memoryview) -> Iterator[NeighbourChanged]:
        index = int.from_bytes(body[4:8], sys.byteorder)
        name = self.names.get(index, "")
        if name.startswith(OVERLAY_DEVICES):
            yield NeighbourChanged(index, name)

    def _link(self, body: memoryview, *, gone: bool) -> Iterator[LinkChanged]:
        device = parse_device(body)
        if device is None:
            return
        event = _link_changed(device, gone=gone)
        if event.up and self.links.get(event.index) == event:
            return  # a loss is always news: we may have mended the last one ourselves, which the filter keeps from us
        self.links[event.index] = event
        self.names[event.index] = event.name
        if gone:
            del self.links[event.index], self.names[event.index]
            self.addresses = {(index, interface) for index, interface in self.addresses if index != event.index}
        yield event

    def _address(self, body: memoryview, *, gone: bool) -> Iterator[AddressChanged]:
        address = parse_address(body)
        if address is None:
            return
        key = (address.index, address.interface)
        if not gone and key in self.addresses:
            return  # its lifetime was refreshed
        if gone:
            self.addresses.discard(key)  # always news: the filter keeps from us what we have added ourselves
        else:
            self.addresses.add(key)
        yield AddressChanged(address.index, address.interface, gone)


def _link_changed(device: Device, *, gone: bool) -> LinkChanged:
    return LinkChanged(device.index, device.name, device.is_running and not gone, device.mtu_bytes, gone)


# ------------------------------------------------------------------------------------------------ the filter in the kernel

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _JUMP_IF_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x45, 0x06
_AT_TYPE, _AT_PORT, _AT_DST_LEN, _AT_PROTOCOL, _AT_NEIGHBOUR_STATE = 4, 12, 17, 21, 24
_ALL = 0xFFFFFFFF


def filter_program(protocol: int, own_ports: Collection[int]) -> bytes:
    """Classic BPF (struct sock_filter[]) that passes what concerns us. It loads big-endian, netlink is in host order."""
    route = [
        (_LOAD_BYTE, 0, 0, _AT_PROTOCOL),
        (_JUMP_IF_EQUAL, 2, 0, protocol),
        (_LOAD_BYTE, 0, 0, _AT_DST_LEN),
        (_JUMP_IF_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, 0),
    ]
    permanent = [  # what the host learns about its pods and its underlay, minute after minute, goes no further
        (_LOAD_HALF, 0, 0, _AT_NEIGHBOUR_STATE),
        (_JUMP_IF_SET, 0, 1, htons(NUD_PERMANENT)),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, 0),
    ]
    kind = [
        (_LOAD_HALF, 0, 0, _AT_TYPE),
        (_JUMP_IF_EQUAL, 7, 0, htons(RTM_NEWROUTE)),
        (_JUMP_IF_EQUAL, 6, 0, htons(RTM_DELROUTE)),
        (_JUMP_IF_EQUAL, 1, 0, htons(RTM_NEWNEIGH)),
        (_RETURN, 0, 0, _ALL),
        *permanent,
    ]
    ports = [(_LOAD_WORD, 0, 0, _AT_PORT)]
    drop = len(own_ports) + len(kind) + len(route) - 1
    ports += [(_JUMP_IF_EQUAL, drop - 1 - i, 0, htonl(port)) for i, port in enumerate(sorted(own_ports))]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in (*ports, *kind, *route))
