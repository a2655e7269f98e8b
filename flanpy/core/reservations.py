"""What may be reserved and released by hand: pure rules over the network config and what etcd holds.

A reservation is a lease without expiry: its subnet stays with the node at that address, which takes it when it has no lease of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from flanpy.core.allocate import fits, is_free
from flanpy.core.codec import SUBNETS, decode_lease, encode_attributes, key_of
from flanpy.errors import CodecError, LeaseError, UsageError
from flanpy.model import Address, Lease, NetworkConfig, NodeAttributes, Record, RecordSet, Subnets


@dataclass(frozen=True, slots=True)
class Write:
    """What to write, and the revision that the key must still have (0: it must not exist)."""

    key: str
    value: bytes
    expected_mod_revision: int


def parse_subnets(text: str) -> Subnets:
    """``10.244.7.0/24`` or, in a dual-stack network, ``10.244.7.0/24,fd00:7::/64``. Raises UsageError."""
    found: dict[int, IPv4Network | IPv6Network] = {}
    for word in text.split(","):
        subnet = _network(word.strip())
        if found.setdefault(subnet.version, subnet) != subnet:
            raise UsageError(f"SUBNET: {text!r} names two IPv{subnet.version} subnets; a node has one of each family")
    ipv4, ipv6 = found.get(4), found.get(6)
    return Subnets(ipv4 if isinstance(ipv4, IPv4Network) else None, ipv6 if isinstance(ipv6, IPv6Network) else None)


def _network(text: str) -> IPv4Network | IPv6Network:
    kind = IPv6Network if ":" in text else IPv4Network
    try:
        return kind(text)
    except ValueError as error:
        hint = ""
        if "host bits" in str(error):
            hint = f"; did you mean {kind(text, strict=False)}?"
        raise UsageError(f"SUBNET: {text!r} is not a subnet such as 10.244.7.0/24{hint}") from error


def plan_reservation(config: NetworkConfig, records: RecordSet, subnets: Subnets, address: Address) -> Write:
    """How to reserve these subnets for the node at this address. Raises UsageError or LeaseError with what is in the way."""
    _must_fit(config, subnets)
    leases = _leases(records)
    key = key_of(subnets)
    same = next((record for record in records.records if record.key == key), None)
    others = [lease for each, lease in leases.items() if each != key]
    if same is not None:
        return _turned_into(same, leases.get(key), address)
    for lease in others:
        if lease.attributes.address == address:
            raise LeaseError(
                f"{address} has {lease.subnets} already; a node has one: `flanpy release {_word(lease.subnets)}` first"
            )
        taken = [network for network in (lease.subnets.ipv4, lease.subnets.ipv6) if network is not None]
        if not is_free(subnets, taken):
            raise LeaseError(f"{subnets} overlaps {lease.subnets}, which {lease.attributes.address} has")
    return Write(key, encode_attributes(_at(address)), 0)


def _at(address: Address) -> NodeAttributes:
    """The value of a reservation: nothing but where its node is."""
    return NodeAttributes(address) if isinstance(address, IPv4Address) else NodeAttributes(None, address)


def _must_fit(config: NetworkConfig, subnets: Subnets) -> None:
    if fits(config, subnets):
        return
    wanted = [f"a /{config.subnet_len} from {config.subnet_min} to {config.subnet_max}"] if config.enable_ipv4 else []
    if config.enable_ipv6:
        wanted.append(f"a /{config.ipv6_subnet_len} from {config.ipv6_subnet_min} to {config.ipv6_subnet_max}")
    raise UsageError(f"SUBNET: the network config gives no node {subnets}; right would be {' and '.join(wanted)}")


def _turned_into(record: Record, lease: Lease | None, address: Address) -> Write:
    """The very key exists: a lease of that node becomes a reservation, whatever its value says besides."""
    if lease is None:
        raise LeaseError(f"{record.key} holds something that is no lease; look at it, then `flanpy release` it")
    if lease.attributes.address != address:
        raise LeaseError(f"{lease.subnets} is taken: {lease.attributes.address} has it")
    return Write(record.key, record.value, record.mod_revision)


def _leases(records: RecordSet) -> dict[str, Lease]:
    leases = {}
    for record in records.records:
        try:
            leases[record.key] = decode_lease(record)
        except CodecError:
            continue  # refused by every node: takes nothing from anybody
    return leases


def _word(subnets: Subnets) -> str:
    return str(subnets).replace(" ", ",")


def find(records: RecordSet, subnets: Subnets) -> Record:
    """The record of these subnets. Raises LeaseError when there is none."""
    key = key_of(subnets)
    for record in records.records:
        if record.key == key:
            return record
    raise LeaseError(f"{subnets} is not leased: etcd has no {SUBNETS}{key.removeprefix(SUBNETS)}")
