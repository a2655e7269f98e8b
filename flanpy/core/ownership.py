"""Whose lease is it? Sorts the records of a listing by what they are to this node; no I/O, no decisions.

    own         our node id and an address that this node has or had
    twins       our node id and another address: this machine under an earlier address, or a clone of it
    inherited   no node id and our address: flanneld on this machine before us, or an operator's reservation
    taken       the ranges of every key, also of those whose values do not parse: somebody may live there

A lease with another node id is never ours, whatever its address says: two nodes can be behind one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from flanpy.core.codec import decode_lease, subnets_of
from flanpy.errors import CodecError
from flanpy.model import Address, Lease, Record, Subnets


@dataclass(frozen=True, slots=True)
class Survey:
    """A listing sorted; each tuple of leases has reservations first, then the preferred subnet, then the oldest."""

    own: tuple[Lease, ...]
    twins: tuple[Lease, ...]
    inherited: tuple[Lease, ...]
    taken: tuple[IPv4Network | IPv6Network, ...]


def is_own(lease: Lease, node_id: str, addresses: Collection[Address]) -> bool:
    """Whether a lease names this node, by id and address."""
    info = lease.attributes.flanpy
    return info is not None and info.node == node_id and lease.attributes.address in addresses


def is_twin(lease: Lease, node_id: str, addresses: Collection[Address]) -> bool:
    """Whether a lease has our node id and an address that we never had."""
    info = lease.attributes.flanpy
    return info is not None and info.node == node_id and lease.attributes.address not in addresses


def is_inherited(lease: Lease, address: Address) -> bool:
    """Whether a lease is that of a node without an id at our address."""
    return lease.attributes.flanpy is None and lease.attributes.address == address


def survey(
    records: Iterable[Record], node_id: str, address: Address, addresses: Collection[Address], preferred: Subnets | None
) -> Survey:
    """Sort a listing. Only values that contain our id or address are decoded, so 65,536 foreign leases cost little."""
    words = (node_id.encode(), str(address).encode())
    taken: list[IPv4Network | IPv6Network] = []
    leases: list[Lease] = []
    for record in records:
        try:
            subnets = subnets_of(record.key)
            taken += [subnet for subnet in (subnets.ipv4, subnets.ipv6) if subnet is not None]
            if any(word in record.value for word in words):
                leases.append(decode_lease(record))
        except CodecError:
            continue  # membership reports it; the range, if there is one, stays taken
    leases.sort(key=lambda lease: (not lease.is_reservation, lease.subnets != preferred, lease.create_revision))
    return Survey(
        own=tuple(lease for lease in leases if is_own(lease, node_id, addresses)),
        twins=tuple(lease for lease in leases if is_twin(lease, node_id, addresses)),
        inherited=tuple(lease for lease in leases if is_inherited(lease, address)),
        taken=tuple(taken),
    )
