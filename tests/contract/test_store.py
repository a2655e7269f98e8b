"""What every lease store promises, method by method, and each of the documented errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from flanpy.errors import StoreDenied, StoreUnavailable
from flanpy.model import Record, RecordSet
from flanpy.stores import Store
from tests.contract.conftest import World

KEY = "subnets/10.5.52.0-24"

CALLS: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read(KEY),
    "list": lambda store: store.list("subnets/"),
    "put": lambda store: store.put(KEY, b"v"),
    "create": lambda store: store.create(KEY, b"v", 60),
    "replace": lambda store: store.replace(KEY, b"v", 1, 60),
    "replace a reservation": lambda store: store.replace(KEY, b"v", 1, 0),
    "attach": lambda store: store.attach(KEY, b"v", 1, 0),
    "delete": lambda store: store.delete(KEY),
    "watch": lambda store: next(iter(store.watch("subnets/", 2))),
}


def test_a_key_that_was_never_written_reads_as_none(store: Store) -> None:
    assert store.read(KEY) is None


def test_an_empty_directory_lists_nothing_at_a_revision(store: Store) -> None:
    listed = store.list("subnets/")

    assert listed.records == ()
    assert listed.revision >= 1


def test_put_writes_a_key_that_never_expires(store: Store) -> None:
    record = store.put("config", b"{}")

    assert record is not None
    assert record == Record("config", b"{}", record.mod_revision, record.mod_revision, 0)
    assert store.read("config") == record


def test_put_over_a_key_keeps_its_create_revision(store: Store) -> None:
    first = store.put("config", b"1")
    second = store.put("config", b"2")

    assert first is not None
    assert second == Record("config", b"2", first.create_revision, first.mod_revision + 1, 0)
    assert store.read("config") == second


def test_put_that_expects_no_key_loses_against_an_existing_one(store: Store) -> None:
    first = store.put("config", b"1", expected_mod_revision=0)

    assert store.put("config", b"2", expected_mod_revision=0) is None
    assert store.read("config") == first


def test_put_at_a_stale_revision_loses(store: Store) -> None:
    first = store.put("config", b"1")
    assert first is not None
    second = store.put("config", b"2", expected_mod_revision=first.mod_revision)

    assert store.put("config", b"3", expected_mod_revision=first.mod_revision) is None
    assert store.read("config") == second


def test_create_attaches_a_new_lease_of_the_asked_length(world: World, store: Store) -> None:
    record = store.create(KEY, b"v", 60)

    assert record is not None
    assert record == Record(KEY, b"v", record.mod_revision, record.mod_revision, record.etcd_lease_id)
    assert store.read(KEY) == record
    assert world.leases() == {record.etcd_lease_id}
    assert store.seconds_left(record.etcd_lease_id) in range(55, 61)


def test_create_of_a_taken_key_returns_none_and_leaves_no_lease(world: World, store: Store) -> None:
    first = store.create(KEY, b"first", 60)
    assert first is not None

    assert store.create(KEY, b"second", 60) is None
    assert store.read(KEY) == first
    assert world.leases() == {first.etcd_lease_id}


def test_replace_renews_on_a_fresh_lease_and_drops_the_old_one(world: World, store: Store) -> None:
    first = store.create(KEY, b"first", 60)
    assert first is not None
    second = store.replace(KEY, b"second", first.mod_revision, 120)
    assert second is not None

    assert second == Record(KEY, b"second", first.create_revision, first.mod_revision + 1, second.etcd_lease_id)
    assert store.read(KEY) == second
    assert world.leases() == {second.etcd_lease_id} != {first.etcd_lease_id}
    assert store.seconds_left(first.etcd_lease_id) is None
    assert store.seconds_left(second.etcd_lease_id) in range(115, 121)


def test_a_hundred_renewals_leave_one_lease(world: World, store: Store) -> None:
    record = store.create(KEY, b"v", 60)
    for _ in range(100):
        assert record is not None
        record = store.replace(KEY, b"v", record.mod_revision, 60)

    assert record is not None
    assert world.leases() == {record.etcd_lease_id}


def test_replace_at_a_stale_revision_loses_and_leaves_no_lease(world: World, store: Store) -> None:
    first = store.create(KEY, b"first", 60)
    assert first is not None
    second = world.open().replace(KEY, b"second", first.mod_revision, 60)
    assert second is not None

    assert store.replace(KEY, b"third", first.mod_revision, 60) is None
    assert store.read(KEY) == second
    assert world.leases() == {second.etcd_lease_id}


def test_replace_of_a_deleted_key_loses(world: World, store: Store) -> None:
    first = store.create(KEY, b"first", 60)
    assert first is not None
    store.delete(KEY)

    assert store.replace(KEY, b"second", first.mod_revision, 60) is None
    assert store.read(KEY) is None
    assert world.leases() == set()


def test_replace_without_a_time_to_live_keeps_a_reservation_one(world: World, store: Store) -> None:
    reserved = store.put(KEY, b"first")
    assert reserved is not None
    second = store.replace(KEY, b"second", reserved.mod_revision, 0)

    assert second == Record(KEY, b"second", reserved.create_revision, reserved.mod_revision + 1, 0)
    assert world.leases() == set()


def test_replace_without_a_time_to_live_takes_a_key_off_its_lease(world: World, store: Store) -> None:
    leased = store.create(KEY, b"first", 60)
    assert leased is not None
    reserved = store.replace(KEY, b"second", leased.mod_revision, 0)

    assert reserved is not None
    assert reserved.etcd_lease_id == 0
    assert world.leases() == set()


def test_delete_says_whether_something_was_deleted(world: World, store: Store) -> None:
    store.create(KEY, b"v", 60)

    assert store.delete(KEY) is True
    assert store.delete(KEY) is False
    assert store.read(KEY) is None
    assert world.leases() == set()


def test_delete_at_a_stale_revision_leaves_the_key(store: Store) -> None:
    first = store.put(KEY, b"1")
    assert first is not None
    second = store.put(KEY, b"2")
    assert second is not None

    assert store.delete(KEY, first.mod_revision) is False
    assert store.read(KEY) == second
    assert store.delete(KEY, second.mod_revision) is True


def test_a_lease_that_does_not_exist_has_no_seconds_left(store: Store) -> None:
    assert store.seconds_left(4711) is None


def test_an_expired_lease_takes_its_key_along(world: World, store: Store) -> None:
    record = store.create(KEY, b"v", 2)
    assert record is not None
    watch = store.watch("subnets/", record.mod_revision + 1)
    threading.Timer(0.1, world.let_pass, args=(3,)).start()
    change = next(change for batch in watch for change in batch)
    watch.cancel()

    assert (change.key, change.record) == (KEY, None)
    assert change.revision > record.mod_revision
    assert store.read(KEY) is None
    assert store.seconds_left(record.etcd_lease_id) is None


def test_a_listing_names_the_cluster_that_has_answered(world: World) -> None:
    one, other = world.open(), world.open()
    named = one.list("subnets/").cluster
    assert named != 0
    assert other.list("").cluster == named


def test_list_holds_what_is_below_the_directory_and_nothing_else(store: Store) -> None:
    inside = [store.put(f"subnets/{name}", name.encode()) for name in ("a", "b", "c")]
    store.put("config", b"{}")
    last = store.put("subnetsx", b"a neighbour of the directory")

    assert last is not None
    listed = store.list("subnets/")
    assert listed == RecordSet(last.mod_revision, tuple(record for record in inside if record), listed.cluster)
    assert store.list("subnets") == store.list("subnets/")
    assert [record.key for record in store.list("").records] == ["config", *(f"subnets/{name}" for name in "abc"), "subnetsx"]


def test_a_long_list_is_one_revision_while_others_write(world: World, store: Store) -> None:
    before = tuple(record for number in range(2000) if (record := store.put(f"subnets/{number:04}", b"before")))
    stop, other = threading.Event(), world.open()
    writer = threading.Thread(target=_keep_writing, args=(other, stop))
    writer.start()
    try:
        listed = store.list("subnets/")
    finally:
        stop.set()
        writer.join()

    assert [record.key for record in listed.records] == [record.key for record in before]
    assert all(record.mod_revision <= listed.revision for record in listed.records)
    changed = max((record.mod_revision for record in listed.records if record.value == b"after"), default=before[-1].mod_revision)
    assert changed == listed.revision


def _keep_writing(store: Store, stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        store.put(f"subnets/{number % 2000:04}", b"after")
        number += 1


def test_values_of_a_megabyte_are_read_and_listed_whole(store: Store) -> None:
    big = bytes(range(256)) * 4096
    records = tuple(record for name in "abcdefgh" if (record := store.put(f"big/{name}", big)))

    assert store.read("big/a") == replace(records[0], value=big)
    assert store.list("big/").records == records


def test_two_clients_see_each_others_writes_at_once(world: World, store: Store) -> None:
    other = world.open()
    record = store.put(KEY, b"v")

    assert other.read(KEY) == record
    assert other.list("subnets/") == store.list("subnets/")


@pytest.mark.parametrize("call", CALLS)
def test_every_method_says_that_the_server_is_not_there(world: World, call: str) -> None:
    with pytest.raises(StoreUnavailable):
        CALLS[call](world.open_unreachable())


@pytest.mark.parametrize("call", CALLS)
def test_every_method_says_that_we_are_not_allowed(world: World, call: str) -> None:
    with pytest.raises(StoreDenied):
        CALLS[call](world.open_denied())


@pytest.mark.parametrize("call", [call for call in CALLS if call != "watch"])
def test_a_closed_store_takes_no_calls(store: Store, call: str) -> None:
    store.read(KEY)
    store.close()
    store.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        CALLS[call](store)


# ------------------------------------------------------------------------------------------------ one lease for several keys


def test_attach_hangs_a_key_on_a_lease_that_is_there(world: World, store: Store) -> None:
    lease = store.create(KEY, b"v", 60)
    assert lease is not None
    pod = store.attach("pods/10.5.52.7", b"p", lease.etcd_lease_id, 0)

    assert pod is not None
    assert pod == Record("pods/10.5.52.7", b"p", pod.mod_revision, pod.mod_revision, lease.etcd_lease_id)
    assert store.read("pods/10.5.52.7") == pod
    assert world.leases() == {lease.etcd_lease_id}


def test_attach_loses_a_race_and_leaves_the_key_alone(store: Store) -> None:
    lease = store.create(KEY, b"v", 60)
    assert lease is not None
    first = store.attach("pods/10.5.52.7", b"1", lease.etcd_lease_id, 0)

    assert store.attach("pods/10.5.52.7", b"2", lease.etcd_lease_id, 0) is None
    assert store.read("pods/10.5.52.7") == first


def test_attach_to_a_lease_that_is_gone_fails_and_writes_nothing(store: Store) -> None:
    with pytest.raises(StoreUnavailable):
        store.attach("pods/10.5.52.7", b"1", 12345, 0)
    assert store.read("pods/10.5.52.7") is None


def test_a_lease_that_others_hang_on_outlives_a_renewal_until_they_have_moved(world: World, store: Store) -> None:
    lease = store.create(KEY, b"v", 60)
    assert lease is not None
    pod = store.attach("pods/10.5.52.7", b"p", lease.etcd_lease_id, 0)
    renewed = store.replace(KEY, b"v", lease.mod_revision, 60)
    assert pod is not None
    assert renewed is not None
    assert store.read("pods/10.5.52.7") == pod
    assert world.leases() == {lease.etcd_lease_id, renewed.etcd_lease_id}

    moved = store.attach("pods/10.5.52.7", b"p", renewed.etcd_lease_id, pod.mod_revision)
    assert moved is not None
    assert moved.create_revision == pod.create_revision
    assert world.leases() == {renewed.etcd_lease_id}
