"""Commands that run inside a sandbox, as seen from outside: their environment, and signals that reach them through nsenter."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from flanpy.errors import LabError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment with sbin on the path (ip and nft live there) and ``extra`` on top."""
    path = os.environ.get("PATH", "")
    return {**os.environ, "PATH": f"{path}:{SYSTEM_PATH}" if path else SYSTEM_PATH, **(extra or {})}


def require_tool(name: str, package: str) -> None:
    """Raise LabError with the Debian package when a program is not installed."""
    if shutil.which(name, path=environment()["PATH"]) is None:
        raise LabError(f"{name}: not found on this machine; install it with `apt-get install {package}`")


class Entered(subprocess.Popen[str]):
    """A command inside the sandbox; ``pid`` is nsenter's, ``inner`` the command's own (as seen from here)."""

    def inner(self, timeout_s: float = 5.0) -> int:
        """The pid of the command itself, outside's numbering; waits for nsenter to fork. Raises LabError when it has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.poll() is None:
            for child in children_of(self.pid):
                return child
            time.sleep(0.002)
        raise LabError(f"{shlex.join(map(str, self.args))}: has ended, there is no process to signal")  # type: ignore[arg-type]

    def send_signal(self, sig: int) -> None:
        """Signal the command, not nsenter around it; a command that has ended is left alone."""
        with suppress(LabError, ProcessLookupError):
            os.kill(self.inner(), sig)


def children_of(parent: int) -> Iterator[int]:
    """Pids of the direct children of a process (by /proc/*/stat: not every kernel has task/*/children)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(after_name[1]) == parent:
                    yield int(entry.name)


def has_ended(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a process is no more; one that only waits to be reaped by its parent has ended.

    The first of several threads may be a zombie while another still holds the process's sockets (proc(5), /proc/pid/task), so
    a process has ended when no other thread is left.
    """
    try:
        state = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        return state in "ZX" and len(list((proc / str(pid) / "task").iterdir())) <= 1
    except OSError:
        return True
