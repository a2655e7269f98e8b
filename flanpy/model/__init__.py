"""Frozen values that every layer shares; nothing here does I/O or knows the clock.

The words of the field, used for the same thing everywhere:

    subnet    a range of pod addresses            lease     the etcd record that gives a subnet to a node
    peer      another node of the cluster         hop       where a peer takes encapsulated packets (ip, port)
    verdict   what became of a packet             table     destination prefix -> hop, an immutable snapshot
    record    an etcd key with its raw value      refusal   one item that was not accepted, and why

`addresses` has their types, `cluster` what all nodes share, `desired` what one machine should be; the layers import from here.

Addresses and networks are ``ipaddress`` values; numbers are host order; units are in the names.
"""

from __future__ import annotations

from flanpy.model.addresses import Address, Interface, Network
from flanpy.model.cluster import (
    DEFAULT_PREFIX,
    LEASE_TTL_S,
    BackendConfig,
    FlanpyInfo,
    ForeignLease,
    Hop,
    KeptLease,
    Lease,
    NetworkConfig,
    NodeAttributes,
    Peer,
    Record,
    RecordChange,
    RecordSet,
    Refusal,
    Subnets,
)
from flanpy.model.desired import (
    FLANNEL_ROUTE_PROTOCOL,
    ROUTE_PROTOCOL,
    Command,
    DesiredState,
    FdbEntry,
    FirewallRules,
    FirewallTool,
    ForwardTable,
    Hook,
    IpipLink,
    Link,
    LocalFacts,
    Neighbour,
    Route,
    Rule,
    StandIns,
    TableEntry,
    Tunnel,
    Uplink,
    VxlanLink,
    WireguardLink,
    WireguardPeer,
)

__all__ = [
    "DEFAULT_PREFIX",
    "FLANNEL_ROUTE_PROTOCOL",
    "LEASE_TTL_S",
    "ROUTE_PROTOCOL",
    "Address",
    "BackendConfig",
    "Command",
    "DesiredState",
    "FdbEntry",
    "FirewallRules",
    "FirewallTool",
    "FlanpyInfo",
    "ForeignLease",
    "ForwardTable",
    "Hook",
    "Hop",
    "Interface",
    "IpipLink",
    "KeptLease",
    "Lease",
    "Link",
    "LocalFacts",
    "Neighbour",
    "Network",
    "NetworkConfig",
    "NodeAttributes",
    "Peer",
    "Record",
    "RecordChange",
    "RecordSet",
    "Refusal",
    "Route",
    "Rule",
    "StandIns",
    "Subnets",
    "TableEntry",
    "Tunnel",
    "Uplink",
    "VxlanLink",
    "WireguardLink",
    "WireguardPeer",
]
