"""Frozen values that every layer shares; nothing here does I/O or knows the clock.

The words of the field, used for the same thing everywhere:

    subnet    a range of pod addresses            lease     the etcd record that gives a subnet to a node
    peer      another node of the cluster         hop       where a peer takes encapsulated packets (ip, port)
    verdict   what became of a packet             table     destination prefix -> hop, an immutable snapshot
    record    an etcd key with its raw value      refusal   one item that was not accepted, and why

Addresses and networks are ``ipaddress`` values; numbers are host order; units are in the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import MappingProxyType
from typing import Literal

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

ROUTE_PROTOCOL = 102
"""Our number in a route's ``proto`` field (rtnetlink ``rtm_protocol``); a route without it is not ours."""

FLANNEL_ROUTE_PROTOCOL = 3
"""What flanneld's routes have there, and those of whoever types ``ip route add``: RTPROT_BOOT."""

LEASE_TTL_S = 24 * 3600
"""flannel's time to live of a subnet lease."""

DEFAULT_PREFIX = "/coreos.com/network"
"""flannel's default ``--etcd-prefix``."""


# ------------------------------------------------------------------------------------------------ the lease store


@dataclass(frozen=True, slots=True)
class Record:
    """One etcd key as it was read: the value is hostile until ``core.codec`` has taken it.

    ``key`` is relative to the prefix, without a leading slash: ``config``, ``subnets/10.5.52.0-24``.
    ``etcd_lease_id`` 0 means that the key never expires (flannel calls such a subnet a reservation).
    """

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    etcd_lease_id: int = 0


@dataclass(frozen=True, slots=True)
class RecordSet:
    """All records below one key, consistent at ``revision``; a watch goes on from ``revision + 1``."""

    revision: int
    records: tuple[Record, ...]
    cluster: int = 0
    """etcd's id of the cluster that has answered; 0: not known."""


@dataclass(frozen=True, slots=True)
class RecordChange:
    """One change seen by a watch: ``record`` is None when the key was deleted or has expired."""

    revision: int
    key: str
    record: Record | None


# ------------------------------------------------------------------------------------------------ leases and peers


@dataclass(frozen=True, slots=True, order=True)
class Subnets:
    """The one or two subnets of a node; they name the etcd key. At least one of them is set."""

    ipv4: IPv4Network | None = None
    ipv6: IPv6Network | None = None

    def __post_init__(self) -> None:
        if self.ipv4 is None and self.ipv6 is None:
            raise ValueError("Subnets: needs an IPv4 or an IPv6 subnet, got neither")

    def __str__(self) -> str:
        return " ".join(str(subnet) for subnet in (self.ipv4, self.ipv6) if subnet is not None)


@dataclass(frozen=True, slots=True)
class FlanpyInfo:
    """What a flanpy node tells the others, as the object ``flanpy`` in BackendData; flanneld ignores it.

    ``node`` is the node's stable id, ``features`` what its receiver can take (``ecn``, ``superpacket``, ...).
    """

    node: str
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeAttributes:
    """The value of a lease: who has it and how to reach that node (flannel's LeaseAttrs). At least one address is set.

    ``backend_type`` "" stands for udp, whose leases carry no type. ``backend_data`` and ``backend_v6_data`` are canonical
    JSON text without the ``flanpy`` object, or None when absent.
    """

    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    backend_data: str | None = None
    backend_v6_data: str | None = None
    flanpy: FlanpyInfo | None = None

    def __post_init__(self) -> None:
        if self.public_ip is None and self.public_ipv6 is None:
            raise ValueError("NodeAttributes: needs a public IPv4 or IPv6 address, got neither")

    @property
    def address(self) -> Address:
        """What tells this node from others, and where a datapath of ours takes packets: its IPv4 address if it has one, else IPv6."""
        address = self.public_ip or self.public_ipv6
        assert address is not None
        return address


@dataclass(frozen=True, slots=True)
class Lease:
    """A subnet lease as it stands in etcd; ``etcd_lease_id`` 0 makes it a reservation."""

    subnets: Subnets
    attributes: NodeAttributes
    create_revision: int
    mod_revision: int
    etcd_lease_id: int

    @property
    def is_reservation(self) -> bool:
        """Whether the key never expires; such a subnet stays with its owner for ever."""
        return self.etcd_lease_id == 0


@dataclass(frozen=True, slots=True)
class KeptLease:
    """A lease that has vanished from etcd and is still acted by, until ``until_s`` (monotonic clock).

    ``cause`` "lost": etcd has lost its data; "expired": the key has expired, or somebody has deleted it. ``since_revision`` is the
    revision at which it was missed.
    """

    lease: Lease
    until_s: float
    cause: Literal["expired", "lost"]
    since_revision: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """One key that was not accepted; everything else goes on without it."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class Hop:
    """Where a peer takes encapsulated packets: underlay address and UDP port (host order; 0: the backend has none)."""

    address: Address
    port: int
    ecn: bool = False
    """The peer combines ECN marks at decapsulation (RFC 6040), so they may be copied out to it."""
    superpacket: bool = False
    """The peer takes superpackets and unfinished checksums as they are (its datapath is ebpf)."""

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}" if self.port else str(self.address)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node that we send to.

    ``lease`` is the record it was read from and takes no part in comparisons: a renewal makes an equal peer.
    """

    subnets: Subnets
    attributes: NodeAttributes
    hop: Hop
    lease: Lease = field(compare=False, repr=False)
    kept: KeptLease | None = field(default=None, compare=False, repr=False)
    """Set when the lease has vanished from etcd and the peer is kept for a while; no difference to the datapath."""


@dataclass(frozen=True, slots=True)
class ForeignLease:
    """A lease of a node that runs another backend type: known, shown, and not sent to. ``lease`` as in Peer."""

    subnets: Subnets
    attributes: NodeAttributes
    lease: Lease = field(compare=False, repr=False)


# ------------------------------------------------------------------------------------------------ network config


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """The ``Backend`` object of the network config: its type and its options by flannel's key names, defaults filled in."""

    type: str = "udp"
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The cluster's network config, checked and with every default filled in (flannel's Config).

    ``subnet_min`` and ``subnet_max`` are the first and last subnet that may be leased, inclusive.
    """

    network: IPv4Network | None
    subnet_len: int
    subnet_min: IPv4Network | None
    subnet_max: IPv4Network | None
    ipv6_network: IPv6Network | None
    ipv6_subnet_len: int
    ipv6_subnet_min: IPv6Network | None
    ipv6_subnet_max: IPv6Network | None
    enable_ipv4: bool
    enable_ipv6: bool
    enable_nftables: bool
    backend: BackendConfig


# ------------------------------------------------------------------------------------------------ desired state


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
