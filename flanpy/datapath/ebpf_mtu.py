"""How large a packet the kernel would send to each peer in one piece: by route, by what path MTU discovery has learnt.

The programs' own question (bpf_fib_lookup) hears of learnt and of locked MTUs, not of an unlocked one of a route (`ip route add PEER dev
eth0 mtu 1300`), which a socket does honour. So a socket is asked, as the userspace workers do: connect, which sends nothing, and
IP_MTU (ip(7), ipv6(7)). 2 us a peer; each look asks a bounded number of them, and the next look goes on behind.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from flanpy.model import Address, ForwardTable

AT_ONCE = 1000
"""Peers asked in one look: once a second, and with each new table."""
_IP_MTU, _IPV6_MTU = 14, 24


class PathMtus:
    """The answers so far. Belongs to the network namespace of the thread that makes it."""

    def __init__(self, source: Address) -> None:
        family = socket.AF_INET6 if source.version == 6 else socket.AF_INET
        self._version = source.version
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with suppress(OSError):  # the address is going: routes by source cannot be told apart then
            self._socket.bind((str(source), 0))
        self._peers: tuple[Address, ...] = ()
        self._next = 0
        self.narrow: dict[Address, int] = {}
        """Bytes of an outer packet to each peer that takes less than the device does."""

    def of_table(self, table: ForwardTable, device_bytes: int) -> None:
        """Look after these peers from now on, and at the first of them at once."""
        hops = {id(entry.hop): entry.hop for entry in table.entries}
        self._peers = tuple(hop.address for hop in hops.values() if hop.address.version == self._version)
        if self.narrow:
            there = set(self._peers)
            self.narrow = {peer: known for peer, known in self.narrow.items() if peer in there}
        self._next = 0
        self.look(device_bytes)

    def look(self, device_bytes: int) -> bool:
        """Ask for the next peers in turn; whether anything has changed."""
        changed = False
        for peer in self._turn():
            found = self._ask(peer)
            narrow = found if found is not None and found < device_bytes else None
            if narrow != self.narrow.get(peer):
                changed = True
                if narrow is None:
                    del self.narrow[peer]
                else:
                    self.narrow[peer] = narrow
        return changed

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        self._socket.close()

    def _turn(self) -> Sequence[Address]:
        peers = tuple(islice(self._peers, self._next, self._next + AT_ONCE))
        self._next = self._next + len(peers) if self._next + len(peers) < len(self._peers) else 0
        return peers

    def _ask(self, peer: Address) -> int | None:
        with suppress(OSError):  # no route: nothing is sent there either
            self._socket.connect((str(peer), 9))
            asked = (socket.IPPROTO_IPV6, _IPV6_MTU) if self._version == 6 else (socket.IPPROTO_IP, _IP_MTU)
            return int(self._socket.getsockopt(*asked))
        return None
