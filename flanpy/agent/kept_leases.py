"""The file that kept leases outlive the agent in: ``kept-leases.json`` in the run directory, gone with the next boot.

An agent that is killed or upgraded within the grace time of a peer would forget it otherwise, for etcd has its lease no more. What the
file says is ``core.kept_file``'s. Called by the loop's thread alone.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from flanpy.agent.files import write_atomically
from flanpy.agent.logs import event
from flanpy.core import kept_file
from flanpy.core.grace import Grace
from flanpy.model import KeptLease

log = logging.getLogger(__name__)

FILE = "kept-leases.json"
PAUSE_S = 1.0
"""While leases come back one after the other, the file follows so often."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class KeptLeases:
    """Reads the file once, and writes it after changes; a file that cannot be had costs nothing but itself."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE
        self._written: Mapping[str, KeptLease] = {}
        self._due_s = float("-inf")

    def load(self, grace: Grace) -> Mapping[str, KeptLease]:
        """What an earlier agent of this boot has kept and is still to be kept."""
        text = _read(self._path)
        kept = {} if text is None else kept_file.parse(text, _boot(), grace, time.monotonic())
        self._written = kept
        return kept

    def save(self, kept: Mapping[str, KeptLease]) -> float | None:
        """Write them, if they are others than those that stand there; when to call again, None: they stand there now."""
        now_s = time.monotonic()
        if kept == self._written:
            return None
        if now_s < self._due_s:
            return self._due_s
        self._due_s = now_s + PAUSE_S
        try:
            if kept:
                write_atomically(self._path, kept_file.render(kept, _boot()), 0o600)
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            text = "%s: kept leases cannot be written (%s); a restart of the agent would forget them"
            log.warning(text, self._path, error.strerror, extra=event("kept_leases_unwritten", reason=str(error.strerror)))
        self._written = kept
        return None


def _read(path: Path) -> str | None:
    """Never waits, and follows no link: the directory is ours alone, but what is in it may be older than we."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_size > kept_file.TEXT_BYTES_MAX:
                return None
            return file.read(kept_file.TEXT_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError):
        return None


def _boot() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
