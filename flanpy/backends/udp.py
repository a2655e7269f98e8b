"""flannel's udp backend, for either family inside and outside: what should be true on this machine; no I/O.

device   TUN, MTU = underlay - 28 (IPv6 underlay: - 48), address = first address of each own subnet, /32 and /128
route    the whole Network and IPv6Network through the device; which peer has what is the datapath's business
table    subnets of each peer -> its address and Port; inner packets from the underlay are accepted for our subnets only

flannel's own udp knows IPv4 in IPv4 alone, and its receiver writes whatever comes to its TUN device. So a node that reads IPv6 says so in
its lease, and nobody else is sent any. A node's datapath has one underlay: IPv4 where the node has such an address, else IPv6.
"""

from __future__ import annotations

from dataclasses import replace

from flanpy.backends.families import MTU_MIN_BYTES, families, screened
from flanpy.core.codec import key_of
from flanpy.core.membership import View
from flanpy.errors import ConfigError, InterfaceError
from flanpy.model import (
    DesiredState,
    FlanpyInfo,
    ForwardTable,
    Lease,
    LocalFacts,
    Network,
    NetworkConfig,
    NodeAttributes,
    Peer,
    Refusal,
    Route,
    TableEntry,
    Tunnel,
    Uplink,
)

TYPE = ""
"""Leases of udp nodes carry no backend type."""
DEVICE = "flannel0"
OVERHEAD_BYTES = {4: 28, 6: 48}
"""Outer IP header without options (20 or 40) and UDP header (8)."""
IPV6 = "ipv6"
"""The feature of a node that takes IPv6 packets out of UDP datagrams."""


def attributes(base: NodeAttributes, config: NetworkConfig, facts: LocalFacts) -> NodeAttributes:
    """What our lease says: flannel's udp leases carry no backend type and no data; ours say whether we read IPv6."""
    features = base.flanpy.features if base.flanpy is not None else frozenset()
    if config.enable_ipv6:
        features |= {IPV6}
    info = FlanpyInfo(facts.node_id, features)
    return replace(base, backend_type=TYPE, backend_data=None, backend_v6_data=None, flanpy=info)


def reached_by(config: NetworkConfig) -> tuple[int, ...]:
    """Both families go over either."""
    return ()


def reads_ipv6(peer: Peer) -> bool:
    """Whether a node can be sent IPv6 packets."""
    info = peer.attributes.flanpy
    return info is not None and IPV6 in info.features


def _is_unread(peer: Peer) -> bool:
    """Whether a node is there that does not read IPv6; a reservation that nobody has taken up says nothing of any node."""
    return not reads_ipv6(peer) and not (peer.lease.is_reservation and peer.attributes.flanpy is None)


def screen(config: NetworkConfig, own: Lease, view: View, uplink: Uplink) -> View:
    """The view without the peers on the other family of the underlay; peers that get IPv4 alone stay, and are told."""
    underlay = uplink.underlay
    version = 4 if underlay is None else underlay.version

    def judge(peer: Peer) -> str | None:
        if peer.hop.address.version != version:
            return (
                f"it takes packets at {peer.hop.address}, but this node's underlay is IPv{version}: give all nodes an IPv4 address there, "
                "or none (--iface with an IPv6 address leaves IPv4 aside)"
            )
        if peer.subnets.ipv4 is None and _is_unread(peer):
            return _unread(peer)
        return None

    seen = screened(view, judge)
    told = [Refusal(key_of(peer.subnets), _unread(peer)) for peer in seen.peers if peer.subnets.ipv6 and _is_unread(peer)]
    if not told:
        return seen
    return replace(seen, refusals=tuple(sorted((*seen.refusals, *told), key=lambda refusal: refusal.key)))


def _unread(peer: Peer) -> str:
    kept = "; its IPv4 subnet is reached" if peer.subnets.ipv4 is not None else ""
    return f"{peer.subnets.ipv6}: its node does not say that it reads IPv6 in UDP, as flanneld does not, and is sent none{kept}"


def mtu_bytes(config: NetworkConfig, uplink: Uplink) -> int:
    """The largest inner packet; raises InterfaceError when the underlay is too small for any."""
    underlay = uplink.underlay
    overhead = OVERHEAD_BYTES[4 if underlay is None else underlay.version]
    inner = 6 if config.enable_ipv6 else 4
    mtu = uplink.mtu_bytes - overhead
    if mtu < MTU_MIN_BYTES[inner]:
        least = MTU_MIN_BYTES[inner] + overhead
        raise InterfaceError(f"{uplink.name}: MTU {uplink.mtu_bytes} is too small for udp with IPv{inner} (at least {least})")
    return mtu


def plan(config: NetworkConfig, own: Lease, view: View, uplink: Uplink, generation: int, device: str = DEVICE) -> DesiredState:
    """The desired state of this machine; ``view`` has passed ``screen``."""
    sides = families(own.subnets, own.attributes)
    networks: dict[int, Network | None] = {4: config.network, 6: config.ipv6_network}
    routes = {Route(network, device) for side in sides if (network := networks[side.version]) is not None}
    if len(routes) != len(sides):
        raise ConfigError(f"our own lease {own.subnets} has a family that the network config does not enable")
    versions = {side.version for side in sides}
    mtu = mtu_bytes(config, uplink)
    return DesiredState(
        tunnel=Tunnel(device, mtu, tuple(side.base_interface for side in sides)),
        routes=frozenset(routes),
        table=ForwardTable(generation, _entries(view, versions), tuple(side.subnet for side in sides), mtu),
        mtu_bytes=mtu,
    )


def _entries(view: View, versions: set[int]) -> tuple[TableEntry, ...]:
    """What each peer has of the families that we have, in the view's order."""
    entries = []
    for peer in view.peers:
        if peer.subnets.ipv4 is not None and 4 in versions:
            entries.append(TableEntry(peer.subnets.ipv4, peer.hop))
        if peer.subnets.ipv6 is not None and 6 in versions and reads_ipv6(peer):
            entries.append(TableEntry(peer.subnets.ipv6, peer.hop))
    return tuple(entries)
