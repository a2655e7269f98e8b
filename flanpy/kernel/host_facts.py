"""Facts of this host that no file tells: whether its clock is synchronised, whether a device merges packets for good. Reads only."""

from __future__ import annotations

import ctypes
import struct

from flanpy.kernel import ethtool

_TIMEX_BYTES = 512
"""More than struct timex has on any platform (208 on 64 bits)."""
_TIME_ERROR = 5
_ETHTOOL_GFLAGS, _FLAG_LRO = 0x25, 1 << 15


def clock_synchronised() -> bool:
    """Whether something keeps the clock right (adjtimex(2) with no mode set: asks, changes nothing)."""
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return state not in (_TIME_ERROR, -1)


def large_receive_offload(device: str) -> bool | None:
    """Whether LRO is on (linux/ethtool.h, ETHTOOL_GFLAGS); None when the driver does not tell or there is no such device."""
    try:
        answer = ethtool.ask(device, struct.pack("=II", _ETHTOOL_GFLAGS, 0))
    except OSError:
        return None
    return bool(struct.unpack("=II", answer)[1] & _FLAG_LRO)
