"""The health server of ``--healthz-ip`` and ``--healthz-port``: /healthz, /readyz and /metrics.

    /healthz   200 as long as the loop answers          /readyz   200 while lease, datapath and first sync are there
    /metrics   Prometheus text, see ``agent.metrics``

flanneld's /healthz says 200 as long as the process lives; ours says 503 when the loop does not answer.
"""

from __future__ import annotations

import io
import json
import logging
import queue
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from flanpy.agent import metrics
from flanpy.agent.events import Ask, EventQueue
from flanpy.agent.own_use import read_own_use
from flanpy.errors import ResourceBusy

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 2.0
REQUEST_S = 5.0
"""A client that has not sent its whole request by then is let go, so that slow ones cannot keep all places for long."""
CLIENTS_MAX = 16
ACCEPT_PAUSE_S = 0.1


class _BoundedServer(ThreadingHTTPServer):
    """Bounded in clients, quiet about those that break off, and idle while the process has no descriptor left."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._slots = threading.BoundedSemaphore(CLIENTS_MAX)
        super().__init__(address, handler)

    def get_request(self) -> tuple[Any, Any]:
        """Accept; when that fails (out of descriptors) wait a moment, for the socket stays readable and the loop would spin."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(ACCEPT_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a thread if one is free, else close at once."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._slots.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is no news."""
        log.debug("health client %s", client_address, exc_info=True)


class HealthServer:
    """Serves from ``start`` to ``close``. Raises ResourceBusy when the address cannot be had."""

    def __init__(self, address: str, port: int, events: EventQueue) -> None:
        handler = type("Handler", (_Handler,), {"events": events})
        try:
            self._server = _BoundedServer((address, port), handler)
        except OSError as error:
            raise ResourceBusy(f"--healthz-port: cannot listen on {address}:{port}: {error.strerror}") from error
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Hurried(io.RawIOBase):
    """What a client sends, up to a moment on the monotonic clock; after it reading raises TimeoutError, as after any silence."""

    def __init__(self, client: socket.socket, until_s: float) -> None:
        self._client = client
        self._until_s = until_s

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes."""
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"no whole request within {REQUEST_S:g} s")
        self._client.settimeout(left_s)
        return self._client.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    events: ClassVar[EventQueue]
    timeout = REQUEST_S
    protocol_version = "HTTP/1.0"

    def setup(self) -> None:
        """The whole request has to come in time, not only its next byte."""
        super().setup()
        self.rfile = io.BufferedReader(_Hurried(self.connection, time.monotonic() + REQUEST_S))

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/healthz":
                self._health("alive")
            case "/readyz":
                self._health("ready")
            case "/metrics":
                self._metrics()
            case _:
                self._send(404, {"error": "only /healthz, /readyz and /metrics are here"})

    def _health(self, good: str) -> None:
        answer = self._ask(Ask("health"))
        if answer is not None:
            self._send(200 if answer[good] else 503, answer)

    def _metrics(self) -> None:
        answer = self._ask(Ask("status", {"brief": True}))
        peers = self._ask(Ask("peers")) if answer is not None else None
        if answer is not None and peers is not None:
            text = metrics.render({**answer, "peers": peers["peers"]}, read_own_use(answer["uptime_s"]))
            self._send_text(200, text.encode(), metrics.CONTENT_TYPE)

    def _ask(self, ask: Ask) -> dict[str, Any] | None:
        """The loop's answer; None when there was none, which has been said then."""
        self.events.put(ask)
        try:
            return ask.reply.get(timeout=ANSWER_TIMEOUT_S)
        except queue.Empty:
            self._send(503, {"error": f"the agent's loop did not answer within {ANSWER_TIMEOUT_S:.0f} s"})
            return None

    def _send(self, status: int, body: dict[str, Any]) -> None:
        self._send_text(status, json.dumps(body).encode() + b"\n", "application/json")

    def _send_text(self, status: int, payload: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes arrive every few seconds; they do not belong in the log."""
