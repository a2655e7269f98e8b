"""What the backends that the kernel carries have in common: the families of a node, and refusing peers one by one; no I/O.

A node has one subnet of each family that the network config enables. Per family there is one underlay address, one BackendData, one
device; ``families`` pairs them up, so that a planner is written once and serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface

from flanpy.core.codec import key_of
from flanpy.core.membership import View
from flanpy.errors import InterfaceError
from flanpy.model import Address, Interface, Network, NetworkConfig, NodeAttributes, Peer, Refusal, Subnets, Uplink

MTU_MIN_BYTES = {4: 68, 6: 1280}
"""RFC 791 and RFC 8200: every link must carry this; the kernel takes the addresses of the family off a device below it."""


@dataclass(frozen=True, slots=True)
class Side:
    """One family of one node: its subnet, the underlay address that peers reach it by, and the name and text of its data."""

    subnet: Network
    address: Address | None
    data_name: str
    data: str | None

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.subnet.version

    @property
    def base(self) -> Address:
        """The first address of the subnet, which the node itself has on its overlay device."""
        return self.subnet.network_address

    @property
    def base_interface(self) -> Interface:
        """The same as it stands on the device: /32 or /128, so that no route comes of it."""
        return IPv4Interface(self.base) if self.version == 4 else IPv6Interface(self.base)


def enabled_versions(config: NetworkConfig) -> tuple[int, ...]:
    """The families that the cluster has."""
    return tuple(version for version, enabled in ((4, config.enable_ipv4), (6, config.enable_ipv6)) if enabled)


def families(subnets: Subnets, attributes: NodeAttributes) -> tuple[Side, ...]:
    """The families of a node, IPv4 first."""
    sides = []
    if subnets.ipv4 is not None:
        sides.append(Side(subnets.ipv4, attributes.public_ip, "BackendData", attributes.backend_data))
    if subnets.ipv6 is not None:
        sides.append(Side(subnets.ipv6, attributes.public_ipv6, "BackendV6Data", attributes.backend_v6_data))
    return tuple(sides)


def local_address(uplink: Uplink, version: int) -> Address:
    """The address that we send encapsulated packets from; raises InterfaceError when the underlay has none of this family."""
    address = uplink.address if version == 4 else uplink.address6
    if address is None:
        raise InterfaceError(f"{uplink.name}: has no IPv{version} address, which the backend needs for its IPv{version} subnets")
    return address


def mtu_below(uplink: Uplink, configured: object, overhead_bytes: int, version: int, what: str) -> int:
    """The MTU of the overlay: the underlay's (or ``Backend.MTU`` in its place, as flannel has it) less the overhead."""
    underlay = configured if isinstance(configured, int) and configured else uplink.mtu_bytes
    mtu = underlay - overhead_bytes
    if mtu < MTU_MIN_BYTES[version]:
        where = "Backend.MTU" if underlay != uplink.mtu_bytes else f"{uplink.name}: MTU"
        least = MTU_MIN_BYTES[version] + overhead_bytes
        raise InterfaceError(f"{where} {underlay} is too small for {what} with IPv{version} (at least {least})")
    return mtu


def is_on_link(uplink: Uplink, address: Address) -> bool:
    """Whether this address is reached without a router."""
    return any(address.version == network.version and address in network for network in uplink.on_link)


def screened(view: View, judge: Callable[[Peer], str | None]) -> View:
    """The view without the peers that ``judge`` finds a reason against; asked about the oldest first, so the older one stands."""
    reasons: dict[str, str] = {}
    for peer in _by_age(view.peers):
        reason = judge(peer)
        if reason is not None:
            reasons[key_of(peer.subnets)] = reason
    if not reasons:
        return view
    refusals = (*view.refusals, *(Refusal(key, reason) for key, reason in reasons.items()))
    return replace(view, peers=_without(view.peers, reasons), refusals=tuple(sorted(refusals, key=lambda item: item.key)))


def _by_age(peers: tuple[Peer, ...]) -> list[Peer]:
    """The oldest first; keys are made only where two leases were written by one transaction, for there may be 65,536."""
    revisions = {peer.lease.create_revision for peer in peers}
    return sorted(peers, key=_revision if len(revisions) == len(peers) else _age)


def _revision(peer: Peer) -> int:
    return peer.lease.create_revision


def _age(peer: Peer) -> tuple[int, str]:
    return peer.lease.create_revision, key_of(peer.subnets)


def _without(peers: Iterable[Peer], keys: dict[str, str]) -> tuple[Peer, ...]:
    return tuple(peer for peer in peers if key_of(peer.subnets) not in keys)


def same_family(peer: Peer, own: Subnets) -> tuple[Side, ...]:
    """The families of a peer that we have too."""
    ours = {network.version for network in (own.ipv4, own.ipv6) if network is not None}
    return tuple(side for side in families(peer.subnets, peer.attributes) if side.version in ours)


def missing_address(side: Side) -> str | None:
    """Why nobody can be reached there, if the lease names no usable underlay address of this family."""
    name = "PublicIP" if side.version == 4 else "PublicIPv6"
    if side.address is None:
        return f"{name}: missing, so its IPv{side.version} subnet cannot be reached"
    if side.address.is_multicast or side.address.is_unspecified or side.address.is_loopback:
        return f"{name}: {side.address} is no address of one node"
    return None
