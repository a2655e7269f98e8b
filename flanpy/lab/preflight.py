"""Looks whether this machine can hold a lab, before anything is made; says everything that is missing at once, with the cure."""

from __future__ import annotations

import errno
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from flanpy.errors import LabError
from flanpy.lab.process import environment

TUN = Path("/dev/net/tun")
PROGRAMS = {
    "nsenter": "util-linux",
    "setsid": "util-linux",
    "ip": "iproute2",
    "bridge": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
    "ethtool": "ethtool",
    "sysctl": "procps",
    "ping": "iputils-ping",
    "etcd": "etcd-server",
}
"""Program -> its Debian package."""


def check_machine(datapath: str, further: Sequence[tuple[str, str]] = ()) -> None:
    """Raise LabError when a lab cannot run here; ``further`` are more programs with their packages."""
    problems = [*_platform(), *_programs({**PROGRAMS, **dict(further)}), *_tun(), *_privilege(datapath)]
    if problems:
        raise LabError("\n".join(["this machine cannot hold a lab:", *(f"  {problem}" for problem in problems)]))


def _platform() -> Iterator[str]:
    system = platform.system()
    if system != "Linux":
        yield f"{system}: labs need Linux (network namespaces)"


def _programs(wanted: dict[str, str]) -> Iterator[str]:
    missing = [name for name in wanted if shutil.which(name, path=environment()["PATH"]) is None]
    if missing:
        packages = " ".join(sorted({wanted[name] for name in missing}))
        yield f"not installed: {', '.join(missing)}; on Debian: apt-get install {packages}"


def _tun() -> Iterator[str]:
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        yield f"{TUN} is missing: load the kernel module (`modprobe tun`, CONFIG_TUN)"
    except PermissionError:
        yield f"{TUN} may not be opened: run the lab as root, or `chmod 0666 {TUN}` once as root (Debian's usual mode)"
    except OSError as error:
        cure = "the kernel lacks CONFIG_TUN, or `modprobe tun` is needed" if error.errno == errno.ENODEV else "run it as root"
        yield f"{TUN}: {error.strerror}; {cure}"


def _privilege(datapath: str) -> Iterator[str]:
    if datapath == "ebpf" and os.geteuid() != 0:
        yield "--datapath ebpf needs root: run the lab as root, or take --datapath userspace"
