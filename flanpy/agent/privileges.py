"""The agent gives up, as it starts, every capability that it does not need, and the means to gain others (capabilities(7), no_new_privs).

    NET_ADMIN         devices, routes, rules, TUN                  SETUID, SETGID, SETPCAP   the datapath process takes another user
    NET_RAW           probes of paths; iptables                    BPF, PERFMON              the ebpf datapath
    NET_BIND_SERVICE  ports below 1024
    SYS_ADMIN         only while bpffs is not mounted and ebpf may run: to mount it
    DAC_READ_SEARCH   only when a file of a flag (etcd's key, a certificate) is not root's, and perhaps read by its owner alone

What the agent starts (nft, iptables, etcd, commands of the extension backend) has no more. ``--keep-capabilities`` leaves all as it is.
Capabilities are a thread's own: called once, before there is a second thread.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flanpy.datapath.ebpf_pins import BPFFS, is_bpffs

NUMBERS = {
    "dac_read_search": 2,
    "setgid": 6,
    "setuid": 7,
    "setpcap": 8,
    "net_bind_service": 10,
    "net_admin": 12,
    "net_raw": 13,
    "sys_admin": 21,
    "perfmon": 38,
    "bpf": 39,
}
"""Of linux/capability.h."""
ALWAYS = frozenset(NUMBERS) - {"dac_read_search", "sys_admin"}
_LAST = 63
_VERSION_3 = 0x20080522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 23, 24, 38, 47, 4


@dataclass(frozen=True, slots=True)
class Sets:
    """Capability sets of the calling thread, as bit masks."""

    effective: int
    permitted: int
    inheritable: int


def needed(datapath: str, files: Iterable[str]) -> frozenset[str]:
    """What this agent needs, by name, given its ``--datapath`` and the files that its flags name."""
    more = set()
    if datapath != "userspace" and not is_bpffs(BPFFS):
        more.add("sys_admin")
    if any(_is_another_s(Path(name)) for name in files if name):
        more.add("dac_read_search")
    return ALWAYS | more


def keep_only(names: frozenset[str]) -> tuple[str, ...]:
    """Give up all others, for good. Returns what of ``names`` this process does not have. Raises OSError."""
    wanted = sum(1 << NUMBERS[name] for name in names)
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(_LAST + 1):
        if not wanted >> number & 1 and libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            libc.prctl(
                _PR_CAPBSET_DROP, number, 0, 0, 0
            )  # refused without SETPCAP; with no_new_privs exec fills up nothing anyway
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    before = current(libc)
    kept = before.permitted & wanted
    _set(libc, Sets(kept, kept, 0))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    return tuple(sorted(name for name in names if not before.permitted >> NUMBERS[name] & 1))


def current(libc: ctypes.CDLL | None = None) -> Sets:
    """What the calling thread has."""
    header, data = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if (libc or ctypes.CDLL(None, use_errno=True)).capget(header, data):
        raise OSError(ctypes.get_errno(), f"capget: {os.strerror(ctypes.get_errno())}")
    return Sets(*(data[i] | data[i + 3] << 32 for i in range(3)))


def _set(libc: ctypes.CDLL, sets: Sets) -> None:
    masks = (sets.effective, sets.permitted, sets.inheritable)
    words = [mask & 0xFFFFFFFF for mask in masks] + [mask >> 32 for mask in masks]
    if libc.capset((ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)(*words)):
        raise OSError(ctypes.get_errno(), f"capset: {os.strerror(ctypes.get_errno())}")


def _is_another_s(path: Path) -> bool:
    try:
        return path.stat().st_uid != os.geteuid()
    except OSError:
        return False
