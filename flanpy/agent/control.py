"""The control socket: a Unix stream socket in the run directory. One JSON object a line in, one out, then it is closed.

    {"command": "status"}                                        ->  {"ok": true, ...}
    {"command": "log-level", "arguments": {"level": "debug"}}    ->  {"ok": true, ...}
    {"command": "?"}                                             ->  {"ok": false, "error": "..."}

Requests are bounded in size, time and number, so slow or malformed clients hurt nobody; only root and the agent's user may connect
(file mode 0600 and the peer's credentials). Holds no state: the loop answers. ``client`` has the asking side.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from flanpy.agent.client import ANSWER_TIMEOUT_S, SOCKET_NAME, ask
from flanpy.agent.events import Ask, EventQueue
from flanpy.errors import PlatformError

__all__ = ["CLIENTS_MAX", "SOCKET_NAME", "ControlServer", "ask"]

REQUEST_BYTES_MAX = 16 * 1024
CLIENT_TIMEOUT_S = 2.0
FAREWELL_S = 0.5
"""How long a client that has its answer may stay."""
CLIENTS_MAX = 16
ACCEPT_PAUSE_S = 0.1


class ControlServer:
    """Serves the socket from ``start`` to ``close``, a bounded number of clients at a time."""

    def __init__(self, run_dir: Path, events: EventQueue) -> None:
        self._path = run_dir / SOCKET_NAME
        self._events = events
        self._closing = threading.Event()
        self._slots = threading.BoundedSemaphore(CLIENTS_MAX)
        self._listener = self._listen()
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(before)
            listener.listen(CLIENTS_MAX)
        except OSError as error:
            listener.close()
            raise PlatformError(f"--run-dir: cannot open the control socket {self._path}: {error.strerror or error}") from error
        return listener

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering and remove the socket."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._closing.wait(ACCEPT_PAUSE_S):
                    return
                continue  # out of descriptors: the next accept may do
            if not self._slots.acquire(blocking=False):
                client.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(client,), name="control-client", daemon=True).start()
            except RuntimeError:  # no thread to be had
                self._slots.release()
                client.close()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):
                client.settimeout(CLIENT_TIMEOUT_S)
                answer = self._answer(client) if _may_ask(client) else _refused("only root and the agent's user may ask")
                client.sendall(json.dumps(answer, default=str).encode() + b"\n")
                _let_it_read(client)
        finally:
            self._slots.release()

    def _answer(self, client: socket.socket) -> dict[str, Any]:
        try:
            request = json.loads(_read_line(client))
            command, arguments = request["command"], request.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return _refused('a request is one line of JSON of at most 16 KiB such as {"command": "status"}')
        if not isinstance(command, str):
            return _refused("command: expected a text")
        if not isinstance(arguments, dict):
            return _refused('arguments: expected an object such as {"level": "debug"}')
        ask = Ask(command, arguments)
        self._events.put(ask)
        try:
            return ask.reply.get(timeout=ANSWER_TIMEOUT_S)
        except queue.Empty:
            return _refused(f"the agent did not answer within {ANSWER_TIMEOUT_S:.0f} s")


def _refused(reason: str) -> dict[str, Any]:
    return {"ok": False, "error": reason}


def _may_ask(client: socket.socket) -> bool:
    """Peer credentials (unix(7), SO_PEERCRED): pid, uid, gid as three C ints."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] in (0, os.geteuid())


def _let_it_read(client: socket.socket) -> None:
    """Wait, for a bounded time, until the client has hung up: closing with a request unread would take the answer away from it."""
    deadline_s = time.monotonic() + FAREWELL_S
    client.shutdown(socket.SHUT_WR)
    while (left_s := deadline_s - time.monotonic()) > 0:
        client.settimeout(left_s)
        if not client.recv(65536):
            return


def _read_line(client: socket.socket) -> bytes:
    """One line, within CLIENT_TIMEOUT_S however it drips, and within the bound on its size."""
    data, deadline_s = b"", time.monotonic() + CLIENT_TIMEOUT_S
    while b"\n" not in data and len(data) <= REQUEST_BYTES_MAX:
        client.settimeout(max(0.001, deadline_s - time.monotonic()))
        chunk = client.recv(4096)
        if not chunk:
            break
        data += chunk
    if len(data) > REQUEST_BYTES_MAX:
        raise ValueError("too long")
    client.settimeout(CLIENT_TIMEOUT_S)
    return data
