"""What the ebpf datapath needs of the underlay interface and the process at its start: what it refuses, what it does without.

Only looks; changes nothing.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flanpy.errors import DatapathError, PlatformError
from flanpy.model import Address

_SIOCGIFHWADDR, _ARPHRD_ETHER, _ARPHRD_LOOPBACK = 0x8927, 1, 772

_NAMES = {512: "ppp", 768: "ipip", 769: "ip6tnl", 776: "sit", 778: "gre", 65534: "tun, wireguard or another without link header"}


def require_ethernet(device: str) -> None:
    """The programs write and expect a link header of 14 bytes. Raises PlatformError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            answer = fcntl.ioctl(asked, _SIOCGIFHWADDR, struct.pack("16s24x", device.encode()))
        except OSError as error:
            raise DatapathError(f"{device}: there is no such interface any more") from error
    (kind,) = struct.unpack_from("=H", answer, 16)
    if kind not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK):
        raise PlatformError(
            f"{device}: ebpf needs an underlay interface with Ethernet headers (type {_ARPHRD_ETHER}), this one has type {kind}"
            f" ({_NAMES.get(kind, 'see linux/if_arp.h')}): use --datapath userspace"
        )


def may_send_raw() -> bool:
    """Whether probes of the paths can be sent."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except PermissionError:
        return False
    return True


def degraded(underlay: str, address: Address, *, can_probe: bool) -> Iterator[str]:
    """What is slower here than it could be, with the cure."""
    if not can_probe:
        yield "CAP_NET_RAW is not held: paths are not probed, so that fewer superpackets go whole; give it (systemd: AmbientCapabilities=)"
    family = f"ipv{address.version}"
    sysctl = Path("/proc/sys/net") / family / "conf" / underlay / "forwarding"
    with suppress(OSError):
        if sysctl.read_text(encoding="ascii").strip() == "0":
            yield f"forwarding is off at {underlay}: userspace sends everything; sysctl -w net.{family}.conf.{underlay}.forwarding=1"
