"""Messages to the service manager (sd_notify(3)): READY, STATUS, WATCHDOG, STOPPING, FDSTORE. Does nothing where there is none."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence

_FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
_TUN, _UDP = "flanpy-tun", "flanpy-udp"
"""Names in the store: of the TUN queues, and of the UDP sockets, each in the order of the queues."""


def notify(**fields: str) -> None:
    """Send ``KEY=value`` lines to $NOTIFY_SOCKET, e.g. ``notify(READY="1", STATUS="...")``; never fails, never blocks."""
    _send(fields, ())


def _send(fields: Mapping[str, str], descriptors: Sequence[int]) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    text = "\n".join(f"{key}={value}" for key, value in fields.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        socket.send_fds(sender, [text.encode()], list(descriptors))


def watchdog_s(environment: Mapping[str, str], pid: int) -> float | None:
    """How often the service manager wants to hear from this process, seconds; None when it does not (sd_watchdog_enabled(3))."""
    text, for_pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or (for_pid and for_pid != str(pid)):
        return None
    return int(text) / 1e6


class DescriptorStore:
    """The service manager's descriptor store (systemd: FileDescriptorStoreMax=): what outlives agent and datapath process alike.

    It has copies of the TUN queues and UDP sockets, so that device, routes and waiting packets survive when both were killed; a
    new agent gets them by LISTEN_FDS and LISTEN_FDNAMES (sd_listen_fds(3)). ``tun`` and ``udp`` are what was got, in order.
    """

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        names = environment.get("LISTEN_FDNAMES", "").split(":")
        got = dict(enumerate(names[: _count(environment, pid)], _FIRST_FD))
        for fd in got:
            os.set_inheritable(fd, False)
        self.tun = tuple(fd for fd, name in got.items() if name == _TUN)
        self.udp = tuple(fd for fd, name in got.items() if name == _UDP)
        self._others = tuple(fd for fd, name in got.items() if name not in (_TUN, _UDP))

    def close(self) -> None:
        """Close our copies of what was got; the store keeps its own. Safe to call twice."""
        for fd in (*self.tun, *self.udp, *self._others):
            os.close(fd)
        self.tun = self.udp = self._others = ()

    def keep(self, tun: Sequence[int], udp: Sequence[int]) -> None:
        """Let the store have these in the place of what it has; FDPOLL=0, for a deleted TUN device would look like a hang-up."""
        for name, fds in ((_TUN, tun), (_UDP, udp)):
            notify(FDSTOREREMOVE="1", FDNAME=name)
            _send({"FDSTORE": "1", "FDNAME": name, "FDPOLL": "0"}, fds)

    def forget(self, *, tun: bool = True, udp: bool = True) -> None:
        """Let the store have none of these: the datapath is being torn down, or they are of no use and hold a device or a port.

        The service manager does that when it gets round to it."""
        for name, gone in ((_TUN, tun), (_UDP, udp)):
            if gone:
                notify(FDSTOREREMOVE="1", FDNAME=name)


def _count(environment: Mapping[str, str], pid: int) -> int:
    """How many descriptors were passed to this very process."""
    text = environment.get("LISTEN_FDS", "")
    return int(text) if environment.get("LISTEN_PID") == str(pid) and text.isdecimal() and len(text) < 5 else 0


class ServiceManager:
    """Says how we are, at every change, and that the loop turns, when asked to; called by the loop alone."""

    def __init__(self, environment: Mapping[str, str], most_s: float) -> None:
        watchdog = watchdog_s(environment, os.getpid())
        self.is_there = bool(environment.get("NOTIFY_SOCKET"))
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
