"""What every watch promises: nothing missed from a revision on, and never silently dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from flanpy.errors import Compacted
from flanpy.model import Record, RecordChange
from flanpy.stores import Store, Watch
from tests.contract.conftest import World

END = "subnets/end"


def put(store: Store, key: str, value: bytes = b"v") -> Record:
    record = store.put(key, value)
    assert record is not None
    return record


def change(record: Record) -> RecordChange:
    return RecordChange(record.mod_revision, record.key, record)


def until_end(watch: Watch) -> Iterator[tuple[RecordChange, ...]]:
    """Non-empty batches up to the one with the key END."""
    for batch in watch:
        if batch:
            yield batch
        if any(item.key == END for item in batch):
            watch.cancel()


def test_a_watch_from_an_old_revision_replays_what_was_and_goes_on(store: Store) -> None:
    before = [put(store, "subnets/a", b"1"), put(store, "subnets/a", b"2"), put(store, "subnets/b")]
    store.delete("subnets/a")
    watch = store.watch("subnets/", before[1].mod_revision)
    later = threading.Timer(0.2, put, args=(store, END))
    later.start()
    seen = [item for batch in until_end(watch) for item in batch]
    later.join()

    gone = RecordChange(before[2].mod_revision + 1, "subnets/a", None)
    assert seen[:3] == [change(before[1]), change(before[2]), gone]
    assert [item.key for item in seen[3:]] == [END]


def test_a_watch_after_a_list_misses_nothing_and_repeats_nothing(store: Store) -> None:
    put(store, "subnets/a")
    listed = store.list("subnets/")
    later = [put(store, "subnets/b"), put(store, END)]

    assert [item for batch in until_end(store.watch("subnets/", listed.revision + 1)) for item in batch] == list(
        map(change, later)
    )


def test_a_watch_sees_only_its_directory(store: Store) -> None:
    start = put(store, "config").mod_revision
    put(store, "config", b"2")
    put(store, "subnetsx/a")
    end = put(store, END)

    assert list(until_end(store.watch("subnets", start))) == [(change(end),)]


def test_a_thousand_changes_at_once_arrive_in_order(store: Store) -> None:
    records = [put(store, f"subnets/{number:04}") for number in range(1000)]
    records.append(put(store, END))
    batches = list(until_end(store.watch("subnets/", records[0].mod_revision)))

    assert [item for batch in batches for item in batch] == list(map(change, records))


def test_big_values_arrive_whole(store: Store) -> None:
    records = [put(store, f"subnets/{name}", name.encode() * 1_000_000) for name in "abcdef"]
    records.append(put(store, END))

    assert [item for batch in until_end(store.watch("subnets/", records[0].mod_revision)) for item in batch] == list(
        map(change, records)
    )


def test_a_quiet_watch_gives_signs_of_life(store: Store) -> None:
    watch = store.watch("subnets/", store.list("subnets/").revision + 1)
    batches = iter(watch)

    assert [next(batches) for _ in range(3)] == [(), (), ()]
    watch.cancel()


def test_cancel_from_another_thread_ends_the_iteration_at_once(store: Store) -> None:
    watch = store.watch("subnets/", store.list("subnets/").revision + 1)
    batches = iter(watch)
    next(batches)
    cancelled_at: list[float] = []

    def cancel() -> None:
        cancelled_at.append(time.monotonic())
        watch.cancel()
        watch.cancel()

    threading.Timer(0.1, cancel).start()
    list(batches)

    assert time.monotonic() - cancelled_at[0] < 2, "not when the watch is given up for its silence"


def test_a_watch_that_was_cancelled_before_it_began_yields_nothing(store: Store) -> None:
    watch = store.watch("subnets/", 1)
    watch.cancel()

    assert list(watch) == []


def test_closing_the_store_ends_its_watches(store: Store) -> None:
    batches = iter(store.watch("subnets/", store.list("subnets/").revision + 1))
    next(batches)
    threading.Timer(0.1, store.close).start()

    assert set(batches) <= {()}


def test_a_store_that_connects_anew_ends_its_watches_and_goes_on(store: Store) -> None:
    batches = iter(store.watch("subnets/", store.list("subnets/").revision + 1))
    next(batches)
    threading.Timer(0.1, store.reconnect).start()

    assert set(batches) <= {()}
    written = put(store, "subnets/a")
    assert store.list("subnets/").records == (written,)
    watch = store.watch("subnets/", written.mod_revision)
    put(store, END)
    assert next(item for batch in until_end(watch) for item in batch) == change(written)


def test_a_compacted_revision_is_an_error_of_its_own(world: World, store: Store) -> None:
    first = put(store, "subnets/a")
    put(store, "subnets/a", b"2")
    last = put(store, "subnets/a", b"3")
    world.compact(last.mod_revision)

    with pytest.raises(Compacted, match="compacted"):
        list(store.watch("subnets/", first.mod_revision))


def test_after_a_compaction_list_and_watch_go_on(world: World, store: Store) -> None:
    put(store, "subnets/a")
    last = put(store, "subnets/a", b"2")
    world.compact(last.mod_revision)
    listed = store.list("subnets/")
    end = put(store, END)

    assert listed.records == (last,)
    assert list(until_end(store.watch("subnets/", listed.revision + 1))) == [(change(end),)]


def test_a_revision_that_the_store_has_not_reached_means_lost_history(store: Store) -> None:
    revision = store.list("subnets/").revision

    with pytest.raises(Compacted, match=f"only at {revision}"):
        list(store.watch("subnets/", revision + 100))
