"""flannel's host-gw backend: a plain route to each peer's subnet via its PublicIP, without any encapsulation; no I/O.

Needs peers on the link: a peer behind a router is refused by name, for that router does not know where the pods are. The MTU is the
underlay's. IPv6 goes via PublicIPv6 in the same way.
"""

from __future__ import annotations

from dataclasses import replace

from flanpy.backends.families import enabled_versions, is_on_link, missing_address, same_family, screened
from flanpy.core.membership import View
from flanpy.model import DesiredState, FlanpyInfo, Lease, LocalFacts, NetworkConfig, NodeAttributes, Peer, Route, Uplink

TYPE = "host-gw"


def attributes(base: NodeAttributes, config: NetworkConfig, facts: LocalFacts) -> NodeAttributes:
    """What our lease says: the type alone."""
    return replace(base, backend_type=TYPE, backend_data=None, backend_v6_data=None, flanpy=FlanpyInfo(facts.node_id))


def reached_by(config: NetworkConfig) -> tuple[int, ...]:
    """A gateway is of the family of its route."""
    return enabled_versions(config)


def screen(config: NetworkConfig, own: Lease, view: View, uplink: Uplink) -> View:
    """The view without the peers that are not on the link."""

    def judge(peer: Peer) -> str | None:
        for side in same_family(peer, own.subnets):
            reason = missing_address(side)
            if reason is None and side.address is not None and not is_on_link(uplink, side.address):
                networks = ", ".join(str(each) for each in uplink.on_link if each.version == side.version) or "no network"
                name = "PublicIP" if side.version == 4 else "PublicIPv6"
                reason = (
                    f"{name}: {side.address} is not on the link of {uplink.name} ({networks}); host-gw needs that, vxlan does not"
                )
            if reason is not None:
                return reason
        return None

    return screened(view, judge)


def plan(config: NetworkConfig, own: Lease, view: View, uplink: Uplink, generation: int) -> DesiredState:
    """The desired state of this machine; ``view`` has passed ``screen``."""
    sides = (side for peer in view.peers for side in same_family(peer, own.subnets))
    routes = frozenset(Route(side.subnet, uplink.name, gateway=side.address) for side in sides)
    return DesiredState(tunnel=None, routes=routes, table=None, mtu_bytes=uplink.mtu_bytes)
