"""What this machine has and should have: the uplink, and devices, routes, entries, rules and table as they are desired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Literal

from flanpy.model.addresses import Address, Interface, Network
from flanpy.model.cluster import Hop, Subnets

ROUTE_PROTOCOL = 102
"""Our number in a route's ``proto`` field (rtnetlink ``rtm_protocol``); a route without it is not ours."""

FLANNEL_ROUTE_PROTOCOL = 3
"""What flanneld's routes have there, and those of whoever types ``ip route add``: RTPROT_BOOT."""


@dataclass(frozen=True, slots=True)
class Uplink:
    """The underlay interface of this node: what peers reach us by."""

    name: str
    index: int
    mtu_bytes: int
    address: IPv4Address | None
    address6: IPv6Address | None = None
    on_link: tuple[Network, ...] = ()
    """The networks of its addresses and of routes without a gateway: whoever is in one of them is reached without a router."""

    @property
    def underlay(self) -> Address | None:
        """What a datapath of ours is bound to: the IPv4 address if there is one, else the IPv6 address."""
        return self.address or self.address6


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The TUN device as it should be: its name, MTU, number of queues and addresses."""

    name: str
    mtu_bytes: int
    addresses: tuple[Interface, ...]


@dataclass(frozen=True, slots=True)
class VxlanLink:
    """A VXLAN device as it should be. ``mac`` is lower case; ``local`` and ``uplink`` (a device name) are the underlay's."""

    name: str
    vni: int
    port: int
    mac: str
    local: Address
    uplink: str
    mtu_bytes: int
    addresses: tuple[Interface, ...]
    learning: bool = False
    gbp: bool = False


@dataclass(frozen=True, slots=True)
class IpipLink:
    """An IP-in-IP tunnel device as it should be: from ``local`` to wherever a route's gateway says."""

    name: str
    local: Address
    uplink: str
    mtu_bytes: int
    addresses: tuple[Interface, ...]


@dataclass(frozen=True, slots=True)
class WireguardPeer:
    """A peer of a WireGuard device: keys are base64 text; ``preshared_key`` "" for none, ``keepalive_s`` 0 for none."""

    public_key: str
    endpoint: Hop
    allowed: tuple[Network, ...]
    keepalive_s: int = 0
    preshared_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class WireguardLink:
    """A WireGuard device as it should be, with all its peers. Its private key is the machine's business, and is in no plan."""

    name: str
    port: int
    mtu_bytes: int
    addresses: tuple[Interface, ...]
    peers: tuple[WireguardPeer, ...]


Link = VxlanLink | IpipLink | WireguardLink
"""A device that the kernel carries packets through by itself."""


@dataclass(frozen=True, slots=True, order=True)
class Neighbour:
    """A permanent neighbour entry: this address on this device has this MAC."""

    device: str
    address: Address
    mac: str


@dataclass(frozen=True, slots=True, order=True)
class FdbEntry:
    """A permanent forwarding entry of a VXLAN device: frames to this MAC go to this node (port 0: the device's own)."""

    device: str
    mac: str
    destination: Address
    port: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run without a shell: its words, what it finds in its environment besides ours, and its standard input."""

    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Hook:
    """Something that begins and ends by commands of the operator. ``essential``: we are not ready before it has begun."""

    name: str
    begin: Command | None
    end: Command | None = None
    essential: bool = False


@dataclass(frozen=True, slots=True)
class LocalFacts:
    """What a backend has to know of this machine before it can say what our lease says."""

    node_id: str
    macs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """MAC of each VXLAN device that is there, by name."""
    startup_output: str | None = None
    """What the extension backend's PreStartupCommand has printed; None when there is no such command."""
    public_key: str = ""
    """The public half of this node's WireGuard key, base64."""


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """A kernel route. ``gateway`` None means on-link via ``device``; ``onlink`` skips the gateway's reachability check.

    Compared whole: two routes to one destination that differ in any field are different routes.
    """

    destination: Network
    device: str
    gateway: Address | None = None
    source: Address | None = None
    metric: int = 0
    table: int = 254
    protocol: int = ROUTE_PROTOCOL
    onlink: bool = False
    kind: str = "unicast"
    """What becomes of the packets: ``unicast`` leads somewhere; a ``blackhole`` drops them and has the device ""."""


@dataclass(frozen=True, slots=True, order=True)
class TableEntry:
    """One line of the route table of the datapath: this prefix belongs to the node behind this hop."""

    prefix: Network
    hop: Hop


@dataclass(frozen=True, slots=True)
class ForwardTable:
    """What a datapath forwards by: an immutable snapshot, published whole.

    ``local`` are this node's own prefixes: the only inner destinations accepted from the underlay. Longest prefix wins. ``mtu_bytes``
    is the largest inner packet; by default as much as a datagram takes.
    """

    generation: int
    entries: tuple[TableEntry, ...]
    local: tuple[Network, ...]
    mtu_bytes: int = 65_507


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the firewall: all conditions that are set must hold. ``comment`` says what for and is seen by the operator."""

    comment: str
    action: Literal["return", "accept", "masquerade"]
    source: Network | None = None
    destination: Network | None = None
    not_source: Network | None = None
    not_destination: Network | None = None
    mark: int = 0
    """All of these bits are set in the packet's mark."""
    fully_random: bool = False

    @property
    def version(self) -> int | None:
        """The IP version that this rule is about; None: any."""
        networks = (self.source, self.destination, self.not_source, self.not_destination)
        return next((network.version for network in networks if network is not None), None)


FirewallTool = Literal["auto", "nft", "iptables"]


@dataclass(frozen=True, slots=True)
class FirewallRules:
    """What our part of the firewall should be, in order; empty chains are not there at all.

    ``networks`` are our subnets and networks: what a flanneld has left about one of them is ours to remove.
    """

    masquerade: tuple[Rule, ...] = ()
    forward: tuple[Rule, ...] = ()
    networks: tuple[Network, ...] = ()
    tool: FirewallTool = "auto"


@dataclass(frozen=True, slots=True)
class StandIns:
    """What the pod bridges answer for in ARP and neighbour discovery, though it is elsewhere.

    ``away``: addresses of our subnets whose pods are on other nodes now. ``gateways``: (bridge, gateway of the subnet that a pod has
    brought its address from). ``residents``: the pods that are here as neighbours, told to everybody once, for an earlier owner of the
    address may be in their caches. ``subnets`` are our own, by which bridges are found, ``networks`` the cluster's: the rest is not ours.
    """

    away: frozenset[Address]
    gateways: frozenset[tuple[str, Address]]
    residents: frozenset[Neighbour]
    subnets: tuple[Network, ...]
    networks: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class DesiredState:
    """All that should be true on this machine; the reconciler makes it so."""

    tunnel: Tunnel | None
    routes: frozenset[Route]
    table: ForwardTable | None
    """What a datapath of ours forwards by; None when the kernel carries the packets alone."""
    mtu_bytes: int = 0
    """The largest packet of a pod."""
    links: tuple[Link, ...] = ()
    neighbours: frozenset[Neighbour] = frozenset()
    fdb: frozenset[FdbEntry] = frozenset()
    hooks: frozenset[Hook] = frozenset()
    rules: FirewallRules | None = None
    """None: nothing is known about rules, so none is touched."""
    superseded: frozenset[Route] = frozenset()
    """Routes of a flanneld of this node that have no place beside ours: they go where they are found, exactly so."""
    own: Subnets | None = None
    """What this node has leased."""
    stand_ins: StandIns | None = None
    """None: single pods are not looked after, so no bridge is touched."""
