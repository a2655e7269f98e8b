"""Notifications: the view tells news alone, and the filter for the kernel drops what concerns nobody."""

import struct
from ipaddress import IPv4Interface, IPv4Network
from socket import htonl, htons

import pytest

from flanpy.kernel.messages import Message, attribute, message, split
from flanpy.kernel.notifications import AddressChanged, LinkChanged, NeighbourChanged, RouteChanged, View, filter_program
from flanpy.kernel.route_codec import new_body
from flanpy.model import Route

NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
ADDRESS = IPv4Interface("10.9.0.1/24")


def link(kind: int, flags: int, mtu: int = 1500, family: int = 0) -> Message:
    body = struct.pack("=BxHiII", family, 0, 3, flags, 0) + attribute(3, b"v0\0") + attribute(4, struct.pack("=I", mtu))
    return Message(kind, 0, 0, 0, memoryview(body))


def address(kind: int) -> Message:
    return Message(kind, 0, 0, 0, memoryview(struct.pack("=BBBBI", 2, 24, 0, 0, 3) + attribute(2, ADDRESS.ip.packed)))


def test_each_state_of_a_device_is_told_once() -> None:
    view = View()
    told = [list(view.events(link(NEWLINK, flags))) for flags in (0x41, 0x41, 0x1, 0x41)]
    up, down = LinkChanged(3, "v0", True, 1500, False), LinkChanged(3, "v0", False, 1500, False)
    assert told == [[up], [], [down], [up]]


def test_a_refreshed_address_is_no_news_and_a_loss_always_is() -> None:
    view = View()
    told = [list(view.events(address(kind))) for kind in (NEWADDR, NEWADDR, DELADDR, DELADDR)]
    assert told == [
        [AddressChanged(3, ADDRESS, False)],
        [],
        [AddressChanged(3, ADDRESS, True)],
        [AddressChanged(3, ADDRESS, True)],
    ]


def test_nothing_is_kept_of_a_device_that_is_gone() -> None:
    view = View()
    for received in (link(NEWLINK, 0x41), address(NEWADDR), link(DELLINK, 0)):
        list(view.events(received))
    assert view == View()


def test_a_message_of_a_bridge_port_is_no_news() -> None:
    assert list(View().events(link(NEWLINK, 0x41, family=7))) == []


def test_a_route_of_an_unknown_device_is_told_without_the_route() -> None:
    route = Route(IPv4Network("10.7.0.0/16"), "v0")
    received = Message(DELROUTE, 0, 0, 0, memoryview(new_body(route, 3)))
    view = View()
    assert list(view.events(received)) == [RouteChanged(None, 102, True)]
    list(view.events(link(NEWLINK, 0x41)))
    assert list(view.events(received)) == [RouteChanged(route, 102, True)]


def neighbour(state: int, index: int = 3) -> bytes:
    return struct.pack("=B3xiHBB", 2, index, state, 0, 0) + attribute(1, bytes(4))


def test_entries_are_news_on_overlay_devices_only() -> None:
    view = View(names={3: "flannel.1", 4: "eth0"})
    told = [list(view.events(Message(29, 0, 0, 0, memoryview(neighbour(0, index))))) for index in (3, 4, 5)]
    assert told == [[NeighbourChanged(3, "flannel.1")], [], []]


def test_the_filter_passes_lost_and_permanent_entries_but_not_what_the_host_learns() -> None:
    program = filter_program(102, (5,))
    assert [passes(program, notification(28, neighbour(state))) for state in (0x80, 0x02, 0x20)] == [True, False, False]
    assert [passes(program, notification(29, neighbour(state))) for state in (0x80, 0x20)] == [True, True]
    assert not passes(program, notification(28, neighbour(0x80), port=5))


def passes(program: bytes, packet: bytes) -> bool:
    """The filter, interpreted as the kernel does: the slow oracle of the jumps."""
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        code, when_true, when_false, k = steps[at]
        at += 1
        match code:
            case 0x20 | 0x28 | 0x30:
                size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
                accumulator = int.from_bytes(packet[k : k + size], "big")
            case 0x15:
                at += when_true if accumulator == k else when_false
            case 0x45:
                at += when_true if accumulator & k else when_false
            case 0x06:
                return k != 0


def notification(kind: int, body: bytes, port: int = 0) -> bytes:
    packed = bytearray(message(kind, 0, 0, body))
    packed[12:16] = struct.pack("=I", port)
    return bytes(packed)


@pytest.mark.parametrize("ports", [(), (5,), (5, 6, 70000)])
def test_the_filter_passes_links_addresses_our_routes_and_default_routes_but_nothing_of_our_making(
    ports: tuple[int, ...],
) -> None:
    program = filter_program(102, ports)
    ours = new_body(Route(IPv4Network("10.7.0.0/16"), "v0"), 3)
    foreign = new_body(Route(IPv4Network("10.7.0.0/16"), "v0", protocol=4), 3)
    default = new_body(Route(IPv4Network("0.0.0.0/0"), "v0", protocol=4), 3)
    for kind in (NEWROUTE, DELROUTE):
        assert [passes(program, notification(kind, body)) for body in (ours, foreign, default)] == [True, False, True]
    for kind in (NEWLINK, DELLINK, NEWADDR, DELADDR):
        assert passes(program, notification(kind, foreign))
    for port in ports:
        assert not passes(program, notification(NEWROUTE, ours, port))
    assert passes(program, notification(NEWROUTE, ours, 4))


def test_the_filter_compares_in_the_byte_order_of_netlink() -> None:
    program = filter_program(102, (5,))
    assert struct.pack("=HBBI", 0x15, 14, 0, htonl(5)) in program
    assert struct.pack("=HBBI", 0x15, 7, 0, htons(24)) in program
    assert next(split(memoryview(notification(24, b"", 5)))).port == 5
