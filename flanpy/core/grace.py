"""Leases that have vanished from the store and are kept for a while: which, for how long, and what ends that; no I/O, no clock.

    membership before, membership now --after_listing, after_changes--> Kept --current(now_s)--> Kept --> view

etcd deletes the key of a node that has died as it deletes that of one that has left, so a node that leaves says so first: it writes
its lease with the feature LEAVING, and then deletes it. What vanishes without that word is kept:

    expired, or deleted by hand     for ``Grace.peer_s``
    lost with the store's data      for ``Grace.loss_s``: the nodes are there and register again, each in its own time

**The store has lost data** when its history goes backwards (a revision lower than one that we know, of the store or of a key), when
it is another cluster, when several leases are deleted at one revision (a lease expires alone, and a node deletes its own), or when a
listing lacks our own lease and another's, or half of all leases.

A kept lease ends with its time, when its key is a lease again, and when its node has registered another subnet since. It never stands
in the way of a living lease: ``membership.view`` gives it what the others leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flanpy.core.codec import decode_lease
from flanpy.core.lease_moves import LEAVING
from flanpy.core.membership import Membership
from flanpy.errors import CodecError
from flanpy.model import KeptLease, Lease, RecordChange

Kept = Mapping[str, KeptLease]
"""Key to lease; never changed once made."""


@dataclass(frozen=True, slots=True)
class Grace:
    """How long a lease that has vanished is kept, seconds; 0: not at all."""

    peer_s: float = 0.0
    loss_s: float = 0.0


def after_listing(
    kept: Kept, before: Membership | None, now: Membership, own_key: str | None, grace: Grace, now_s: float
) -> Kept:
    """What is kept after a listing: also what it lacks of the leases that were known ``before``."""
    vanished = {} if before is None else {key: lease for key, lease in before.leases.items() if key not in now.leases}
    lost = before is not None and has_lost_data(before, now, vanished, own_key)
    return _with(kept, vanished, lost, now, grace, now_s)


def after_changes(
    kept: Kept, before: Membership, now: Membership, changes: Sequence[RecordChange], grace: Grace, now_s: float
) -> Kept:
    """What is kept after changes that a watch saw: also the leases that they have deleted."""
    fresh = [change for change in changes if change.revision > before.revision]
    deletions = Counter(change.revision for change in fresh if change.record is None)
    for change in fresh:
        if change.record is None and change.key not in now.leases:
            lease = _last_word(change, fresh) or before.leases.get(change.key)
            vanished = {} if lease is None else {change.key: lease}
            kept = _with(kept, vanished, deletions[change.revision] > 1, now, grace, now_s)
    return current(kept, now, now_s)


def current(kept: Kept, now: Membership, now_s: float) -> Kept:
    """What is left of it at this time, beside the living leases; the very same mapping when that is all of it."""
    if not kept:
        return kept
    holders = _newest_by_node(now.leases.values())
    left = {
        key: lease
        for key, lease in kept.items()
        if now_s < lease.until_s and key not in now.leases and not _registered_again(lease, holders)
    }
    return kept if len(left) == len(kept) else left


def deadline(kept: Kept) -> float | None:
    """When the next of them ends; None: nothing is kept."""
    return min((lease.until_s for lease in kept.values()), default=None)


def has_lost_data(before: Membership, now: Membership, vanished: Mapping[str, Lease], own_key: str | None) -> bool:
    """Whether the store has forgotten something between two listings, as far as can be seen."""
    another_cluster = before.cluster != now.cluster and 0 not in (before.cluster, now.cluster)
    if another_cluster or now.revision < before.revision:
        return True
    known = ((before.leases[key], lease) for key, lease in now.leases.items() if key in before.leases)
    if any(lease.mod_revision < old.mod_revision for old, lease in known):
        return True
    return len(vanished) > 1 and (own_key in vanished or 2 * len(vanished) >= len(before.leases))


def _with(kept: Kept, vanished: Mapping[str, Lease], lost: bool, now: Membership, grace: Grace, now_s: float) -> Kept:
    cause: Literal["lost", "expired"] = "lost" if lost else "expired"
    hold_s = max(grace.peer_s, grace.loss_s) if lost else grace.peer_s
    more = {
        key: KeptLease(lease, now_s + hold_s, cause, now.revision)
        for key, lease in vanished.items()
        if hold_s > 0 and not _is_leaving(lease)
    }
    return current({**kept, **more}, now, now_s)


def _is_leaving(lease: Lease) -> bool:
    info = lease.attributes.flanpy
    return info is not None and LEAVING in info.features


def _last_word(deletion: RecordChange, changes: Iterable[RecordChange]) -> Lease | None:
    """What the same changes last said of a key before they deleted it."""
    said: Lease | None = None
    for change in changes:
        if change.key == deletion.key and change.record is not None and change.revision < deletion.revision:
            try:
                said = decode_lease(change.record)
            except CodecError:
                continue  # the last good word counts
    return said


def _newest_by_node(leases: Iterable[Lease]) -> dict[object, int]:
    """Node id, and address of a node without one -> the create revision of its newest lease."""
    newest: dict[object, int] = {}
    for lease in leases:
        node = _node(lease)
        newest[node] = max(newest.get(node, 0), lease.create_revision)
    return newest


def _node(lease: Lease) -> object:
    info = lease.attributes.flanpy
    return info.node if info is not None and info.node else lease.attributes.address


def _registered_again(kept: KeptLease, newest: Mapping[object, int]) -> bool:
    """Whether the node has a lease that it has made since; what an old backup has brought back does not count."""
    return newest.get(_node(kept.lease), 0) > kept.since_revision
