"""The userspace datapath as a process of its own, flanpy-datapath (csrc/process/main.c), which outlives the agent.

    agent                                                    flanpy-datapath (no privileges, no files)
    TUN queues, UDP sockets  ── START, descriptors ────────▶ worker threads: packets
    ForwardTable ─▶ memfd    ── TABLE, sealed memfd ───────▶ mapped read-only, checked, published
    counters                 ◀─ pages that both have mapped ─ one writer each

Both sides hold all descriptors, so either can be killed and started again without losing what waits in the queues:

    agent gone      the process goes on with the last table; the next agent finds it by its socket, is given everything, adopts it
    process gone    the agent starts another with the same descriptors, counters and table (``check``, at once)
    other build,    another process is started beside; with the first table it takes over: it holds the table, the old one leaves off
    other settings  reading and ends, the new one reads: packets wait in between, none is lost and none overtakes another. Whoever dies
                    on the way: either the old one goes on, or the new one has a table

A process that does not answer is given time by looks that do not wait (``check``, every second) or not for long; each call here takes a
second at most. ``DatapathWaits`` says that all is kept and the call should be made again. A fresh process that is slow to start is waited
for in the same way, while the old one, if there is one, goes on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from flanpy.datapath import DatapathSettings, DatapathStats, PeerCount, ProcessStatus
from flanpy.datapath.core import build_table, ffi, lib
from flanpy.datapath.process_find import Found
from flanpy.datapath.process_handle import STEP_S, Process
from flanpy.datapath.process_launch import SOCKET_NAME, launch, version_of
from flanpy.datapath.process_life import EXECUTABLE
from flanpy.datapath.process_pages import Pages, is_pages, is_table, new_pages, sealed_table
from flanpy.datapath.process_user import datapath_user, sharers
from flanpy.datapath.process_watch import Watch
from flanpy.datapath.process_wire import Gone, Nonsense, Slow, Unresponsive
from flanpy.datapath.sockets import UnderlaySockets
from flanpy.datapath.userspace import FEATURES, IPV6, Tuning, TunQueues, native_settings, queue_descriptors
from flanpy.errors import DatapathError, DatapathWaits, reason_of
from flanpy.model import Address, ForwardTable

SILENT_S = 2.0
"""A process that is silent for longer than that is said to be."""
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
    user: tuple[int, int] = field(default_factory=datapath_user)
    """What the process is to run as, user and group."""


class ProcessDatapath:
    """A running userspace datapath in its own process. It owns what it is given, also when it cannot start."""

    kind = "userspace"

    def __init__(
        self,
        settings: DatapathSettings,
        tun: TunQueues,
        underlay: UnderlaySockets,
        options: ProcessOptions,
        found: Found | None = None,
        *,
        same_queues: bool = False,
    ) -> None:
        """``same_queues``: ``tun`` and ``underlay`` are those of ``found``, none opened anew."""
        self.features = FEATURES | ({IPV6} if settings.tunnel_address6 is not None else frozenset())
        self._settings, self._tun, self._underlay, self._options = settings, tun, underlay, options
        self._lock = threading.RLock()
        self._user = options.user
        self._process: Process | None = None
        self._old: Process | None = None  # it carries the packets until ours has a table
        self._watch: Watch | None = None
        self._pages: Pages | None = None
        self._table: tuple[int, int] | None = None
        self._sent: ForwardTable | None = None  # what self._table was made of
        self._launched_s = float("-inf")
        self._version = ""
        self._is_started = self._is_settled = False  # it has answered START; it is the one that reads the queues
        self._holds = False  # it has a table that it takes by itself when the old one has ended
        self._lacks: tuple[str, ...] = ()
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
                found.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def degraded(self) -> tuple[str, ...]:
        """What device, sockets and process do without; a process says it when it has started."""
        return self._tun.degraded + self._underlay.degraded + self._lacks

    @property
    def process(self) -> ProcessStatus:
        """Which process, and what became of those before it."""
        return self._status

    # ------------------------------------------------------------------------------------------------ use

    def publish(self, table: ForwardTable) -> None:
        """Forward by this table from now on; returns when every worker has it. The table is kept for a process to come."""
        with self._lock:
            process = self._running()
            if self._sent is not table:
                self._keep_table(table)
            ends_s = time.monotonic() + STEP_S
            try:
                self._start(ends_s)
                if self._old is not None:
                    self._take_over(self._old, ends_s)
                process.connection.table(*self._given_table(), ends_s - time.monotonic())
            except (Gone, Unresponsive, Nonsense) as error:
                self._replace_lost(hung=not isinstance(error, Gone))
                if self._old is not None or self._ended is not None:
                    raise DatapathWaits(f"{self._settings.device}: {error}; the table will be given to another soon") from error

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

    def check(self, *, closely: bool = True) -> None:
        """Start another process when ours has ended or is silent (DatapathWaits meanwhile); DatapathError: a worker cannot go on."""
        with self._lock:
            process = self._running()
            assert self._pages is not None
            for queue, failed in self._pages.failures():
                raise DatapathError(
                    f"{self._settings.device}: worker {queue} has stopped: {failed} (has the TUN device been removed?)"
                )
            try:
                if self._ended is None:
                    self._start(time.monotonic())
                    process.connection.look()
            except (Gone, Unresponsive) as error:
                self._replace_lost(hung=not isinstance(error, Gone))
            else:
                if self._ended is not None or process.connection.is_lost:
                    self._replace_lost(hung=False)
            self._say_trouble()

    def close(self) -> None:
        """Let go: the process goes on by the last table, and whoever comes next finds it. Safe to call twice."""
        self._stop_watching()
        with self._lock:
            process, self._process = self._process, None
            old, self._old = self._old, None
            if process is not None:
                if self._ended is None and not self._holds and (old is not None or not self._is_started):
                    _discard(process)  # it has not taken over; the old one goes on, for it has not been told to end
                process.close()
            if old is not None:
                old.close()
            if self._pages is not None:
                self._pages.close()
                self._pages = None
            self._drop_table()
            self._tun.close()
            self._underlay.close()

    def teardown(self) -> None:
        """End the process and close everything: the device goes too, unless it is kept. Raises DatapathWaits when it does not end."""
        self._stop_watching()
        try:
            with self._lock:
                if self._process is not None and self._ended is None:
                    _end(self._process)
                    self._ended = "has ended"
                if self._old is not None:
                    _end(self._old)
                    self._old = None
        finally:
            self.close()

    # ------------------------------------------------------------------------------------------------ processes

    def _take_up(self, found: Found | None, same_queues: bool) -> None:
        """Adopt the process that was found, if it is all that we want; else let another take over from it at the first table."""
        queues, threads = self._settings.queues, self._options.tuning.threads_per_queue
        queue_descriptors(self._settings, self._tun, self._underlay)  # before anything is begun
        version = version_of(self._options.executable)
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
        there = found.process if found is not None else None
        if found is None or there is None or state is None:
            self._launch(version, at_once=False)
            return
        there.settle(self._path)  # the place beside is for one that takes over from it
        same = same_queues and fits and not any(self._pages.failures())
        if same and (state.version, state.settings, there.life.user) == (version, self._native, self._user):
            self._is_started = self._is_settled = True
            self._lacks = self._missing(state.confined)
            self._use(found.take(), adopted=True)
        else:
            self._old = found.take()
            self._launch(version, at_once=False)

    def _launch(self, version: str, *, at_once: bool = True) -> None:
        """Start another process on our descriptors. ``at_once`` False: it need not have started when this returns."""
        process = launch(self._options.run_dir, self._user, self._options.executable)
        self._version, self._launched_s = version, time.monotonic()
        self._is_started = self._is_settled = self._holds = False
        self._use(process, adopted=False)
        with nullcontext() if at_once else suppress(Slow):
            self._start(time.monotonic() + STEP_S)

    def _start(self, ends_s: float) -> None:
        """What is still to be done of the start of our process: START, and the table if no other process reads the queues.

        Raises Slow when it has not answered by then, and is asked on; DatapathError when it cannot be started, and has been ended.
        """
        process = self._running()
        try:
            if not self._is_started:
                self._lacks = self._missing(self._ask_to_start(process, ends_s - time.monotonic()))
                self._is_started = True
            if self._old is None and not self._is_settled:
                self._underlay.spread()
                if self._table is not None:
                    process.connection.table(*self._table, STEP_S)
                self._settle(process)
        except (Slow, Gone, Unresponsive):
            raise
        except BaseException:
            self._stop_watching()
            _discard(process)
            self._ended = "could not be started"
            raise

    def _ask_to_start(self, process: Process, within_s: float) -> int:
        assert self._pages is not None
        queues = queue_descriptors(self._settings, self._tun, self._underlay)
        return process.connection.start(self._version, self._native, queues, self._pages.fd, within_s).confined

    def _settle(self, process: Process) -> None:
        process.settle(self._path)
        self._is_settled = True

    def _take_over(self, old: Process, ends_s: float) -> None:
        """Ours is sure of a table before the old one leaves off; if we die after that it takes it by itself, when the old one has ended."""
        process = self._running()
        process.connection.hold(*self._given_table(), old.life.pidfd, ends_s - time.monotonic())
        self._holds = True
        old.stop(ends_s - time.monotonic())
        self._old = None
        self._underlay.spread()
        self._settle(process)
        self._launched_s = float("-inf")  # whatever ends it now, nobody else reads the queues: another is started at once

    def _use(self, process: Process, *, adopted: bool) -> None:
        if self._process is not None:
            self._process.close()
        self._process, self._ended = process, None
        self._status = replace(self._status, pid=process.pid, adopted=adopted)
        self._watch = Watch(process.connection.fileno(), self._options.lost)

    def _replace_lost(self, *, hung: bool) -> None:
        """The process has ended, or does not answer: another takes its place, at once unless it did not live long.

        One that has hung up on us and lives is killed as well, for two must not read the same queues. Raises DatapathWaits while it has
        not ended.
        """
        process = self._running()
        if self._ended is None:
            self._stop_watching()
            if not hung:
                process.life.await_end(STEP_S / 2)
            self._ended = process.kill(STEP_S / 2)
        if time.monotonic() - self._launched_s < RESTART_PAUSE_S:
            return
        status = self._status
        self._status = replace(status, restarts=status.restarts + 1, ended=f"process {process.pid} {self._ended}")
        try:
            self._launch(version_of(self._options.executable))
        except DatapathError as error:
            raise DatapathWaits(f"{self._settings.device}: {error}; it is tried again, packets wait meanwhile") from error

    def _say_trouble(self) -> None:
        """Raise DatapathWaits when nobody may be carrying packets now, though nothing has failed for good."""
        process, device = self._running(), self._settings.device
        if self._ended is not None:
            raise DatapathWaits(f"{device}: datapath process {process.pid} {self._ended}; another is started in a moment")
        if (silent_s := process.connection.silent_s) >= SILENT_S:
            raise DatapathWaits(
                f"{device}: datapath process {process.pid} has not answered for {silent_s:.0f} s (is it stopped?)"
            )

    @property
    def _path(self) -> Path:
        return self._options.run_dir / SOCKET_NAME

    def _running(self) -> Process:
        if self._process is None:
            raise DatapathError(f"{self._settings.device}: the datapath is closed")
        return self._process

    def _keep_table(self, table: ForwardTable) -> None:
        blob = build_table(table)
        try:
            memfd = sealed_table(blob)
        except OSError as exc:
            raise DatapathError(
                f"{self._settings.device}: no memory file for table {table.generation}: {reason_of(exc)}"
            ) from exc
        process = self._running()
        if self._is_started:  # else START is waited for, and still is
            process.connection.forget()
        self._drop_table()
        self._table, self._sent = (memfd, blob.size), table

    def _given_table(self) -> tuple[int, int]:
        assert self._table is not None
        return self._table

    def _drop_table(self) -> None:
        if self._table is not None:
            os.close(self._table[0])
        self._table = self._sent = None

    def _stop_watching(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _missing(self, confined: int) -> tuple[str, ...]:
        missing = [text for name, text in CONFINEMENT.items() if not confined & int(getattr(lib, name))]
        if confined & int(lib.FP_CONFINED_USER) and (shared := sharers(self._user[0])) is not None:
            missing.append(f"it runs as {shared}: leave --datapath-user away, or give it a user of its own")
        return tuple(f"datapath process: {text}" for text in missing)


def _end(process: Process) -> None:
    """For good, at the end of the agent: one that does not listen is killed."""
    try:
        process.stop(STEP_S)
    except Slow:
        process.kill(STEP_S)


def _discard(process: Process) -> None:
    """One that carries nothing. That it hangs up on us is no news, and what cannot be killed ends when we hang up, for it has no table."""
    try:
        process.kill(STEP_S)
    except DatapathWaits:
        process.close()
