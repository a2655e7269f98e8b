"""The thread that keeps reading the leases: list at one revision, watch from the next, and from the start again after any fault.

The one watch is on the whole prefix, so that a changed network config is noticed at once too; the executor reads it then.

Start-up, a compaction, a lost connection and a wiped etcd are the same code here. It holds no state of the agent: what it reads goes
on the queue. Failures back off with jitter, so that a returning etcd is not stormed by a thousand nodes.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from flanpy.agent.events import ConfigTouched, EventQueue, PodsChanged, PodsListed, StoreFailed, SubnetsChanged, SubnetsListed
from flanpy.core.pods import PODS
from flanpy.errors import Compacted, StoreDenied, StoreError
from flanpy.model import RecordChange
from flanpy.stores import Store, Watch

SUBNETS = "subnets/"
CONFIG = "config"
EVERYTHING = ""


@dataclass(frozen=True, slots=True)
class Pace:
    """Waits of the watcher, seconds: between failures (doubling from least to most), and between full re-lists of a healthy watch."""

    least_s: float = 0.2
    most_s: float = 3.0
    relist_s: float = 600.0


class Watcher:
    """Runs from ``start`` to ``close``; feeds what it reads and StoreFailed to the queue. ``pods``: the pod registry too."""

    def __init__(self, store: Store, queue: EventQueue, pace: Pace | None = None, *, pods: bool = False) -> None:
        self._store = store
        self._queue = queue
        self._pace = pace or Pace()
        self._pods = pods
        self._stopping = threading.Event()
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Begin with a list."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching; waits for the thread for a bounded time."""
        self._stopping.set()
        if watch := self._watch:
            watch.cancel()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.wait(wait_s * random.uniform(0.5, 1.0)):
            started = time.monotonic()
            try:
                self._list_and_watch()
                wait_s = 0.0
            except Compacted:
                wait_s = self._pace.least_s
            except (
                StoreError,
                RuntimeError,
                OSError,
            ) as error:  # the latter: out of threads or descriptors; a watch must never die
                self._queue.put(StoreFailed(str(error), isinstance(error, StoreDenied)))
                lasted = time.monotonic() - started > 2 * self._pace.most_s
                wait_s = self._pace.least_s if lasted or not wait_s else min(2 * wait_s, self._pace.most_s)

    def _list_and_watch(self) -> None:
        """Return when it is time for a full re-list or to stop."""
        records = self._store.list(SUBNETS)
        self._queue.put(SubnetsListed(records))
        self._queue.put(ConfigTouched())
        if self._pods:  # later than the leases: changes in between come by the watch again, and are passed over
            self._queue.put(PodsListed(self._store.list(PODS)))
        relist_at = time.monotonic() + self._pace.relist_s * random.uniform(0.8, 1.2)
        self._watch = watch = self._store.watch(EVERYTHING, records.revision + 1)
        try:
            if self._stopping.is_set():
                return
            for changes in watch:
                self._tell(changes)
                if time.monotonic() > relist_at:
                    return
        finally:
            watch.cancel()

    def _tell(self, changes: tuple[RecordChange, ...]) -> None:
        """Leases as they come, an empty batch as a sign of life; of the config only that it is another."""
        self._queue.put(SubnetsChanged(tuple(change for change in changes if change.key.startswith(SUBNETS))))
        if self._pods and (pods := tuple(change for change in changes if change.key.startswith(PODS))):
            self._queue.put(PodsChanged(pods))
        if any(change.key == CONFIG for change in changes):
            self._queue.put(ConfigTouched())
