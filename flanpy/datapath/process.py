"""The userspace datapath as a process of its own, flanpy-datapath (csrc/process/main.c), which outlives the agent.

    agent                                                    flanpy-datapath (no privileges, no files)
    TUN queues, UDP sockets  ── START, descriptors ────────▶ worker threads: packets
    ForwardTable ─▶ memfd    ── TABLE, sealed memfd ───────▶ mapped read-only, checked, published
    counters                 ◀─ pages that both have mapped ─ one writer each

Both sides hold all descriptors, so either can be killed and started again without losing what waits in the queues:

    agent gone      the process goes on with the last table; the next agent finds it by its socket, is given everything, adopts it
    process gone    the agent starts another with the same descriptors, counters and table (``check``, at once)
    other build,    another process is started beside, the old one leaves off reading and ends, the new one gets the table: packets
    other settings  wait in between, none is lost and none overtakes another
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from flanpy.datapath import DatapathSettings, DatapathStats, PeerCount, ProcessStatus
from flanpy.datapath.core import build_table, ffi, lib
from flanpy.datapath.process_launch import EXECUTABLE, SOCKET_NAME, Found, await_end, end_process, kill, launch, version_of
from flanpy.datapath.process_pages import Pages, is_pages, is_table, new_pages, sealed_table
from flanpy.datapath.process_watch import Watch
from flanpy.datapath.process_wire import Connection, Gone, Unresponsive
from flanpy.datapath.sockets import Underlay
from flanpy.datapath.userspace import FEATURES, IPV6, Tuning, TunQueues, native_settings
from flanpy.errors import DatapathError
from flanpy.model import Address, ForwardTable

RESTART_PAUSE_S = 1.0
"""A process that has ended sooner than that after its start is not started again at once: something kills it."""

CONFINEMENT = {
    "FP_CONFINED_USER": "no unprivileged user could be taken (a user namespace that maps root alone?); it has root's, without capabilities",
    "FP_CONFINED_CAPABILITIES": "capabilities could not be given up",
    "FP_CONFINED_LIMITS": "resource limits could not be set",
    "FP_CONFINED_SYSCALLS": "no seccomp filter on this kernel (CONFIG_SECCOMP_FILTER) or machine; it could make any system call",
}


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """``lost`` is called by a thread of ours when the process has ended; ``check`` starts another."""

    run_dir: Path
    lost: Callable[[], None] = lambda: None
    tuning: Tuning = field(default_factory=Tuning)
    executable: Path = EXECUTABLE


class ProcessDatapath:
    """A running userspace datapath in its own process. It owns what it is given, also when it cannot start."""

    kind = "userspace"

    def __init__(
        self,
        settings: DatapathSettings,
        tun: TunQueues,
        underlay: Underlay,
        options: ProcessOptions,
        found: Found | None = None,
        *,
        same_queues: bool = False,
    ) -> None:
        """``same_queues``: ``tun`` and ``underlay`` are those of ``found``, none opened anew."""
        self.features = FEATURES | ({IPV6} if settings.tunnel_address6 is not None else frozenset())
        self._settings, self._tun, self._underlay, self._options = settings, tun, underlay, options
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._watch: Watch | None = None
        self._pages: Pages | None = None
        self._table: tuple[int, int] | None = None
        self._launched_s = float("-inf")
        self._confined = 0
        self._ended: str | None = None
        self._status = ProcessStatus(0, adopted=False, restarts=0)
        try:
            self._native = bytes(ffi.buffer(native_settings(settings, tun, underlay, options.tuning)))
            self._take_up(found, same_queues)
        except BaseException:
            self.close()
            raise
        finally:
            if found is not None:
                found.close(hang_up=self._connection is not found.connection)
        self.degraded = tun.degraded + underlay.degraded + self._missing_confinement()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def process(self) -> ProcessStatus:
        """Which process, and what became of those before it."""
        return self._status

    # ------------------------------------------------------------------------------------------------ use

    def publish(self, table: ForwardTable) -> None:
        """Forward by this table from now on; returns when every worker has it. The table is kept for a process to come."""
        blob = build_table(table)
        with self._lock:
            connection = self._running()
            try:
                self._keep_table(sealed_table(blob), blob.size)
            except OSError as exc:
                raise DatapathError(
                    f"{self._settings.device}: no memory file for table {table.generation}: {exc.strerror}"
                ) from exc
            assert self._table is not None
            try:
                connection.table(*self._table)
            except (Gone, Unresponsive) as error:
                self._replace_lost(hung=isinstance(error, Unresponsive))
                if self._ended is not None:
                    raise DatapathError(f"{self._settings.device}: {error}; it is started again soon") from error

    def stats(self) -> DatapathStats:
        """Counters of all threads together, of this process and those before it."""
        with self._lock:
            self._running()
            assert self._pages is not None
            return self._pages.stats()

    def peer_counts(self, peers: Sequence[Address]) -> Mapping[Address, PeerCount]:
        """What each of these peers was sent and has sent, by this process and those before it."""
        with self._lock:
            self._running()
            assert self._pages is not None
            return self._pages.peers(peers)

    def check(self) -> None:
        """Start another process when ours has ended; raise DatapathError when a worker cannot go on or no process can be had."""
        with self._lock:
            connection = self._running()
            assert self._pages is not None
            for queue, failed in self._pages.failures():
                raise DatapathError(
                    f"{self._settings.device}: worker {queue} has stopped: {os.strerror(failed)} (has the TUN device been removed?)"
                )
            if connection.is_lost:
                self._replace_lost(hung=False)

    def close(self) -> None:
        """Let go: the process goes on by the last table, and whoever comes next finds it. Safe to call twice."""
        self._stop_watching()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._pages is not None:
                self._pages.close()
                self._pages = None
            if self._table is not None:
                os.close(self._table[0])
                self._table = None
            self._tun.close()
            self._underlay.close()

    def teardown(self) -> None:
        """End the process and close everything: the device goes too, unless it is kept."""
        self._stop_watching()
        with self._lock:
            if self._connection is not None and self._ended is None:
                end_process(self._connection, self._path)
        self.close()

    # ------------------------------------------------------------------------------------------------ processes

    def _take_up(self, found: Found | None, same_queues: bool) -> None:
        """Adopt the process that was found, if it is all that we want; else let another take over from it."""
        queues, threads = self._settings.queues, self._options.tuning.threads_per_queue
        if not len(self._tun.fds) == len(self._underlay.fds) == queues:
            raise DatapathError(f"{self._settings.device}: {queues} queues need as many of TUN and UDP")
        version = version_of(self._options.executable)
        if found is not None and not found.has_ended:
            found.move(self._path)  # the place beside is for one that takes over from it
        state = found.state if found is not None else None
        fits = (
            state is not None
            and state.pages_fit
            and state.pages_fd is not None
            and state.n_pages == queues * threads
            and is_pages(state.pages_fd, queues, threads)
        )
        if state is not None and state.pages_fd is not None and fits:
            self._pages = Pages(os.dup(state.pages_fd), queues, threads)
        else:
            self._pages = new_pages(queues, threads)
        if state is not None and state.table_fd is not None and is_table(state.table_fd, state.table_bytes):
            self._table = os.dup(state.table_fd), state.table_bytes
        same = same_queues and fits and state is not None and (state.version, state.settings) == (version, self._native)
        if found is None or found.has_ended or not same:
            self._launch(version, found)
        else:
            self._confined = found.state.confined
            self._use(found.connection, adopted=True)

    def _launch(self, version: str, old: Found | None = None) -> None:
        """Start another process on our descriptors; when its threads run, ``old`` leaves off, and then it gets the table."""
        assert self._pages is not None
        connection, path = launch(self._options.run_dir, self._options.executable)
        try:
            queues = list(zip(self._tun.fds, self._underlay.fds, strict=True))
            self._confined = connection.start(version, self._native, queues, self._pages.fd).confined
            if old is not None:
                old.end()
            if self._table is not None:
                connection.table(*self._table)
            path.rename(self._path)
        except BaseException:
            end_process(connection, path)
            raise
        self._launched_s = time.monotonic()
        self._use(connection, adopted=False)

    def _use(self, connection: Connection, *, adopted: bool) -> None:
        self._connection, self._ended = connection, None
        self._status = ProcessStatus(connection.pid, adopted, self._status.restarts, self._status.ended)
        self._watch = Watch(connection.fileno(), self._options.lost)

    def _replace_lost(self, *, hung: bool) -> None:
        """The process has ended, or does not answer: another takes its place, at once unless it did not live long."""
        connection = self._running()
        if self._ended is None:
            self._stop_watching()
            if hung:
                kill(connection)
            self._ended = await_end(connection, self._path)
        if time.monotonic() - self._launched_s < RESTART_PAUSE_S:
            return
        self._status = ProcessStatus(
            connection.pid, adopted=False, restarts=self._status.restarts + 1, ended=f"process {connection.pid} {self._ended}"
        )
        self._launch(version_of(self._options.executable))

    @property
    def _path(self) -> Path:
        return self._options.run_dir / SOCKET_NAME

    def _running(self) -> Connection:
        if self._connection is None:
            raise DatapathError(f"{self._settings.device}: the datapath is closed")
        return self._connection

    def _keep_table(self, memfd: int, size: int) -> None:
        if self._table is not None:
            os.close(self._table[0])
        self._table = memfd, size

    def _stop_watching(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _missing_confinement(self) -> tuple[str, ...]:
        missing = (text for name, text in CONFINEMENT.items() if not self._confined & int(getattr(lib, name)))
        return tuple(f"datapath process: {text}" for text in missing)
