"""Messages to the service manager (sd_notify(3)): READY, STATUS, WATCHDOG, STOPPING. Does nothing where there is none."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


def notify(**fields: str) -> None:
    """Send ``KEY=value`` lines to $NOTIFY_SOCKET, e.g. ``notify(READY="1", STATUS="...")``; never fails, never blocks."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    text = "\n".join(f"{key}={value}" for key, value in fields.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)


def watchdog_s(environment: Mapping[str, str], pid: int) -> float | None:
    """How often the service manager wants to hear from this process, seconds; None when it does not (sd_watchdog_enabled(3))."""
    text, for_pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or (for_pid and for_pid != str(pid)):
        return None
    return int(text) / 1e6


class ServiceManager:
    """Says how we are, at every change, and that the loop turns, when asked to; called by the loop alone."""

    def __init__(self, environment: Mapping[str, str], most_s: float) -> None:
        watchdog = watchdog_s(environment, os.getpid())
        self.interval_s = most_s if watchdog is None else min(most_s, watchdog / 3)
        self._watched = watchdog is not None
        self._said = ""

    def forget(self) -> None:
        """Say the status again though it is no news: somebody has told the service manager something else meanwhile."""
        self._said = ""

    def tell(self, status: str) -> None:
        """Send STATUS if it is news, and WATCHDOG if somebody waits for it."""
        fields = {"STATUS": status} if status != self._said else {}
        if self._watched:
            fields["WATCHDOG"] = "1"
        if fields:
            notify(**fields)
        self._said = status
