"""Finds the datapath process that an earlier agent has left, by its socket in the run directory, and asks it for everything.

    datapath.sock      ─ HELLO ─▶ the one that carries the packets                  ┐ if both are there, an agent was killed while
    datapath.sock.new  ─ HELLO ─▶ one that was about to take over from it           ┘ one took over: the one with a table stays

What becomes of one that does not give everything:

    silent for REPLY_TIMEOUT_S, or talks nonsense    it is killed; its queues wait for the next
    refuses descriptors, or hangs up on us           it goes on carrying packets, and is asked again
    has ended                                        its socket goes
    is there, and listens no more                    it is killed (process_record): nobody could ever adopt it
"""

from __future__ import annotations

import time
from pathlib import Path

from flanpy.datapath import process_record
from flanpy.datapath.process_handle import STEP_S, Process, is_somebody
from flanpy.datapath.process_launch import FRESH_SOCKET_NAME, SOCKET_NAME
from flanpy.datapath.process_wire import Gone, State
from flanpy.errors import DatapathError, DatapathWaits, reason_of

END_LIMIT_S = 15.0
"""How long a command waits for the end of a process: more than one that hangs is given to answer."""


class Found:
    """A process that an earlier agent has left, with its descriptors. ``process`` None: it has been ended, or taken over."""

    def __init__(self, process: Process, state: State) -> None:
        self.process: Process | None = process
        self.state = state
        self.pid = process.pid

    def end(self) -> None:
        """Stop it; its descriptors are still ours. Raises DatapathWaits while it has not ended."""
        if self.process is not None:
            self.process.stop(STEP_S)
            self.process = None

    def take(self) -> Process:
        """The process, the caller's from now on."""
        process, self.process = self.process, None
        if process is None:
            raise DatapathError(f"datapath process {self.pid} has been ended")
        return process

    def close(self) -> None:
        """Close the descriptors that it has given, and hang up: a process that has not been ended goes on. Safe to call twice."""
        self.state.close()
        if self.process is not None:
            self.process.close()
            self.process = None


class Finder:
    """Looks for processes, never for longer than STEP_S in all; what has not answered by then is asked on at the next look."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._paths = (run_dir / SOCKET_NAME, run_dir / FRESH_SOCKET_NAME)
        self._asked: dict[Path, Process] = {}

    def close(self) -> None:
        """Hang up on those that have not answered. Safe to call twice."""
        while self._asked:
            self._asked.popitem()[1].close()

    def look(self) -> Found | None:
        """The process of this run directory; one beside it is ended. Raises DatapathWaits when it cannot be told yet what there is."""
        ends_s = time.monotonic() + STEP_S
        there: list[Found] = []
        try:
            for path in self._paths:
                if (found := self._ask(path, ends_s - time.monotonic())) is not None:
                    there.append(found)
            self._end_hidden({found.pid for found in there}, ends_s - time.monotonic())
            best = max(there, key=_worth, default=None)
            for other in there:
                if other is not best:
                    other.end()
        except BaseException:
            for each in there:
                each.close()
            raise
        for other in there:
            if other is not best:
                other.close()
        return best

    def end(self, within_s: float) -> bool:
        """End the process of this run directory; whether there was one. Raises DatapathWaits when it has not ended by then."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                found = self.look()
                if found is None:
                    return False
                try:
                    found.end()
                finally:
                    found.close()
                return True
            except DatapathWaits:
                if time.monotonic() >= deadline_s:
                    raise
                time.sleep(0.05)

    def _end_hidden(self, known: set[int], within_s: float) -> None:
        """One that is not found by its socket would read the queues beside whoever is started now."""
        try:
            life = process_record.recall(self._run_dir)
        except OSError as exc:
            raise DatapathWaits(
                f"{self._run_dir}: whether a datapath process is left cannot be seen now: {reason_of(exc)}"
            ) from exc
        if life is None:
            return
        try:
            if life.pid in known:
                return
            life.kill()
            if not life.await_end(within_s):
                raise DatapathWaits(f"datapath process {life.pid}: listens no more, and has not ended yet; it is waited for")
            process_record.forget(self._run_dir, life.pid)
        finally:
            life.close()

    def _ask(self, path: Path, within_s: float) -> Found | None:
        process = self._asked.pop(path, None) or Process.connect(path)
        if process is None:
            path.unlink(missing_ok=True)
            return None
        try:
            return Found(process, process.connection.hello(within_s))
        except Gone as error:
            if process.life.has_ended:
                process.kill(0)  # takes its socket away
                return None
            process.close()
            raise DatapathWaits(f"{error}, though it lives: it goes on by the last table, and is asked again") from error
        except DatapathWaits:
            self._asked[path] = process
            raise
        except DatapathError:
            self._asked[path] = process  # until it has ended
            process.kill(within_s)
            del self._asked[path]
            return None
        except BaseException:
            process.close()
            raise


def _worth(found: Found) -> tuple[bool, bool]:
    """Running before waiting, with a table before without; of equals the first, which is the one that carries packets."""
    return found.state.running, found.state.table_fd is not None


def is_running(run_dir: Path) -> int | None:
    """The pid of the process of this run directory, 0 when it takes no connection, None when there is none; nothing is changed.

    One that took over while no agent ran has its socket at the place beside still.
    """
    carrying = is_somebody(run_dir / SOCKET_NAME)
    return carrying if carrying is not None else is_somebody(run_dir / FRESH_SOCKET_NAME)
