"""Says to the outside that the node is ready: subnet.env (CNI waits for it), the service manager, the log.

subnet.env is written last of all and again whenever its content changes or somebody else has changed it; it stays when the agent stops, as
flanneld's does. Who writes it again and again (another flanneld) is not fought at every look: the waits grow.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from flanpy.agent.files import write_atomically
from flanpy.agent.logs import event
from flanpy.agent.notify import notify
from flanpy.config.options import AgentOptions
from flanpy.core.subnet_env import render_subnet_env
from flanpy.model import NetworkConfig, Subnets

log = logging.getLogger(__name__)


WAIT_S = (1.0, 16.0)
"""Least and most wait before a file that could not be written, or did not stay as it was, is written again."""
CALM_S = 60.0
"""A file that stayed ours for so long begins with the least wait again."""
Mark = tuple[int, int, int]


class Readiness:
    """Remembers what was said; called by the loop alone."""

    def __init__(self, path: Path, ip_masq: bool) -> None:
        self._path = path
        self._ip_masq = ip_masq
        self._text: str | None = None
        self._mark: Mark | None = None
        self._wait_s = WAIT_S[0]
        self._tried_s = 0.0
        self.problem: str | None = "not in sync yet"

    def use(self, options: AgentOptions) -> None:
        """Say by these options from the next pass on whether the agent masquerades."""
        self._ip_masq = options.ip_masq

    @property
    def ready(self) -> bool:
        """Whether subnet.env stands there as it should."""
        return self.problem is None

    def is_due(self, now_s: float) -> bool:
        """Whether the file is not what was written (one stat), and the wait before the next try is over."""
        return self._text is not None and not self._untouched() and now_s >= self._tried_s + self._wait_s

    def reached(self, config: NetworkConfig, subnets: Subnets, mtu_bytes: int) -> None:
        """The machine is as desired: write subnet.env if it differs, and tell the service manager the first time."""
        text = render_subnet_env(config, subnets, mtu_bytes, self._ip_masq)
        now_s = time.monotonic()
        if text == self._text and not self.is_due(now_s):
            return
        self._wait_s = self._next_wait(text, now_s)
        if text == self._text and self._mark is not None:
            log.warning("%s was changed by somebody else", self._path, extra=event("subnet_file_changed", file=str(self._path)))
        self._text, self._mark, self._tried_s = text, None, now_s
        try:
            write_atomically(self._path, text)
        except OSError as error:
            self._failed(f"--subnet-file: cannot write {self._path}: {error.strerror}")
            return
        self._mark, self.problem = _mark(self._path), None
        log.info("subnet %s, %s written", subnets, self._path, extra=event("ready", subnet=str(subnets), file=str(self._path)))
        notify(READY="1", STATUS=f"subnet {subnets}")

    def _untouched(self) -> bool:
        return self._mark is not None and _mark(self._path) == self._mark

    def _next_wait(self, text: str, now_s: float) -> float:
        """The least wait for a new text, or after a calm; else twice the last one."""
        calm = text != self._text or now_s - self._tried_s > CALM_S
        return WAIT_S[0] if calm else min(2 * self._wait_s, WAIT_S[1])

    def _failed(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s", problem, extra=event("subnet_file_failed", problem=problem))
        self.problem = problem


def _mark(path: Path) -> Mark | None:
    """What changes when somebody writes, replaces or removes a file: inode, time of change, size."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
