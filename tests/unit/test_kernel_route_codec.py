"""Routes to rtnetlink bodies and back, without a kernel."""

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from flanpy.kernel.messages import attribute
from flanpy.kernel.route_codec import delete_body, dump_body, is_default, new_body, parse, protocol_of
from flanpy.model import Route

NAMES = {7: "flannel0", 8: "eth0"}
INDEXES = {name: index for index, name in NAMES.items()}

v4_networks = st.builds(lambda n, p: IPv4Network((n, p), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32))
v6_networks = st.builds(lambda n, p: IPv6Network((n, p), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128))


def routes_of(networks, addresses):
    return st.builds(
        Route,
        destination=networks,
        device=st.sampled_from(sorted(INDEXES)),
        gateway=st.none() | addresses,
        source=st.none() | addresses,
        metric=st.integers(0, 2**32 - 1).filter(lambda metric: metric != 1024),
        table=st.integers(1, 2**32 - 1),
        protocol=st.integers(0, 255),
        onlink=st.booleans(),
    )


routes = routes_of(v4_networks, st.ip_addresses(v=4)) | routes_of(v6_networks, st.ip_addresses(v=6))


@given(routes)
def test_a_route_comes_back_as_it_was_written(route: Route) -> None:
    body = memoryview(new_body(route, INDEXES[route.device]))
    assert parse(body, NAMES) == route
    assert protocol_of(body) == route.protocol
    assert is_default(body) == (route.destination.prefixlen == 0)


@given(routes)
def test_every_prefix_of_a_route_message_is_read_without_harm(route: Route) -> None:
    for body in (new_body(route, 7), delete_body(route, 7)):
        for end in range(len(body)):
            parse(memoryview(body[:end]), NAMES)


@given(st.binary(max_size=80))
def test_random_bytes_never_break_the_route_parser(data: bytes) -> None:
    parse(memoryview(data), NAMES)


def test_the_default_metric_of_ipv6_is_written_out_and_read_back_as_zero() -> None:
    route = Route(IPv6Network("fd00:1::/64"), "flannel0", gateway=IPv6Address("fd00::1"))
    body = new_body(route, 7)
    assert attribute(6, struct.pack("=I", 1024)) in body
    assert parse(memoryview(body), NAMES) == route


def test_a_route_of_an_unknown_device_is_none_and_one_without_device_has_no_name() -> None:
    route = Route(IPv4Network("10.1.0.0/16"), "flannel0")
    assert parse(memoryview(new_body(route, 99)), NAMES) is None
    assert parse(memoryview(new_body(route, 0)), NAMES) == replace(route, device="")


def test_a_route_of_several_hops_equals_no_route_of_one() -> None:
    hops = struct.pack("=HBBi", 8, 0, 0, 7) + struct.pack("=HBBi", 8, 0, 0, 8)
    body = struct.pack("=BBBBBBBBI", 2, 8, 0, 0, 254, 102, 0, 1, 0) + attribute(1, bytes([10, 0, 0, 0])) + attribute(9, hops)
    assert parse(memoryview(body), NAMES) == Route(IPv4Network("10.0.0.0/8"), "flannel0/eth0")


def test_a_route_with_a_type_of_service_is_not_one_of_ours() -> None:
    body = bytearray(new_body(Route(IPv4Network("10.1.0.0/16"), "eth0", gateway=IPv4Address("192.0.2.1")), 8))
    body[3] = 0x10
    assert parse(memoryview(body), NAMES) is None


def test_a_dump_request_carries_its_filters() -> None:
    assert dump_body(2, protocol=102) == bytes([2, 0, 0, 0, 0, 102, 0, 0, 0, 0, 0, 0])
    assert dump_body(2, table=1000) == bytes([2, 0, 0, 0, 252, 0, 0, 0, 0, 0, 0, 0]) + attribute(15, struct.pack("=I", 1000))


@given(v4_networks | v6_networks, st.sampled_from(["blackhole", "unreachable", "prohibit"]))
def test_a_route_that_leads_nowhere_comes_back_whatever_device_the_kernel_tells(destination, kind) -> None:
    route = Route(destination, "", metric=77, kind=kind)
    assert parse(memoryview(new_body(route, 0)), NAMES) == route
    assert parse(memoryview(new_body(route, 1)), NAMES) == route, "IPv6 tells the loopback device"
