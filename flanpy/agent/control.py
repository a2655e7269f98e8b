"""The control socket: a Unix stream socket in the run directory. One JSON object a line in, one out, then it is closed.

    {"command": "status"}                                        ->  {"ok": true, ...}
    {"command": "log-level", "arguments": {"level": "debug"}}    ->  {"ok": true, ...}
    {"command": "?"}                                             ->  {"ok": false, "error": "..."}

Requests are bounded in size, time and number, so slow or malformed clients hurt nobody; only root and the agent's user may connect
(file mode 0600 and the peer's credentials). Where all places are taken the client goes that has been silent for longest, and who comes is
served; only while the loop owes an answer to all of them is it told to come again. Holds no state: the loop answers. ``client`` has the
asking side.
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
from dataclasses import dataclass
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
BACKLOG = 128
"""So many may wait to be let in; it is done as fast as they come."""
ACCEPT_PAUSE_S = 0.1


@dataclass(slots=True, eq=False)
class Client:
    """One connection; ``waits`` while the loop owes it an answer, else it may be asked to leave."""

    socket: socket.socket
    waits: bool = False


class ControlServer:
    """Serves the socket from ``start`` to ``close``, a bounded number of clients at a time."""

    def __init__(self, run_dir: Path, events: EventQueue) -> None:
        self._path = run_dir / SOCKET_NAME
        self._events = events
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._clients: dict[Client, None] = {}  # in the order in which they have come
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
            listener.listen(BACKLOG)
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
                client = Client(self._listener.accept()[0])
            except OSError:
                if self._closing.wait(ACCEPT_PAUSE_S):
                    return
                continue  # out of descriptors: the next accept may do
            if not self._let_in(client):
                _turn_away(client.socket)
                continue
            try:
                threading.Thread(target=self._serve, args=(client,), name="control-client", daemon=True).start()
            except RuntimeError:  # no thread to be had
                self._let_go(client)
                client.socket.close()

    def _let_in(self, client: Client) -> bool:
        """Find a place; False when there is none. The thread of one that has to leave for it ends at its next look at the socket."""
        with self._lock:
            if len(self._clients) >= CLIENTS_MAX:
                silent = next((each for each in self._clients if not each.waits), None)
                if silent is None or not _may_ask(client.socket):
                    return False
                del self._clients[silent]
                with contextlib.suppress(OSError):
                    silent.socket.shutdown(socket.SHUT_RDWR)
            self._clients[client] = None
        return True

    def _let_go(self, client: Client) -> None:
        with self._lock:
            self._clients.pop(client, None)

    def _serve(self, client: Client) -> None:
        connection = client.socket
        try:
            with contextlib.suppress(OSError):
                connection.settimeout(CLIENT_TIMEOUT_S)
                answer = self._answer(client) if _may_ask(connection) else _refused("only root and the agent's user may ask")
                connection.sendall(json.dumps(answer, default=str).encode() + b"\n")
                _let_it_read(connection)
        finally:
            self._let_go(client)
            connection.close()

    def _answer(self, client: Client) -> dict[str, Any]:
        try:
            request = json.loads(_read_line(client.socket))
            command, arguments = request["command"], request.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return _refused('a request is one line of JSON of at most 16 KiB such as {"command": "status"}')
        if not isinstance(command, str):
            return _refused("command: expected a text")
        if not isinstance(arguments, dict):
            return _refused('arguments: expected an object such as {"level": "debug"}')
        ask = Ask(command, arguments)
        client.waits = True
        self._events.put(ask)
        try:
            return ask.reply.get(timeout=ANSWER_TIMEOUT_S)
        except queue.Empty:
            return _refused(f"the agent did not answer within {ANSWER_TIMEOUT_S:.0f} s")
        finally:
            client.waits = False


def _refused(reason: str) -> dict[str, Any]:
    return {"ok": False, "error": reason}


def _turn_away(client: socket.socket) -> None:
    """Without waiting for it: whether it hears why depends on what it has sent."""
    with client, contextlib.suppress(OSError):
        client.setblocking(False)
        answer = _refused(f"busy: {CLIENTS_MAX} others wait for an answer of the agent (does it hang?); ask again")
        client.sendall(json.dumps(answer).encode() + b"\n")
        client.recv(REQUEST_BYTES_MAX)  # an unread request would make an error of the answer


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
