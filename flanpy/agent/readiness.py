"""Says to the outside that the node is ready: subnet.env (CNI waits for it), the service manager, the log.

subnet.env is written last of all and again whenever its content changes; it stays when the agent stops, as flanneld's does.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flanpy.agent.files import write_atomically
from flanpy.agent.logs import event
from flanpy.agent.notify import notify
from flanpy.core.subnet_env import render_subnet_env
from flanpy.model import NetworkConfig, Subnets

log = logging.getLogger(__name__)


class Readiness:
    """Remembers what was said; called by the loop alone."""

    def __init__(self, path: Path, ip_masq: bool) -> None:
        self._path = path
        self._ip_masq = ip_masq
        self._written: str | None = None
        self.problem: str | None = "not in sync yet"

    @property
    def ready(self) -> bool:
        """Whether subnet.env stands there as it should."""
        return self.problem is None

    def reached(self, config: NetworkConfig, subnets: Subnets, mtu_bytes: int) -> None:
        """The machine is as desired: write subnet.env if it differs, and tell the service manager the first time."""
        text = render_subnet_env(config, subnets, mtu_bytes, self._ip_masq)
        if text == self._written and self._path.exists():
            return
        try:
            write_atomically(self._path, text)
        except OSError as error:
            self._failed(f"--subnet-file: cannot write {self._path}: {error.strerror}")
            return
        self._written, self.problem = text, None
        log.info("subnet %s, %s written", subnets, self._path, extra=event("ready", subnet=str(subnets), file=str(self._path)))
        notify(READY="1", STATUS=f"subnet {subnets}")

    def _failed(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s", problem, extra=event("subnet_file_failed", problem=problem))
        self.problem = problem
