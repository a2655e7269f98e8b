"""Addresses of a host name, as this machine resolves names (hosts file, DNS), within a bounded time. Reads only."""

from __future__ import annotations

import re
import socket
import threading
from ipaddress import ip_address

from flanpy.model import Address

WITHIN_S = 1.0
"""A name server that does not answer holds a command up no longer; the hosts file takes no time."""
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_.])?")


def addresses_of(name: str, within_s: float = WITHIN_S) -> tuple[Address, ...]:
    """In the resolver's order; empty when the name is none, is not known, or nobody has answered in time."""
    if not _NAME.fullmatch(name):
        return ()
    found: list[Address] = []
    # the resolver cannot be told how long to try; its thread ends with the process
    thread = threading.Thread(target=_resolve, args=(name, found), name="resolver", daemon=True)
    thread.start()
    thread.join(within_s)
    return tuple(dict.fromkeys(found))


def _resolve(name: str, found: list[Address]) -> None:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return
    found += [ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
