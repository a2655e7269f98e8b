"""The asking side of the control socket (see ``control``): one request, one answer, bounded in time and size.

Imports little: every command that asks the agent pays for it at each start.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flanpy.errors import AgentAbsent, FlanpyError

SOCKET_NAME = "control.sock"
ANSWER_BYTES_MAX = 64 << 20
"""More than the peers of 65,536 nodes take."""
ANSWER_TIMEOUT_S = 5.0
CONNECT_PAUSE_S = 0.02


def ask(
    run_dir: Path, command: str, timeout_s: float = ANSWER_TIMEOUT_S + 1, arguments: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Ask a running agent. Raises AgentAbsent when none answers, FlanpyError with the reason when it refuses."""
    path = run_dir / SOCKET_NAME
    request = {"command": command, **({"arguments": dict(arguments)} if arguments else {})}
    try:
        answer = json.loads(_exchange(path, json.dumps(request).encode() + b"\n", time.monotonic() + timeout_s))
    except TimeoutError as error:
        raise AgentAbsent(
            f"no agent answers at {path} (timed out): one is there, and hangs or was halted; `flanpy doctor` says which process"
        ) from error
    except OSError as error:
        reason = error.strerror or error or "time is over"
        raise AgentAbsent(f"no agent answers at {path} ({reason}); is `flanpy agent` running here?") from error
    except (ValueError, RecursionError) as error:
        raise AgentAbsent(f"the agent at {path} ended the connection without an answer") from error
    if not isinstance(answer, dict):
        raise AgentAbsent(f"what answers at {path} is not an agent: it did not send an object")
    if not answer.get("ok"):
        raise FlanpyError(f"the agent refused: {answer.get('error', 'no reason given')}")
    return answer


def _exchange(path: Path, request: bytes, deadline_s: float) -> bytes:
    """One request and the whole answer, within the time and the bound on its size, however it trickles in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        _connect(client, path, deadline_s)
        with suppress(BrokenPipeError, ConnectionResetError):  # one that is turned away is told why all the same
            client.sendall(request)
        data = bytearray()
        while chunk := _more(client, data):
            data += chunk
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or len(data) > ANSWER_BYTES_MAX:
                raise TimeoutError("it does not come to an end")
            client.settimeout(left_s)
    return bytes(data)


def _connect(client: socket.socket, path: Path, deadline_s: float) -> None:
    """Where others wait to be let in a Unix socket says EAGAIN at once, whatever time limit it has."""
    while True:
        client.settimeout(max(0.001, deadline_s - time.monotonic()))
        try:
            return client.connect(str(path))
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                raise TimeoutError("too many wait to be let in") from None
            time.sleep(CONNECT_PAUSE_S)


def _more(client: socket.socket, so_far: bytearray) -> bytes:
    """The next piece, empty at the end; a server that closes with our request unread resets the connection behind a whole answer."""
    try:
        return client.recv(65536)
    except ConnectionResetError:
        if so_far.endswith(b"\n"):
            return b""
        raise
