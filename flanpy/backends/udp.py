"""flannel's udp backend: what should be true on this machine, from the own lease and the view of the others; no I/O.

device   TUN, MTU = underlay - 28 (outer IPv4 and UDP header), address = first address of the own subnet, /32
route    the whole Network through the device; which peer has what is the datapath's business
table    subnet of each peer -> its PublicIP and Port; inner packets from the underlay are accepted for our subnet only
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface

from flanpy.core.membership import View
from flanpy.errors import ConfigError, InterfaceError
from flanpy.model import (
    DesiredState,
    ForwardTable,
    Lease,
    LocalFacts,
    NetworkConfig,
    NodeAttributes,
    Route,
    TableEntry,
    Tunnel,
    Uplink,
)

TYPE = ""
"""Leases of udp nodes carry no backend type."""
DEVICE = "flannel0"
OVERHEAD_BYTES = 28
"""Outer IPv4 header without options (20) and UDP header (8)."""

MTU_MIN_BYTES = 68
"""RFC 791: every link must carry 68 bytes; the kernel takes the IPv4 address off a device below it."""


def attributes(base: NodeAttributes, config: NetworkConfig, facts: LocalFacts) -> NodeAttributes:
    """What our lease says: flannel's udp leases carry no backend type and no data."""
    return replace(base, backend_type=TYPE, backend_data=None, backend_v6_data=None)


def screen(config: NetworkConfig, own: Lease, view: View, uplink: Uplink) -> View:
    """A udp lease says nothing that could be wrong by itself."""
    return view


def mtu_bytes(uplink: Uplink) -> int:
    """The largest inner packet; raises InterfaceError when the underlay is too small for any."""
    mtu = uplink.mtu_bytes - OVERHEAD_BYTES
    if mtu < MTU_MIN_BYTES:
        raise InterfaceError(
            f"{uplink.name}: MTU {uplink.mtu_bytes} is too small for udp (at least {MTU_MIN_BYTES + OVERHEAD_BYTES})"
        )
    return mtu


def plan(config: NetworkConfig, own: Lease, view: View, uplink: Uplink, generation: int, device: str = DEVICE) -> DesiredState:
    """The desired state of this machine. Needs an IPv4 network, the only family that flannel's udp backend carries."""
    subnet = own.subnets.ipv4
    if config.network is None or subnet is None:
        raise ConfigError("EnableIPv4: udp carries IPv4 only; enable IPv4 and set Network")
    entries = (TableEntry(peer.subnets.ipv4, peer.hop) for peer in view.peers if peer.subnets.ipv4 is not None)
    return DesiredState(
        tunnel=Tunnel(device, mtu_bytes(uplink), (IPv4Interface((subnet.network_address, 32)),)),
        routes=frozenset({Route(config.network, device)}),
        table=ForwardTable(generation, tuple(entries), (subnet,)),
        mtu_bytes=mtu_bytes(uplink),
    )
