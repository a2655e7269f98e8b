"""Leases that vanish: which are kept, for how long, and what ends that. Time is passed in."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from flanpy.core.codec import decode_lease, encode_attributes, key_of
from flanpy.core.grace import Grace, Kept, after_changes, after_listing, current, deadline
from flanpy.core.membership import Membership, apply, from_records, view
from flanpy.model import FlanpyInfo, KeptLease, NodeAttributes, Record, RecordChange, RecordSet, Subnets
from tests.support.networks import network

BOTH = Grace(peer_s=30, loss_s=300)
NONE: Kept = {}


def record(third: int, created: int, node: str | None = "", features: frozenset[str] = frozenset()) -> Record:
    """10.5.THIRD.0/24 of the node at 192.0.2.THIRD; node None: a flanneld's."""
    info = None if node is None else FlanpyInfo(node or f"node-{third}", features)
    value = encode_attributes(NodeAttributes(IPv4Address(f"192.0.2.{third}"), flanpy=info))
    return Record(key_of(Subnets(IPv4Network(f"10.5.{third}.0/24"))), value, created, created, 77)


OWN, TWO, THREE, FOUR = (record(third, third) for third in (1, 2, 3, 4))
ALL = (OWN, TWO, THREE, FOUR)


def members(*records: Record, revision: int = 20, cluster: int = 7) -> Membership:
    return from_records(RecordSet(revision, records, cluster))


def gone(item: Record, revision: int) -> RecordChange:
    return RecordChange(revision, item.key, None)


def kept(item: Record, until_s: float, cause: str = "expired", since: int = 20) -> dict[str, KeptLease]:
    return {item.key: KeptLease(decode_lease(item), until_s, cause, since)}  # type: ignore[arg-type]


def by_changes(*changes: RecordChange, grace: Grace = BOTH) -> Kept:
    before = members(*ALL)
    return after_changes(NONE, before, apply(before, changes), changes, grace, 100.0)


def by_listing(now: Membership, before: Membership | None = None, grace: Grace = BOTH) -> Kept:
    return after_listing(NONE, before or members(*ALL), now, OWN.key, grace, 100.0)


# ------------------------------------------------------------------------------------------------ what is kept


def test_a_lease_that_expires_is_kept_for_the_peers_grace() -> None:
    assert by_changes(gone(TWO, 21)) == kept(TWO, 130.0, since=21)


def test_without_a_peers_grace_it_goes_at_once() -> None:
    assert by_changes(gone(TWO, 21), grace=Grace(0, 300)) == NONE


def test_a_node_that_says_that_it_leaves_goes_at_once() -> None:
    goodbye = replace(record(2, 21, features=frozenset({"leaving"})), create_revision=2)
    assert by_changes(RecordChange(21, goodbye.key, goodbye), gone(TWO, 22)) == NONE, "both in one batch"
    heard = members(OWN, goodbye, THREE, FOUR, revision=21)
    assert after_changes(NONE, heard, apply(heard, [gone(TWO, 22)]), [gone(TWO, 22)], BOTH, 100.0) == NONE
    assert after_listing(NONE, heard, members(OWN, THREE, FOUR, revision=22), OWN.key, BOTH, 100.0) == NONE


def test_a_change_that_is_known_already_keeps_nothing() -> None:
    before = members(OWN, THREE, FOUR)
    old = [gone(TWO, 19)]
    assert after_changes(NONE, before, apply(before, old), old, BOTH, 100.0) == NONE


def test_leases_that_one_write_deletes_are_a_loss() -> None:
    """``etcdctl del --prefix``: a lease expires alone, and a node deletes its own."""
    changes = tuple(gone(item, 21) for item in ALL)
    assert by_changes(*changes) == {key: value for item in ALL for key, value in kept(item, 400.0, "lost", 21).items()}
    apart = tuple(gone(item, 21 + number) for number, item in enumerate(ALL))
    assert {lease.cause for lease in by_changes(*apart).values()} == {"expired"}


@pytest.mark.parametrize(
    "now",
    [
        members(revision=1),
        members(OWN, revision=6),
        members(OWN, TWO, THREE, revision=90, cluster=8),
        members(OWN, TWO, THREE, revision=6),
        members(replace(OWN, mod_revision=0), TWO, THREE, revision=90),
        members(revision=90),
        members(OWN, TWO, revision=90),
        members(TWO, FOUR, revision=90),
    ],
    ids=[
        "wiped",
        "wiped, and we are registered again",
        "another cluster",
        "restored from a backup",
        "a key is older than it was",
        "all gone",
        "half of them gone",
        "our own and another gone",
    ],
)
def test_a_listing_that_shows_a_loss_keeps_what_it_lacks(now: Membership) -> None:
    missing = {item.key for item in ALL} - set(now.leases)
    assert missing
    found = by_listing(now)
    seen_as = {key: (lease.until_s, lease.cause, lease.since_revision) for key, lease in found.items()}
    assert seen_as == dict.fromkeys(missing, (400.0, "lost", now.revision))


@pytest.mark.parametrize(
    "now", [members(OWN, TWO, THREE, revision=90), members(TWO, THREE, FOUR, revision=90), members(*ALL, revision=90, cluster=0)]
)
def test_a_listing_that_lacks_one_lease_is_no_loss(now: Membership) -> None:
    """After a compaction a deletion is seen by a listing alone: that is none of etcd's losing its data."""
    assert {lease.cause for lease in by_listing(now).values()} <= {"expired"}
    assert by_listing(now, grace=Grace(0, 300)) == NONE


def test_before_the_first_listing_nothing_can_be_missed() -> None:
    assert after_listing(NONE, None, members(OWN), OWN.key, BOTH, 100.0) == NONE


def test_the_longer_of_the_two_times_counts_for_a_loss() -> None:
    assert {lease.until_s for lease in by_listing(members(revision=1), grace=Grace(900, 300)).values()} == {1000.0}


# ------------------------------------------------------------------------------------------------ what ends it


def test_it_ends_with_its_time() -> None:
    both = {**kept(TWO, 130.0), **kept(THREE, 150.0)}
    assert deadline(both) == 130.0 and deadline(NONE) is None
    assert current(both, members(OWN), 129.9) is both
    assert current(both, members(OWN), 130.0) == kept(THREE, 150.0)


def test_it_ends_when_the_key_is_a_lease_again() -> None:
    assert current(kept(TWO, 400.0), members(OWN, record(2, 21, node="heir")), 101.0) == NONE


@pytest.mark.parametrize("node", ["", None], ids=["flanpy", "flanneld"])
def test_it_ends_when_its_node_has_registered_another_subnet_since(node: str | None) -> None:
    lost, elsewhere = record(2, 2, node), replace(record(2, 21, node), key="subnets/10.5.9.0-24")
    assert current(kept(lost, 400.0), members(OWN, elsewhere), 101.0) == NONE


def test_an_older_lease_of_the_node_that_a_backup_brings_back_does_not_end_it() -> None:
    old = replace(record(2, 3), key="subnets/10.5.9.0-24")
    assert current(kept(TWO, 400.0), members(OWN, old), 101.0) == kept(TWO, 400.0)


def test_what_is_kept_stays_kept_while_others_come_and_go() -> None:
    before = members(OWN, THREE)
    changes = [gone(THREE, 21)]
    found = after_changes(kept(TWO, 400.0, "lost"), before, apply(before, changes), changes, BOTH, 100.0)
    assert found == {**kept(TWO, 400.0, "lost"), **kept(THREE, 130.0, since=21)}
    assert after_listing(found, before, members(OWN, THREE, revision=30), OWN.key, BOTH, 110.0) == kept(TWO, 400.0, "lost")


# ------------------------------------------------------------------------------------------------ who is sent to


def seen(now: Membership, kept_leases: Kept) -> list[tuple[str, bool]]:
    own = Subnets(IPv4Network("10.5.1.0/24"))
    return [
        (str(peer.subnets), peer.kept is not None) for peer in view(now, network("10.5.0.0/16"), own, "udp", kept_leases).peers
    ]


def test_a_kept_peer_is_the_peer_that_it_was() -> None:
    config, own = network("10.5.0.0/16"), Subnets(IPv4Network("10.5.1.0/24"))
    before = view(members(OWN, TWO, THREE), config, own, "udp")
    after = view(members(OWN, THREE), config, own, "udp", kept(TWO, 400.0))
    assert after == before, "the same plan: nothing is published anew"
    assert seen(members(OWN, THREE), kept(TWO, 400.0)) == [("10.5.2.0/24", True), ("10.5.3.0/24", False)]


def test_our_own_lease_is_never_kept_as_a_peer() -> None:
    assert seen(members(TWO), kept(OWN, 400.0)) == [("10.5.2.0/24", False)]


def test_a_living_lease_stands_though_a_kept_one_was_there_first() -> None:
    wide = replace(record(9, 99), key="subnets/10.5.2.0-23")
    assert seen(members(OWN, wide), {**kept(TWO, 400.0), **kept(THREE, 400.0)}) == [("10.5.2.0/23", False)]


def test_a_kept_lease_of_another_backend_stays_unused() -> None:
    value = encode_attributes(NodeAttributes(IPv4Address("192.0.2.5"), backend_type="vxlan"))
    assert seen(members(OWN), kept(replace(record(5, 5), value=value), 400.0)) == []
