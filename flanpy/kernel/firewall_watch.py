"""Tells when our rules may have been changed: a thread that reads nftables' notifications (iptables-nft's changes are among them).

    nlmsghdr   type = subsystem << 8 | message      then   struct nfgenmsg  u8 family | u8 version | be16 resource
    attributes 1 = the table's name in every message that concerns us; a rule's chain is 2, a chain's name is 3

What the kernel could not deliver counts as a change. What comes within 50 ms is told once. iptables-legacy tells nobody.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable

from flanpy.core.rules_iptables import SPOTS
from flanpy.core.rules_nft import TABLE
from flanpy.kernel.messages import Message, attributes, split
from flanpy.kernel.netlink import explained

_NETLINK_NETFILTER, _NFNLGRP_NFTABLES, _NFNL_SUBSYS_NFTABLES = 12, 7, 10
_DELTABLE, _DELCHAIN, _NEWRULE, _DELRULE = 2, 5, 6, 8
_FAMILY_INET, _FAMILY_IPV4, _FAMILY_IPV6 = 1, 2, 10
_NFGENMSG_BYTES = 4
_BUFFER_BYTES = 1 << 20
_DATAGRAM_BYTES = 65536
_BURST_S = 0.05
_BURST_DATAGRAMS = 256
_IPTABLES = {spot.table: (spot.chain, spot.hook) for spot in SPOTS}


def concerns_us(message: Message) -> bool:
    """Whether a notification is about our table, or about what is ours in iptables' tables."""
    if message.kind >> 8 != _NFNL_SUBSYS_NFTABLES or len(message.body) < _NFGENMSG_BYTES:
        return False
    family, kind = message.body[0], message.kind & 0xFF
    found = {number: payload.rstrip(b"\0").decode("ascii", "replace") for number, payload in attributes(message.body, 4).items()}
    table = found.get(1, "")
    if family == _FAMILY_INET:
        return table == TABLE
    if family not in (_FAMILY_IPV4, _FAMILY_IPV6) or table not in _IPTABLES:
        return False
    chain, hook = _IPTABLES[table]
    return (
        kind == _DELTABLE
        or (kind == _DELCHAIN and found.get(3) == chain)
        or (kind in (_NEWRULE, _DELRULE) and found.get(2) == chain)
        or (kind == _DELRULE and found.get(2) == hook)
    )


class RulesWatch:
    """Watches the network namespace of the thread that makes it; ``sink`` is called in a thread of its own."""

    def __init__(self, sink: Callable[[], None]) -> None:
        self._sink = sink
        with explained("watch the firewall"):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
                self._socket.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError:
                self._socket.close()
                raise
        self._thread = threading.Thread(target=self._run, name="rules-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and close the socket; safe to call twice."""
        if self._wake < 0:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._socket.close()
        os.close(self._wake)
        self._wake = -1

    def _run(self) -> None:
        poll, only_wake = select.poll(), select.poll()
        poll.register(self._socket, select.POLLIN)
        for each in (poll, only_wake):
            each.register(self._wake, select.POLLIN)
        while True:
            ready = poll.poll()
            if any(fd == self._wake for fd, _ in ready):
                return
            if self._burst():
                self._sink()
            if only_wake.poll(_BURST_S * 1000):
                return

    def _burst(self) -> bool:
        """Read what waits; whether any of it concerns us, or something was lost."""
        concerned = False
        try:
            for _ in range(_BURST_DATAGRAMS):
                data = memoryview(self._socket.recv(_DATAGRAM_BYTES, socket.MSG_DONTWAIT))
                concerned = concerned or any(concerns_us(message) for message in split(data))
        except BlockingIOError:
            pass
        except OSError:
            return True
        return concerned
