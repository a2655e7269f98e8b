"""The thread that asks the peers' agents over the overlay whether the path to them works, and answers theirs.

    loop ── aim(own address, targets) ──▶ thread ── UDP on the tunnel address ── peers         health() ◀── anybody, under the lock

Rules, format and bounds are ``core.peer_probes``'s; here are the socket, the clock and the nonces. A path that is down is looked at from
the underlay too: a datagram to the node's own address is refused by a living kernel (ICMP port unreachable), which needs no privilege
and no listener there. Nothing here can stop the agent: a socket that cannot be had is said once and tried again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from ipaddress import ip_address

from flanpy.agent.logs import event
from flanpy.core.peer_probes import NONCE_BYTES, PROBE_BYTES, PeerHealth, PeerProbes, Send, Target
from flanpy.model import Address

log = logging.getLogger(__name__)

REOPEN_S = 5.0
LOOKS_MAX = 32
"""Nodes that are looked at from the underlay at a time."""
LOOK_WAIT_S = 1.0
LOOK_EVERY_S = 5.0
_BATCH = 64
"""Packets that are taken at a time: a flood does not keep our own probes waiting."""
_IP_RECVERR, _IPV6_RECVERR, _IP_FREEBIND, _IPV6_FREEBIND = 11, 25, 15, 78
_MSG_ERRQUEUE = 0x2000
_GONE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)


class PeerProber:
    """Runs from ``start`` to ``close``; belongs to the network namespace of the thread that starts it."""

    def __init__(self, interval_s: float, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._probes = PeerProbes(interval_s, lambda: os.urandom(NONCE_BYTES))
        self._own: Address | None = None
        self._socket: socket.socket | None = None
        self._bound: Address | None = None
        self._reopen_s = 0.0
        self._problem: str | None = None
        self._looks: dict[socket.socket, tuple[Target, float]] = {}
        self._looked_s: dict[Address, float] = {}
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="peer-probes", daemon=True)

    def start(self) -> None:
        """Begin; nobody is asked before ``aim``."""
        self._thread.start()

    def aim(self, own: Address | None, targets: Mapping[Address, Target]) -> None:
        """Ask these from this address of ours, and answer them."""
        with self._lock:
            self._own = own
            self._probes.aim(targets, time.monotonic())
        os.eventfd_write(self._wake, 1)

    def health(self) -> dict[Address, PeerHealth]:
        """What is known of each peer, by its tunnel address; times are those of time.monotonic()."""
        with self._lock:
            return self._probes.health()

    def close(self) -> None:
        """Stop asking and answering; called once."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join(timeout=2)
        if not self._thread.is_alive():
            os.close(self._wake)

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        finally:
            for each in (self._socket, *self._looks):
                if each is not None:
                    each.close()

    def _turn(self) -> None:
        self._follow_address()
        now_s = time.monotonic()
        with self._lock:
            packets = self._probes.due(now_s) if self._socket is not None else []
            deadline_s = self._probes.deadline_s() if self._socket is not None else None
        for packet in packets:
            self._send(packet)
        self._look(now_s)
        moments = [at for at in (deadline_s, *(until_s for _, until_s in self._looks.values())) if at is not None]
        if self._own is not None and self._socket is None:
            moments.append(self._reopen_s)
        self._wait(min(moments) - time.monotonic() if moments else None)

    def _wait(self, wait_s: float | None) -> None:
        """Until something comes in, somebody wakes us, or the time is over."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        readable = {each.fileno(): each for each in (self._socket, *self._looks) if each is not None}
        for number in readable:
            poll.register(number, select.POLLIN)
        for number, _ in poll.poll(None if wait_s is None else max(0.0, wait_s) * 1000):
            if number == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif (found := readable[number]) is self._socket:
                self._receive(found)
            else:
                self._looked(found)

    def _follow_address(self) -> None:
        """Have a socket on the address that is ours now."""
        own = self._own
        if own == self._bound and (self._socket is not None or own is None):
            return
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._bound = own
        if own is None or time.monotonic() < self._reopen_s:
            return
        try:
            self._socket, self._problem = _open(own, self._port), None
        except OSError as error:
            self._reopen_s = time.monotonic() + REOPEN_S
            if (problem := str(error)) != self._problem:
                log.warning(
                    "no peer probes: UDP %s port %d: %s (--peer-probe-port)",
                    own,
                    self._port,
                    error.strerror,
                    extra=event("peer_probes_failed", address=str(own), port=self._port, reason=problem),
                )
            self._problem = problem

    def _send(self, packet: Send) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # a full queue or no way there: the probe is lost, which is what is measured
                self._socket.sendto(packet.payload, (str(packet.address), packet.port))

    def _receive(self, found: socket.socket) -> None:
        self._errors(found)
        for _ in range(_BATCH):
            try:
                data, source = found.recvfrom(PROBE_BYTES + 1)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error that the queue has told in full
                continue
            with self._lock:
                answer = self._probes.receive(ip_address(source[0].partition("%")[0]), source[1], data, time.monotonic())
            if answer is not None:
                self._send(answer)

    def _errors(self, found: socket.socket) -> None:
        """ICMP errors about our probes: ``port unreachable`` says that the path works and nobody answers there (ip(7), IP_RECVERR)."""
        for _ in range(_BATCH):
            try:
                _, ancillary, _, name = found.recvmsg(PROBE_BYTES, 512, _MSG_ERRQUEUE)
            except OSError:
                return
            refused = any(len(data) >= 4 and struct.unpack("=I", data[:4])[0] == errno.ECONNREFUSED for _, _, data in ancillary)
            if refused and name:
                with self._lock:
                    self._probes.refused(ip_address(name[0].partition("%")[0]), time.monotonic())

    # ------------------------------------------------------------------------------------------------ the underlay's view

    def _look(self, now_s: float) -> None:
        """Ask the nodes whose path is down at their own address, now and then; a silent one counts as gone."""
        for found, (target, until_s) in list(self._looks.items()):
            if until_s <= now_s:
                self._looked_at(found, target, answers=False)
        with self._lock:
            down = self._probes.down()
        self._looked_s = {target.address: self._looked_s.get(target.address, -LOOK_EVERY_S) for target in down}
        waiting = {target.address for target, _ in self._looks.values()}
        for target in down:
            if (
                len(self._looks) < LOOKS_MAX
                and target.address not in waiting
                and now_s - self._looked_s[target.address] >= LOOK_EVERY_S
            ):
                self._looked_s[target.address] = now_s
                self._begin_look(target, now_s)

    def _begin_look(self, target: Target, now_s: float) -> None:
        family = socket.AF_INET if target.underlay.version == 4 else socket.AF_INET6
        try:
            found = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError:  # out of descriptors: it is looked at later
            return
        self._looks[found] = (target, now_s + LOOK_WAIT_S)
        try:
            found.connect((str(target.underlay), target.port))
            found.send(bytes(PROBE_BYTES))
        except OSError:
            self._looked_at(found, target, answers=False)

    def _looked(self, found: socket.socket) -> None:
        """An answer, or an error that the kernel has for us."""
        target, _ = self._looks[found]
        try:
            found.recv(1)
            answers = True
        except BlockingIOError:
            return
        except OSError as error:
            answers = error.errno not in _GONE
        self._looked_at(found, target, answers=answers)

    def _looked_at(self, found: socket.socket, target: Target, *, answers: bool) -> None:
        del self._looks[found]
        found.close()
        with self._lock:
            self._probes.underlay(target.address, answers=answers)


def _open(own: Address, port: int) -> socket.socket:
    """A socket on our tunnel address, which may be away for a moment while its device is made anew. Raises OSError."""
    family = socket.AF_INET if own.version == 4 else socket.AF_INET6
    found = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if own.version == 4:
            found.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            found.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        else:
            found.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            found.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        found.bind((str(own), port))
    except OSError:
        found.close()
        raise
    return found
