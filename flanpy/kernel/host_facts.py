"""Facts of this host that no file tells: whether its clock is synchronised, whether a device merges packets for good. Reads only."""

from __future__ import annotations

import array
import ctypes
import fcntl
import socket
import struct

_TIMEX_BYTES = 512
"""More than struct timex has on any platform (208 on 64 bits)."""
_TIME_ERROR = 5
_SIOCETHTOOL, _ETHTOOL_GFLAGS, _FLAG_LRO = 0x8946, 0x25, 1 << 15
_NAME_BYTES, _IFREQ_BYTES = 16, 40


def clock_synchronised() -> bool:
    """Whether something keeps the clock right (adjtimex(2) with no mode set: asks, changes nothing)."""
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return state not in (_TIME_ERROR, -1)


def large_receive_offload(device: str) -> bool | None:
    """Whether LRO is on (linux/ethtool.h, ETHTOOL_GFLAGS); None when the driver does not tell or there is no such device."""
    value = array.array("I", [_ETHTOOL_GFLAGS, 0])
    request = struct.pack(f"{_NAME_BYTES}sP", device.encode()[: _NAME_BYTES - 1], value.buffer_info()[0]).ljust(
        _IFREQ_BYTES, b"\0"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        try:
            fcntl.ioctl(asking, _SIOCETHTOOL, request)
        except OSError:
            return None
    return bool(value[1] & _FLAG_LRO)
