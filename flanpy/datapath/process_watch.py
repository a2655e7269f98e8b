"""Tells at once when a datapath process has ended: a thread that waits for its connection to be hung up, and for nothing else."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from flanpy.datapath.process_wire import POLLRDHUP


class Watch:
    """Calls ``lost`` once, by a thread of its own, when the other end of a connection is closed; not after ``close`` has returned."""

    def __init__(self, connection: int, lost: Callable[[], None]) -> None:
        self._fd = os.dup(connection)
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._lost = lost
        self._thread = threading.Thread(target=self._run, name="datapath-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching; called once, and not by ``lost``."""
        os.eventfd_write(self._end, 1)
        self._thread.join()
        os.close(self._fd)
        os.close(self._end)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._fd, POLLRDHUP)
        poller.register(self._end, select.POLLIN)
        if self._end not in {fd for fd, _ in poller.poll()}:
            self._lost()
