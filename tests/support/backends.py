"""Leases, views and an uplink for tests of the backends' planners."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from flanpy.config.network import parse_network_config
from flanpy.core.membership import View
from flanpy.model import Hop, Lease, NetworkConfig, NodeAttributes, Peer, Subnets, Uplink

UPLINK = Uplink(
    "eth0",
    2,
    1500,
    IPv4Address("192.0.2.1"),
    IPv6Address("2001:db8::1"),
    (IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::/64")),
)


def config(backend: str, options: str = "", *, ipv6: bool = False) -> NetworkConfig:
    """The network config of a backend with these options (JSON members)."""
    family6 = ', "EnableIPv6": true, "IPv6Network": "fd05::/16"' if ipv6 else ""
    more = f", {options}" if options else ""
    return parse_network_config(f'{{"Network": "10.5.0.0/16"{family6}, "Backend": {{"Type": "{backend}"{more}}}}}')


def lease(
    backend: str, subnet: str, address: str, data: str | None = None, subnet6: str = "", address6: str = "", data6: str = ""
) -> Lease:
    """A lease as it stands in etcd; an address "" is none."""
    subnets = Subnets(IPv4Network(subnet) if subnet else None, IPv6Network(subnet6) if subnet6 else None)
    public6 = IPv6Address(address6) if address6 else None
    return Lease(
        subnets, NodeAttributes(IPv4Address(address) if address else None, public6, backend, data, data6 or None), 5, 5, 7
    )


def peer_of(item: Lease) -> Peer:
    """The peer that a lease makes."""
    return Peer(item.subnets, item.attributes, Hop(item.attributes.address, 0), item)


def view_of(*leases: Lease) -> View:
    """A view of these peers and nothing else."""
    return View(tuple(peer_of(item) for item in leases), (), ())
