"""The asking side of the control socket (see ``control``): one request, one answer, bounded in time and size.

Imports little: every command that asks the agent pays for it at each start.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flanpy.errors import AgentAbsent, FlanpyError

SOCKET_NAME = "control.sock"
ANSWER_BYTES_MAX = 64 << 20
"""More than the peers of 65,536 nodes take."""
ANSWER_TIMEOUT_S = 5.0


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
        client.settimeout(max(0.001, deadline_s - time.monotonic()))
        client.connect(str(path))
        client.sendall(request)
        data = bytearray()
        while chunk := client.recv(65536):
            data += chunk
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or len(data) > ANSWER_BYTES_MAX:
                raise TimeoutError("it does not come to an end")
            client.settimeout(left_s)
    return bytes(data)
