"""Which datapath process carries this node's packets, in a file beside its socket: ``datapath.pid``, "PID UID GID IDENTITY BOOT".

It is found by its socket. One that has closed it, which ours never do, but somebody who has taken it over may, would go on reading the same
queues beside the next; by this file it is found all the same. The identity tells it from a later process with its pid: the inode of a
pidfd (Linux 6.9 and newer: unique until the next boot), else the start time (proc_pid_stat(5)), where that can be seen.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from flanpy.datapath.process_life import Life

RECORD_NAME = "datapath.pid"
_BYTES_MAX = 256
_FORM = re.compile(r"([0-9]{1,10}) ([0-9]{1,10}) ([0-9]{1,10}) ([a-z]+:[0-9]{1,20}) ([0-9a-f-]{1,64})\n", re.ASCII)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def write(run_dir: Path, pid: int, user: tuple[int, int]) -> None:
    """Write down this process, which lives; where that cannot be done it is found by its socket alone."""
    with suppress(OSError):
        identity = _identity_of(pid)
        if identity is None:
            return
        fresh = run_dir / f"{RECORD_NAME}.new"
        fresh.unlink(missing_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{pid} {user[0]} {user[1]} {identity} {_BOOT_ID.read_text(encoding='ascii').strip()}\n")
        fresh.replace(run_dir / RECORD_NAME)


def forget(run_dir: Path, pid: int) -> None:
    """This process has ended."""
    with suppress(OSError):
        if (found := _FORM.fullmatch(_read(run_dir / RECORD_NAME))) is not None and int(found[1]) == pid:
            (run_dir / RECORD_NAME).unlink()


def recall(run_dir: Path) -> Life | None:
    """The process that was written down, if it still lives and is the same; the caller closes it. Raises OSError (EMFILE)."""
    try:
        found = _FORM.fullmatch(_read(run_dir / RECORD_NAME))
        if found is None or found[5] != _BOOT_ID.read_text(encoding="ascii").strip():
            return None
    except OSError:
        return None
    pid, uid, gid = (int(found[number]) for number in (1, 2, 3))
    if not 1 < pid < 2**31 or not max(uid, gid) < 2**32 - 1:
        return None
    try:
        life = Life(pid, os.pidfd_open(pid), (uid, gid))
    except (ProcessLookupError, PermissionError):
        return None
    if life.has_ended or _identity_of(pid) != found[4]:
        life.close()
        return None
    return life


def _identity_of(pid: int) -> str | None:
    """What no other process of this boot is told by; None where the kernel does not let us see it."""
    theirs = _inode_of(pid)
    if theirs is not None and theirs != _inode_of(os.getpid()):
        return f"inode:{theirs}"
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return f"start:{int(fields[19])}"
    return None


def _inode_of(pid: int) -> int | None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _read(path: Path) -> str:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return ""
        return file.read(_BYTES_MAX).decode("ascii", "replace")
