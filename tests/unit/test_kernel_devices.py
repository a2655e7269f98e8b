"""Devices and addresses of netlink messages, without a kernel: whole values, and no harm from cut or random bytes."""

import struct
from ipaddress import IPv4Interface, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.kernel.devices import Device, DeviceAddress, parse_address, parse_device
from flanpy.kernel.messages import Message, attribute
from flanpy.kernel.notifications import View

KIND = attribute(1, b"tun\0") + attribute(2, b"ignored")
DEVICE = struct.pack("=BxHiII", 0, 65534, 7, 0x10D1, 0) + b"".join(
    (
        attribute(3, b"flannel0\0"),
        attribute(4, struct.pack("=I", 1472)),
        attribute(13, struct.pack("=I", 500)),
        attribute(18 | 0x8000, KIND),  # the nested flag is no part of the type
    )
)


def address_body(family: int, prefix_len: int, *attrs: tuple[int, bytes]) -> bytes:
    return struct.pack("=BBBBI", family, prefix_len, 0x80, 0, 7) + b"".join(attribute(kind, payload) for kind, payload in attrs)


def test_a_device_is_read_whole() -> None:
    device = parse_device(memoryview(DEVICE))
    assert device == Device(7, "flannel0", 0x10D1, 1472, 500, "tun")
    assert device is not None
    assert (device.is_up, device.is_running, device.is_loopback) == (True, True, False)


@pytest.mark.parametrize(
    ("flags", "up", "running", "loopback"),
    [(0x0, False, False, False), (0x1, True, False, False), (0x40, False, False, False), (0x49, True, True, True)],
)
def test_a_device_runs_only_when_it_is_up_and_has_a_carrier(flags: int, up: bool, running: bool, loopback: bool) -> None:
    device = Device(1, "x", flags, 1500)
    assert (device.is_up, device.is_running, device.is_loopback) == (up, running, loopback)


def test_the_local_end_and_the_wide_flags_of_an_address_count() -> None:
    local, peer = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    body = address_body(2, 24, (1, peer), (2, local), (8, struct.pack("=I", 0x280)))
    assert parse_address(memoryview(body)) == DeviceAddress(7, IPv4Interface("10.0.0.1/24"), 0x280, 0)


def test_an_ipv6_address_has_no_local_attribute() -> None:
    interface = IPv6Interface("fd00::1/64")
    assert parse_address(memoryview(address_body(10, 64, (1, interface.packed)))) == DeviceAddress(7, interface, 0x80, 0)


@pytest.mark.parametrize(
    "body",
    [
        address_body(2, 24),
        address_body(2, 33, (2, bytes(4))),
        address_body(2, 24, (2, bytes(5))),
        address_body(10, 129, (1, bytes(16))),
        address_body(7, 24, (2, bytes(4))),
        b"",
    ],
)
def test_an_address_that_is_none_is_none(body: bytes) -> None:
    assert parse_address(memoryview(body)) is None


def test_every_prefix_of_a_message_is_read_without_harm() -> None:
    for body, parse in ((DEVICE, parse_device), (address_body(2, 24, (2, bytes(4))), parse_address)):
        for end in range(len(body)):
            parse(memoryview(body[:end]))


@given(st.integers(16, 25), st.binary(max_size=100))
def test_random_notifications_never_break_the_view(kind: int, body: bytes) -> None:
    list(View().events(Message(kind, 0, 0, 0, memoryview(body))))
