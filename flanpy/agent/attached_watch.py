"""The thread that reads what the CNI plugin keeps about attached pods, whenever something changes in its directory (inotify(7)).

The directory is all that agent and plugin share: pods that came while the agent was away are read at the start, and the plugin never
waits for the agent. A file is whole or not there (the plugin renames). Every ``RESCAN_S`` everything is read again.

What cannot be read for the moment (no descriptor left, say) is as it was: an attached pod that we do not see must not lose its place.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flanpy.agent.events import PodsAttached
from flanpy.agent.logs import event
from flanpy.core.attached import AttachedPod, parse_kept
from flanpy.errors import CodecError, PlatformError

log = logging.getLogger(__name__)

RESCAN_S = 15.0
MAX_FILE_BYTES = 1 << 20
MAX_PODS = 4096
"""More attachments than a node has pods are not read."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_IN_DELETE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x200, 0x40, 0x80, 0x400, 0x800
_MASK = _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE_SELF | _IN_MOVE_SELF
_EVENTS_BYTES = 65536


class AttachedWatch:
    """Watches from ``start`` to ``close``; ``sink`` is called in the watch's thread. Raises PlatformError: no such directory can be had."""

    def __init__(self, directory: Path, sink: Callable[[PodsAttached], None], rescan_s: float = RESCAN_S) -> None:
        self._directory = directory
        self._sink = sink
        self._rescan_ms = int(rescan_s * 1000)
        self._boot = BOOT_ID.read_text(encoding="ascii").strip()
        self._said: dict[str, str] = {}
        self._last: dict[str, tuple[AttachedPod, ...]] = {}
        self._unknown = True
        self._inotify = _open_inotify()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._look_at_directory()
        except OSError as error:
            self._close_files()
            cure = "choose the plugin's dataDir, one that can be written, or leave --pod-registry away"
            raise PlatformError(f"--cni-data-dir: cannot watch {directory}: {error.strerror}; {cure}") from error
        self._thread = threading.Thread(target=self._run, name="pods-watch", daemon=True)

    def start(self) -> None:
        """Begin with what is there."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; safe to call twice."""
        if self._wake < 0:
            return
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join(timeout=2.0)
        self._close_files()

    def _close_files(self) -> None:
        os.close(self._inotify)
        os.close(self._wake)
        self._wake = -1

    def _look_at_directory(self) -> None:
        """Watch the directory, made if it is not there; again and again is once, and another one of that name is found."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _libc.inotify_add_watch(self._inotify, os.fsencode(self._directory), _MASK) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def _run(self) -> None:
        poll = select.poll()
        for number in (self._inotify, self._wake):
            poll.register(number, select.POLLIN)
        while True:
            self._look()
            ready = poll.poll(self._rescan_ms)
            if any(number == self._wake for number, _ in ready):
                return
            if ready:
                os.read(self._inotify, _EVENTS_BYTES)  # what has happened is seen by looking
            with suppress(OSError):  # tried again with the next look
                self._look_at_directory()

    def _look(self) -> None:
        """Tell what is attached. A defect is said and costs this look alone: without this thread no pod would be seen any more."""
        try:
            problems = self._read()
        except Exception as error:
            log.exception("attached pods not read; they are read again soon", extra=event("attached_failed", reason=repr(error)))
            return
        for name, problem in problems.items():
            if self._said.get(name) != problem:
                log.warning("attached pod not read: %s", problem, extra=event("attached_unreadable", file=name, reason=problem))
        self._said = problems
        if "." not in problems:
            pods = sorted((pod for pods in self._last.values() for pod in pods), key=lambda pod: pod.place)
            self._sink(PodsAttached(tuple(pods), whole=not self._unknown))

    def _read(self) -> dict[str, str]:
        """Read everything into ``_last``; what is wrong, by file (".": the directory, and then nothing was read)."""
        try:
            names = sorted(path.name for path in self._directory.iterdir() if not path.name.startswith("."))
        except OSError as error:  # also when it is away: only a list that was read says that something is not there
            return {".": f"{self._directory}: {error.strerror}"}
        pods: dict[str, tuple[AttachedPod, ...]] = {}
        problems: dict[str, str] = {}
        unknown = len(names) > MAX_PODS
        for name in names[:MAX_PODS]:
            try:
                pods[name] = parse_kept(name, self._bytes(name), self._boot)
            except FileNotFoundError:
                continue
            except CodecError as error:
                problems[name] = f"{self._directory}: {error}"
            except OSError as error:
                if name in self._last:
                    pods[name] = self._last[name]
                else:
                    unknown = True
                problems[name] = f"{self._directory}: {ascii(name)[:80]}: {error.strerror}"
        self._last, self._unknown = pods, unknown
        return problems

    def _bytes(self, name: str) -> bytes:
        descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CodecError(f"{ascii(name)[:80]}: not a regular file")
            return _read_all(descriptor)
        finally:
            os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    """At most ``MAX_FILE_BYTES``; what is cut is no JSON."""
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read(MAX_FILE_BYTES)


_libc = ctypes.CDLL(None, use_errno=True)


def _open_inotify() -> int:
    number = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if number < 0:
        reason = os.strerror(ctypes.get_errno())
        raise PlatformError(f"--pod-registry: cannot open inotify: {reason}; raise fs.inotify.max_user_instances")
    return number
