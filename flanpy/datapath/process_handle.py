"""A datapath process as the agent holds it: its connection, its life, and the path of its socket.

    find  ── Process.connect(path) ──▶ Process ──▶ stop, kill: returns when it has ended, DatapathWaits while it has not
    launch ─────────────────────────▶

Its socket goes when it has ended, and not before: who finds the socket finds the process.
"""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from flanpy.datapath import process_record
from flanpy.datapath.process_life import Life
from flanpy.datapath.process_wire import Connection, Slow
from flanpy.errors import DatapathError, DatapathWaits, reason_of

STEP_S = 0.9
"""How long the agent's loop waits for a datapath process at most, in one go; what takes longer goes on at the next attempt."""


class Process:
    """One process, until ``close`` lets go of it; whether it goes on then is its own business."""

    def __init__(self, path: Path, connection: Connection, life: Life) -> None:
        self.path = path
        self.connection = connection
        self.life = life

    @classmethod
    def connect(cls, path: Path) -> Self | None:
        """The process that listens there, None when nobody does. Raises DatapathWaits when that cannot be told now."""
        opened = _connected(path)
        if opened is None:
            return None
        try:
            life = Life.of_peer(opened, lambda: _listens(path))
        except OSError as exc:
            opened.close()
            raise DatapathWaits(f"{path}: which process listens there cannot be seen now: {reason_of(exc)}") from exc
        except BaseException:
            opened.close()
            raise
        return cls(path, Connection(opened, life.pid), life)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.life.pid

    def close(self) -> None:
        """Hang up. Safe to call twice."""
        self.connection.close()
        self.life.close()

    def settle(self, path: Path) -> None:
        """It is found there from now on, as the one that carries the packets."""
        if self.path != path:
            with suppress(FileNotFoundError):
                self.path.rename(path)
            self.path = path
        process_record.write(path.parent, self.pid, self.life.user)

    def stop(self, within_s: float) -> str:
        """Let it finish what it has in hand and end, by force if it does not listen; how it ended.

        Raises DatapathWaits while it has not ended: it is asked on at the next call.
        """
        ends_s = time.monotonic() + within_s
        if not self.life.has_ended:
            try:
                self.connection.stop(within_s)
            except Slow:
                raise
            except DatapathError:
                self.life.kill()
        return self._await_end(ends_s - time.monotonic())

    def kill(self, within_s: float) -> str:
        """End it by force; how it ended. Raises DatapathWaits while it has not: it is killed again at the next call."""
        self.life.kill()
        return self._await_end(within_s)

    def _await_end(self, within_s: float) -> str:
        """Its descriptors are closed when it has ended, the underlay's port among them."""
        if not self.life.await_end(within_s):
            raise DatapathWaits(f"datapath process {self.pid}: was told to end and has not yet; it is waited for")
        with suppress(OSError):
            self.path.unlink()
        process_record.forget(self.path.parent, self.pid)
        self.connection.close()
        how = self.life.reap()
        self.life.close()
        return how


def is_somebody(path: Path) -> int | None:
    """The pid of the process that listens there; 0: one that takes no connection now; None: nobody. Changes nothing."""
    try:
        found = Process.connect(path)
    except DatapathError:
        return 0
    if found is None:
        return None
    found.close()
    return found.pid


def _connected(path: Path) -> socket.socket | None:
    """None when nobody listens there. A process that is stopped takes no connection any more once some wait: that is somebody."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        opened.connect(str(path))
    except OSError as exc:
        opened.close()
        if exc.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return None
        raise DatapathWaits(
            f"{path}: the datapath process there takes no connection ({exc.strerror}); if it hangs, end it by `kill -9` as root"
        ) from exc
    return opened


def _listens(path: Path) -> bool:
    try:
        opened = _connected(path)
    except DatapathWaits:
        return True
    if opened is not None:
        opened.close()
    return opened is not None
