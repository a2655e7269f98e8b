"""The health server of ``--healthz-ip`` and ``--healthz-port``: /healthz, /readyz and /metrics.

    /healthz   200 as long as the loop answers          /readyz   200 while lease, datapath and first sync are there
    /metrics   Prometheus text, see ``agent.metrics``

flanneld's /healthz says 200 as long as the process lives; ours says 503 when the loop does not answer.
"""

from __future__ import annotations

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from flanpy.agent import metrics
from flanpy.agent.events import Ask, EventQueue
from flanpy.agent.process import read_process
from flanpy.errors import ResourceBusy

ANSWER_TIMEOUT_S = 2.0


class HealthServer:
    """Serves from ``start`` to ``close``. Raises ResourceBusy when the address cannot be had."""

    def __init__(self, address: str, port: int, events: EventQueue) -> None:
        handler = type("Handler", (_Handler,), {"events": events})
        try:
            self._server = ThreadingHTTPServer((address, port), handler)
        except OSError as error:
            raise ResourceBusy(f"--healthz-port: cannot listen on {address}:{port}: {error.strerror}") from error
        self._server.daemon_threads = True
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


class _Handler(BaseHTTPRequestHandler):
    events: ClassVar[EventQueue]
    timeout = 5
    protocol_version = "HTTP/1.0"

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
        if answer is not None:
            text = metrics.render(answer, read_process(answer["uptime_s"]))
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
