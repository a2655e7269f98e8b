"""The thread that does what the loop wants of the store: reading the network config and the effects of leasing, one after the other.

The loop never waits for etcd; what became of a job comes back on the queue. Holds no state but its own queue of jobs.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from queue import SimpleQueue

from flanpy.agent.events import ConfigRead, EventQueue, LeaseOutcome, PodOutcome, StoreFailed
from flanpy.core import leasing
from flanpy.core.lease_events import StoreEffect
from flanpy.core.pod_claims import DeletePod, PodEffect, WritePod
from flanpy.errors import StoreDenied, StoreError
from flanpy.model import LEASE_TTL_S, Record
from flanpy.stores import Store

CONFIG = "config"
SUBNETS = "subnets/"


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Read the network config anew."""


Job = ReadConfig | StoreEffect | PodEffect


class Executor:
    """Runs jobs from ``start`` to ``close``."""

    def __init__(self, store: Store, events: EventQueue) -> None:
        self._store = store
        self._events = events
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)

    def start(self) -> None:
        """Begin with the first job that comes."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue one job; its outcome arrives as an event."""
        self._jobs.put(job)

    def reconnect(self) -> None:
        """Let the store take new connections, for the underlay is another; does not wait for what is under way."""
        self._store.reconnect()

    def close(self) -> None:
        """Finish what is under way; waits for a bounded time."""
        self._jobs.put(None)
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._events.put(self._do(job))
            except (StoreError, RuntimeError, OSError) as error:  # the latter: out of threads or descriptors
                self._failed(job, error)

    def _do(self, job: Job) -> ConfigRead | LeaseOutcome | PodOutcome:
        store = self._store
        match job:
            case ReadConfig():
                record = store.read(CONFIG)
                return ConfigRead(record.value if record else None)
            case leasing.List():
                return LeaseOutcome(leasing.Listed(store.list(SUBNETS)))
            case leasing.Create(key, value, ttl_s):
                return LeaseOutcome(leasing.Created(store.create(key, value, ttl_s)))
            case leasing.Replace(key, value, expected, ttl_s):
                return LeaseOutcome(leasing.Replaced(store.replace(key, value, expected, ttl_s)))
            case leasing.Delete(key, expected):
                return LeaseOutcome(leasing.Deleted(store.delete(key, expected)))
            case WritePod() | DeletePod():
                return _pod_outcome(store, job)

    def _failed(self, job: Job, error: Exception) -> None:
        denied = isinstance(error, StoreDenied)
        if isinstance(job, ReadConfig):
            self._events.put(StoreFailed(str(error), denied))
        elif isinstance(job, WritePod | DeletePod):
            self._events.put(PodOutcome(job, problem=str(error)))
        else:
            self._events.put(LeaseOutcome(leasing.Failed(str(error), denied)))


def _pod_outcome(store: Store, job: PodEffect) -> PodOutcome:
    if isinstance(job, DeletePod):
        return PodOutcome(job, None, store.delete(job.key, job.expected_mod_revision))
    record = _write_pod(store, job)
    return PodOutcome(job, record, record is not None)


def _write_pod(store: Store, job: WritePod) -> Record | None:
    """Bound to the etcd lease of our subnet; to one of its own where the subnet is a reservation, which has none."""
    if job.etcd_lease_id:
        return store.attach(job.key, job.value, job.etcd_lease_id, job.expected_mod_revision)
    if job.expected_mod_revision:
        return store.replace(job.key, job.value, job.expected_mod_revision, LEASE_TTL_S)
    return store.create(job.key, job.value, LEASE_TTL_S)
