"""A lease store in memory that passes the same contract tests as the one on etcd; for tests and trials in one process.

``MemoryServer`` stands for the cluster: revisions, history, leases, faults. Any number of ``MemoryStore`` share one, as nodes share
an etcd. It models what the Store protocol shows of etcd and nothing else. Leases run on the clock that is passed in: a
test moves its own clock and calls ``tick``.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from flanpy.errors import Compacted, StoreDenied, StoreError, StoreUnavailable
from flanpy.model import Record, RecordChange, RecordSet


@dataclass(frozen=True, slots=True)
class _Write:
    """A write as the server takes it: only at ``expected_mod_revision`` (None: in any case), on a new or on a given lease."""

    key: str
    value: bytes
    expected_mod_revision: int | None
    ttl_s: int = 0
    etcd_lease_id: int = 0


class MemoryServer:
    """The shared state behind the stores; every method is safe from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.cluster = 1
        self.changed = threading.Condition(threading.RLock())
        self._revision = 1
        self._compacted = 0
        self._records: dict[str, Record] = {}
        self._history: list[RecordChange] = []
        self._expiries: dict[int, float] = {}
        self._lease_ids = itertools.count(1)
        self._fault: StoreError | None = None

    # -------------------------------------------------------------------------------------------- switches for tests

    def set_unavailable(self, unavailable: bool = True) -> None:
        """Let every call and every watch fail as if etcd were gone, or let them work again."""
        self._set_fault(StoreUnavailable("memory store: switched to unavailable") if unavailable else None)

    def set_denied(self, denied: bool = True) -> None:
        """Let every call and every watch fail as if etcd had taken our permission away, or let them work again."""
        self._set_fault(StoreDenied("memory store: switched to denied") if denied else None)

    def compact(self) -> None:
        """Forget the history: only changes from the current revision on can be watched."""
        with self.changed:
            self._compacted = self._revision
            self._history = [change for change in self._history if change.revision >= self._revision]
            self.changed.notify_all()

    def wipe(self) -> None:
        """Lose everything, as an etcd whose data directory was deleted; running watches fail."""
        with self.changed:
            self._revision, self._compacted = 1, 0
            self._records, self._history, self._expiries = {}, [], {}
            self.changed.notify_all()

    def backup(self) -> tuple[int, dict[str, Record]]:
        """What ``restore`` takes: the revision and the records of this moment."""
        with self.changed:
            return self._revision, dict(self._records)

    def restore(self, backup: tuple[int, dict[str, Record]], ttl_s: float) -> None:
        """Become what it was at a backup, as an etcd restored from one: its leases begin again with ``ttl_s``, history is gone."""
        with self.changed:
            self._revision, records = backup
            self._compacted, self._records, self._history = self._revision, dict(records), []
            self._expiries = {each.etcd_lease_id: self.clock() + ttl_s for each in records.values() if each.etcd_lease_id}
            self.changed.notify_all()

    def tick(self) -> None:
        """Expire what the clock says is over and wake the watches; needed only after moving a clock of one's own."""
        with self.changed:
            self._expire()
            self.changed.notify_all()

    def leases(self) -> tuple[int, ...]:
        """The ids of all living etcd leases, for tests that count them."""
        with self.changed:
            self._expire()
            return tuple(self._expiries)

    # -------------------------------------------------------------------------------------------- what stores call

    def check(self) -> None:
        """Raise the fault that is switched on, and expire leases; first step of each operation, with the lock held."""
        if self._fault is not None:
            raise type(self._fault)(*self._fault.args)
        self._expire()

    def select(self, prefix: str) -> RecordSet:
        """All records whose key starts with ``prefix``, by key."""
        with self.changed:
            self.check()
            keys = sorted(key for key in self._records if key.startswith(prefix))
            return RecordSet(self._revision, tuple(self._records[key] for key in keys), self.cluster)

    def get(self, key: str) -> Record | None:
        """One record or None."""
        with self.changed:
            self.check()
            return self._records.get(key)

    def write(self, write: _Write) -> Record | None:
        """Do a write; None when its expectation does not hold."""
        with self.changed:
            self.check()
            old = self._records.get(write.key)
            if not _holds(old, write.expected_mod_revision):
                return None
            if write.etcd_lease_id and write.etcd_lease_id not in self._expiries:
                raise StoreUnavailable(f"memory store: writing {write.key}: there is no etcd lease {write.etcd_lease_id}")
            lease_id = self._grant(write.ttl_s) if write.ttl_s else write.etcd_lease_id
            self._revision += 1
            created = old.create_revision if old else self._revision
            record = Record(write.key, write.value, created, self._revision, lease_id)
            self._records[write.key] = record
            self._note(RecordChange(self._revision, write.key, record))
            self._drop_lease_of(old)
            return record

    def delete(self, key: str, expected_mod_revision: int | None) -> bool:
        """Delete one key; False when there is none or the expectation does not hold."""
        with self.changed:
            self.check()
            old = self._records.get(key)
            if old is None or not _holds(old, expected_mod_revision):
                return False
            self._remove([key])
            self._drop_lease_of(old)
            return True

    def seconds_left(self, lease_id: int) -> int | None:
        """Whole seconds until a lease expires; None when it is gone."""
        with self.changed:
            self.check()
            expiry = self._expiries.get(lease_id)
            return None if expiry is None else int(expiry - self.clock())

    def changes_from(self, prefix: str, revision: int) -> tuple[tuple[RecordChange, ...], int]:
        """The changes below ``prefix`` from ``revision`` on, and the revision to ask for next; with the lock held."""
        self.check()
        if revision < self._compacted:
            raise Compacted(f"memory store: revision {revision} is gone, compacted up to {self._compacted}")
        if revision > self._revision + 1:
            raise Compacted(f"memory store: revision {revision} asked for, but the store is only at {self._revision}")
        changes = (change for change in self._history if change.revision >= revision and change.key.startswith(prefix))
        return tuple(changes), self._revision + 1

    def seconds_to_next_expiry(self) -> float:
        """How long a watch may sleep before a lease has expired; with the lock held."""
        return max(0.0, min(self._expiries.values(), default=float("inf")) - self.clock())

    # -------------------------------------------------------------------------------------------- inside the lock

    def _set_fault(self, fault: StoreError | None) -> None:
        with self.changed:
            self._fault = fault
            self.changed.notify_all()

    def _grant(self, ttl_s: int) -> int:
        lease_id = next(self._lease_ids)
        self._expiries[lease_id] = self.clock() + ttl_s
        return lease_id

    def _drop_lease_of(self, old: Record | None) -> None:
        if old is not None and all(record.etcd_lease_id != old.etcd_lease_id for record in self._records.values()):
            self._expiries.pop(old.etcd_lease_id, None)

    def _expire(self) -> None:
        """Delete the keys of leases that are over; those of one lease at one revision, as etcd does."""
        now = self.clock()
        for lease_id in [lease_id for lease_id, expiry in self._expiries.items() if expiry <= now]:
            del self._expiries[lease_id]
            keys = sorted(key for key, record in self._records.items() if record.etcd_lease_id == lease_id)
            if keys:
                self._remove(keys)

    def _remove(self, keys: list[str]) -> None:
        self._revision += 1
        for key in keys:
            del self._records[key]
            self._note(RecordChange(self._revision, key, None))

    def _note(self, change: RecordChange) -> None:
        self._history.append(change)
        self.changed.notify_all()


class MemoryStore:
    """``flanpy.stores.Store`` on a MemoryServer (a new one, if none is given)."""

    def __init__(self, server: MemoryServer | None = None, *, progress_s: float = 3.0) -> None:
        self.server = server or MemoryServer()
        self._progress_s = progress_s
        self._watches: weakref.WeakSet[MemoryWatch] = weakref.WeakSet()
        self._closed = False

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def read(self, key: str) -> Record | None:
        """The record of one key, or None."""
        return self._open_server().get(key)

    def list(self, directory: str) -> RecordSet:
        """All records below ``directory``, consistent at one revision."""
        return self._open_server().select(_as_prefix(directory))

    def put(self, key: str, value: bytes, *, expected_mod_revision: int | None = None) -> Record | None:
        """Write a key that never expires; with ``expected_mod_revision`` (0: must not exist) a lost race returns None."""
        return self._open_server().write(_Write(key, value, expected_mod_revision))

    def create(self, key: str, value: bytes, ttl_s: int) -> Record | None:
        """Write a key that does not exist yet, on a new lease; None when somebody was faster."""
        return self._open_server().write(_Write(key, value, 0, ttl_s))

    def replace(self, key: str, value: bytes, expected_mod_revision: int, ttl_s: int) -> Record | None:
        """Write a key only if nobody has since ``expected_mod_revision``, on a fresh lease (``ttl_s`` 0: on none)."""
        return self._open_server().write(_Write(key, value, expected_mod_revision, ttl_s))

    def attach(self, key: str, value: bytes, etcd_lease_id: int, expected_mod_revision: int) -> Record | None:
        """Write a key only at that revision, on a lease that is there already; None when the race was lost."""
        return self._open_server().write(_Write(key, value, expected_mod_revision, etcd_lease_id=etcd_lease_id))

    def delete(self, key: str, expected_mod_revision: int | None = None) -> bool:
        """Delete a key (only at that revision, if given); whether something was deleted."""
        return self._open_server().delete(key, expected_mod_revision)

    def seconds_left(self, etcd_lease_id: int) -> int | None:
        """Remaining time to live of a lease, seconds; None when it is gone."""
        return self._open_server().seconds_left(etcd_lease_id)

    def watch(self, directory: str, from_revision: int) -> MemoryWatch:
        """Watch everything below ``directory`` from ``from_revision`` on (inclusive)."""
        watch = MemoryWatch(self._open_server(), _as_prefix(directory), from_revision, self._progress_s)
        self._watches.add(watch)
        return watch

    def reconnect(self) -> None:
        """Running watches end."""
        for watch in tuple(self._watches):
            watch.cancel()

    def close(self) -> None:
        """Take no more calls; running watches end."""
        self._closed = True
        for watch in tuple(self._watches):
            watch.cancel()

    def _open_server(self) -> MemoryServer:
        if self._closed:
            raise StoreUnavailable("memory store: the store is closed")
        return self.server


class MemoryWatch:
    """``flanpy.stores.Watch`` on a MemoryServer; iterate once, from one thread."""

    def __init__(self, server: MemoryServer, prefix: str, from_revision: int, progress_s: float) -> None:
        self._server = server
        self._prefix = prefix
        self._next_revision = from_revision
        self._progress_s = progress_s
        self._cancelled = False

    def __iter__(self) -> Iterator[tuple[RecordChange, ...]]:
        quiet_s = 0.0  # the first batch comes at once: what has happened already, or a sign that the watch stands
        while not self._cancelled:
            batch = self._next_batch(quiet_s)
            if not self._cancelled:
                yield batch
            quiet_s = self._progress_s

    def cancel(self) -> None:
        """End the iteration soon; safe to call twice and from any thread."""
        with self._server.changed:
            self._cancelled = True
            self._server.changed.notify_all()

    def _next_batch(self, quiet_s: float) -> tuple[RecordChange, ...]:
        """All that has happened since the last batch; empty when nothing did for ``quiet_s``."""
        deadline = time.monotonic() + quiet_s
        with self._server.changed:
            while not self._cancelled:
                changes, self._next_revision = self._server.changes_from(self._prefix, self._next_revision)
                left_s = deadline - time.monotonic()
                if changes or left_s <= 0:
                    return changes
                self._server.changed.wait(min(left_s, max(0.01, self._server.seconds_to_next_expiry())))
        return ()


def _holds(record: Record | None, expected_mod_revision: int | None) -> bool:
    return expected_mod_revision is None or expected_mod_revision == (record.mod_revision if record else 0)


def _as_prefix(directory: str) -> str:
    return directory if directory.endswith("/") or not directory else f"{directory}/"
