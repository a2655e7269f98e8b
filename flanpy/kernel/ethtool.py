"""ethtool's ioctl: a request about a device, and what the kernel makes of it.

struct ifreq               char name[16] | void *data | 16 bytes                                        linux/if.h
data                       u32 command | what linux/ethtool.h says of it; the kernel answers in its place
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

_SIOCETHTOOL = 0x8946


def ask(device: str, request: bytes) -> bytes:
    """The request as the kernel leaves it, from any thread of the namespace. Raises OSError as the kernel gave it."""
    memory = ctypes.create_string_buffer(request, len(request))
    question = struct.pack("@16sP16x", os.fsencode(device)[:15], ctypes.addressof(memory))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        fcntl.ioctl(asked, _SIOCETHTOOL, question)
    return memory.raw
