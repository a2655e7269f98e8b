"""What all nodes share: the records of the lease store, leases and the peers that they stand for, the network config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType
from typing import Literal

from flanpy.model.addresses import Address

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
