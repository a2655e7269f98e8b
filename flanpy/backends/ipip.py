"""flannel's ipip backend: the kernel's IP-in-IP tunnel, IPv4 alone; no I/O.

device      flannel.ipip, from our underlay address to anybody, MTU = underlay - 20 (outer IPv4 header), address = subnet base /32
per peer    a route to its subnet via its PublicIP on the device, onlink: the gateway is where the outer packet goes
DirectRouting: a peer in a network of the uplink gets a plain route via its PublicIP
"""

from __future__ import annotations

from dataclasses import replace

from flanpy.backends.families import (
    enabled_versions,
    families,
    is_on_link,
    local_address,
    missing_address,
    mtu_below,
    same_family,
    screened,
)
from flanpy.core.membership import View
from flanpy.errors import ConfigError
from flanpy.model import (
    DesiredState,
    FlanpyInfo,
    IpipLink,
    Lease,
    LocalFacts,
    NetworkConfig,
    NodeAttributes,
    Peer,
    Route,
    Uplink,
)

TYPE = "ipip"
DEVICE = "flannel.ipip"
OVERHEAD_BYTES = 20


def attributes(base: NodeAttributes, config: NetworkConfig, facts: LocalFacts) -> NodeAttributes:
    """What our lease says: the type alone."""
    return replace(base, backend_type=TYPE, backend_data=None, backend_v6_data=None, flanpy=FlanpyInfo(facts.node_id))


def reached_by(config: NetworkConfig) -> tuple[int, ...]:
    """IPv4 in IPv4."""
    return enabled_versions(config)


def screen(config: NetworkConfig, own: Lease, view: View, uplink: Uplink) -> View:
    """The view without the peers whose address is none."""

    def judge(peer: Peer) -> str | None:
        return next((reason for side in same_family(peer, own.subnets) if (reason := missing_address(side))), None)

    return screened(view, judge)


def plan(config: NetworkConfig, own: Lease, view: View, uplink: Uplink, generation: int) -> DesiredState:
    """The desired state of this machine; ``view`` has passed ``screen``."""
    if own.subnets.ipv4 is None or own.subnets.ipv6 is not None:
        raise ConfigError("EnableIPv6: ipip carries IPv4 only; enable IPv4 alone, or take vxlan, host-gw or wireguard")
    (side,) = families(own.subnets, own.attributes)
    mtu = mtu_below(uplink, 0, OVERHEAD_BYTES, 4, TYPE)
    link = IpipLink(DEVICE, local_address(uplink, 4), uplink.name, mtu, (side.base_interface,))
    direct = bool(config.backend.options["DirectRouting"])
    routes = frozenset(_route(peer, direct, uplink) for peer in view.peers if peer.subnets.ipv4 is not None)
    return DesiredState(tunnel=None, routes=routes, table=None, mtu_bytes=mtu, links=(link,))


def _route(peer: Peer, direct: bool, uplink: Uplink) -> Route:
    subnet, address = peer.subnets.ipv4, peer.attributes.public_ip
    assert subnet is not None
    assert address is not None, "screen has refused peers without"
    if direct and is_on_link(uplink, address):
        return Route(subnet, uplink.name, gateway=address)
    return Route(subnet, DEVICE, gateway=address, onlink=True)
