"""Messages to the service manager (sd_notify(3)): READY, STATUS, STOPPING. Does nothing where there is none."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(**fields: str) -> None:
    """Send ``KEY=value`` lines to $NOTIFY_SOCKET, e.g. ``notify(READY="1", STATUS="...")``; never fails, never blocks."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    text = "\n".join(f"{key}={value}" for key, value in fields.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)
