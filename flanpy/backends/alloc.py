"""flannel's alloc backend: the lease and subnet.env, and nothing else; somebody else carries the packets. No I/O.

The leases of flannel's alloc nodes carry no backend type, like those of udp nodes.
"""

from __future__ import annotations

from dataclasses import replace

from flanpy.core.membership import View
from flanpy.model import DesiredState, FlanpyInfo, Lease, LocalFacts, NetworkConfig, NodeAttributes, Uplink

TYPE = ""


def attributes(base: NodeAttributes, config: NetworkConfig, facts: LocalFacts) -> NodeAttributes:
    """What our lease says: nothing but where we are."""
    return replace(base, backend_type=TYPE, backend_data=None, backend_v6_data=None, flanpy=FlanpyInfo(facts.node_id))


def reached_by(config: NetworkConfig) -> tuple[int, ...]:
    """Nobody is sent to."""
    return ()


def screen(config: NetworkConfig, own: Lease, view: View, uplink: Uplink) -> View:
    """Nobody is sent to, so nobody has to be refused."""
    return view


def plan(config: NetworkConfig, own: Lease, view: View, uplink: Uplink, generation: int) -> DesiredState:
    """The desired state of this machine: no routes."""
    return DesiredState(tunnel=None, routes=frozenset(), table=None, mtu_bytes=uplink.mtu_bytes)
