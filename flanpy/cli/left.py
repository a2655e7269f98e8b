"""What goes on without an agent on this host, in words: the first question of whoever finds that it has ended.

Looks and changes nothing, needs no privilege for most of it, and imports little, for every command that asks the agent may come here.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

_SO_NETNS_COOKIE = 71
_PINS = Path("/sys/fs/bpf/flanpy")
_DEVICES = ("flannel.", "flannel-v6.", "flannel-wg", "flannel.ipip")
_ADVICE = (
    "No node that comes, goes or moves is followed meanwhile, and the lease is not renewed: start the agent again "
    "(`systemctl start flanpy`), or take everything off this host by `flanpy cleanup`."
)


def left_behind(run_dir: Path) -> str:
    """What carries packets here, and what to do; "" when nothing of ours is seen."""
    found = [*_process(run_dir), *_programs(), *_links()]
    if not found:
        return ""
    return f"Packets go on by the last table and routes: {', '.join(found)}. {_ADVICE}"


def _process(run_dir: Path) -> list[str]:
    """Whoever listens on the datapath's socket; its credentials are the listener's own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as asked:
        asked.settimeout(1.0)
        try:
            asked.connect(str(run_dir / "datapath.sock"))
            pid, _, _ = struct.unpack("iII", asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return []
    return [f"the datapath process {pid} lives"]


def _programs() -> list[str]:
    """Pinned programs of this network namespace; only root may look."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, contextlib.suppress(OSError):
        (cookie,) = struct.unpack("=Q", asked.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))
        if any(path.name.startswith("prog_") for path in (_PINS / f"flannel0@{cookie}").iterdir()):
            return ["the BPF programs are in place"]
    return []


def _links() -> list[str]:
    names = sorted(name for _, name in socket.if_nameindex() if name.startswith(_DEVICES))
    return [f"device {name} is there" for name in names]
