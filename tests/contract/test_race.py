"""Many nodes after few subnets at once: exactly one winner each, and no litter."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from flanpy.model import Record
from flanpy.stores import Store
from tests.contract.conftest import World

CONTENDERS, KEYS = 30, 10


def contend(store: Store, name: str, start: threading.Barrier) -> dict[str, Record]:
    """Try to create every key; return what was won."""
    start.wait()
    tried = {f"subnets/{number}": store.create(f"subnets/{number}", name.encode(), 60) for number in range(KEYS)}
    return {key: record for key, record in tried.items() if record is not None}


def test_thirty_allocators_share_ten_keys_without_a_double_or_a_stray_lease(world: World) -> None:
    stores = [world.open() for _ in range(CONTENDERS)]
    start = threading.Barrier(CONTENDERS)
    with ThreadPoolExecutor(CONTENDERS) as pool:
        won = list(pool.map(lambda number: contend(stores[number], str(number), start), range(CONTENDERS)))

    winners = {key: (str(number), record) for number, share in enumerate(won) for key, record in share.items()}
    assert sum(map(len, won)) == len(winners) == KEYS
    listed = world.open().list("subnets/").records
    assert {record.key: (record.value.decode(), record) for record in listed} == winners
    assert world.leases() == {record.etcd_lease_id for record in listed}


def test_of_thirty_renewals_at_one_revision_one_wins(world: World) -> None:
    first = world.open().create("subnets/a", b"first", 60)
    assert first is not None
    stores = [world.open() for _ in range(CONTENDERS)]
    with ThreadPoolExecutor(CONTENDERS) as pool:
        tried = list(pool.map(lambda store: store.replace("subnets/a", b"new", first.mod_revision, 60), stores))

    won = [record for record in tried if record is not None]
    assert [world.open().read("subnets/a")] == won
    assert world.leases() == {won[0].etcd_lease_id}
