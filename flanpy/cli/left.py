"""What goes on without an agent on this host, in words: the first question of whoever finds that it has ended.

Looks and changes nothing, needs no privilege for most of it, and imports little, for every command that asks the agent may come here.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from flanpy.agent.client import SOCKET_NAME

_SO_NETNS_COOKIE = 71
_PINS = Path("/sys/fs/bpf/flanpy")
_DEVICES = ("flannel.", "flannel-v6.", "flannel-wg", "flannel.ipip")
_OUR_PROTOCOL = 102
"""``flanpy.model.ROUTE_PROTOCOL``."""
_GET_ROUTE, _NEW_ROUTE, _DONE, _ERROR, _DUMP_REQUEST = 26, 24, 3, 2, 0x301
_MEANWHILE = "No node that comes, goes or moves is followed meanwhile, and the lease is not renewed: "
_START = "start the agent again (`systemctl start flanpy`), or take everything off this host by `flanpy cleanup`."
_RESTART = "end the agent that hangs, and start it again (`systemctl restart flanpy`)."


def left_behind(run_dir: Path) -> str:
    """What carries packets here, and what to do; "" when nothing of ours is seen."""
    found = [*_process(run_dir), *_programs(), *_links()] or _routes()
    if not found:
        return ""
    advice = _RESTART if _agent_hangs(run_dir) else _START
    return f"Packets go on by the last table and routes: {', '.join(found)}. {_MEANWHILE}{advice}"


def _agent_hangs(run_dir: Path) -> bool:
    """Whether somebody listens on the control socket: one that has ended does not, and one that hangs does, or has too many waiting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as asked:
        try:
            asked.connect(str(run_dir / SOCKET_NAME))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def _process(run_dir: Path) -> list[str]:
    """Whoever listens on the datapath's socket, or beside it, having taken over; its credentials are the listener's own."""
    for name in ("datapath.sock", "datapath.sock.new"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as asked, contextlib.suppress(OSError):
            asked.settimeout(1.0)
            asked.connect(str(run_dir / name))
            pid, _, _ = struct.unpack("iII", asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return [f"the datapath process {pid} lives"]
    return []


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


def _routes() -> list[str]:
    """Of backend host-gw nothing else stays. Asked by netlink here (rtnetlink(7)): whatever else could ask takes long to import."""
    count = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asked, contextlib.suppress(OSError):
        asked.settimeout(1.0)
        asked.send(struct.pack("=IHHII12x", 28, _GET_ROUTE, _DUMP_REQUEST, 1, 0))
        kind = 0
        while kind not in (_DONE, _ERROR):
            for kind, protocol in _messages(asked.recv(65536)):
                count += kind == _NEW_ROUTE and protocol == _OUR_PROTOCOL
    return [f"{count} {'route' if count == 1 else 'routes'} of ours"] if count else []


def _messages(data: bytes) -> Iterator[tuple[int, int]]:
    """Type of each message, and the protocol number where it is a route."""
    at = 0
    while at + 16 <= len(data):
        size, kind = struct.unpack_from("=IH", data, at)
        yield kind, data[at + 21] if size >= 28 and at + 28 <= len(data) else 0
        at += max(16, size + 3 & ~3)
