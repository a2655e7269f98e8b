"""A device's offloads by ethtool's ioctl: a look is one question, for it is asked again and again.

ethtool knows features by name, the kernel by the number of a bit, which stays while it runs: each device is asked for them once.

    struct ethtool_sset_info   u32 0x37 | u32 0 | u64 mask of string sets | u32 length                      linux/ethtool.h
    struct ethtool_gstrings    u32 0x1b | u32 string set | u32 length | char name[32] ...
    struct ethtool_gfeatures   u32 0x3a | u32 blocks | { u32 available, requested, active, never changed } ...
    struct ethtool_sfeatures   u32 0x3b | u32 blocks | { u32 valid, requested } ...

From any thread of the namespace. Every call raises OSError as the kernel gave it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from functools import cache

from flanpy.kernel import ethtool

_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_FEATURES_SET = 4
"""ETH_SS_FEATURES."""
_NAME_BYTES = 32
_BLOCKS = 8
"""Of 32 features each; the kernel (2 blocks in Linux 6.18) fills what it has."""
_QUESTION = struct.pack("=II", _GFEATURES, _BLOCKS).ljust(8 + 16 * _BLOCKS, b"\0")
_ANSWER = struct.Struct(f"={4 * _BLOCKS}I")


def active(device: str) -> int:
    """The features that are switched on, as one number, for ``bits``."""
    return _number(_ANSWER.unpack_from(ethtool.ask(device, _QUESTION), 8)[2::4])


def bits(device: str, *names: str) -> int:
    """The bits of features, by ethtool's names. Raises OSError where this kernel does not know one."""
    known = _numbers(device)
    if unknown := [name for name in names if name not in known]:
        raise OSError(errno.EOPNOTSUPP, f"this kernel knows no offload {', '.join(unknown)}")
    return sum(1 << known[name] for name in names)


def switch(device: str, wanted: Callable[[str], bool], *, on: bool) -> None:
    """Switch every feature whose name is ``wanted``, as far as the device lets itself be told."""
    answer = ethtool.ask(device, _QUESTION)
    (blocks,) = struct.unpack_from("=I", answer, 4)  # how many the kernel has, which it wants to be told again
    states = _ANSWER.unpack_from(answer, 8)
    changed = _number(states[0::4]) & bits(device, *filter(wanted, _numbers(device)))
    if changed & (_number(states[2::4]) ^ (changed if on else 0)):
        parts = [changed >> 32 * number & 0xFFFFFFFF for number in range(blocks)]
        words = (word for part in parts for word in (part, part if on else 0))
        ethtool.ask(device, struct.pack(f"=II{2 * blocks}I", _SFEATURES, blocks, *words))


def _number(blocks: tuple[int, ...]) -> int:
    return sum(block << 32 * number for number, block in enumerate(blocks))


@cache
def _numbers(device: str) -> dict[str, int]:
    answer = ethtool.ask(device, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _FEATURES_SET, 0))
    (length,) = struct.unpack_from("=I", answer, 16)
    head = struct.pack("=III", _GSTRINGS, _FEATURES_SET, length)
    names = ethtool.ask(device, head.ljust(len(head) + _NAME_BYTES * length, b"\0"))[len(head) :]
    each = (names[at : at + _NAME_BYTES].split(b"\0")[0] for at in range(0, len(names), _NAME_BYTES))
    return {name.decode("ascii", "replace"): number for number, name in enumerate(each) if name}
