"""Where the health server is, if anywhere: it moves when the options say so.

An agent without one never loads what it is made of (Python's HTTP server, 2 MB).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flanpy.agent.events import EventQueue
from flanpy.config.options import AgentOptions

if TYPE_CHECKING:
    from flanpy.agent.health import HealthServer


class HealthPlace:
    """Where the health server is to be; it moves when the options say so."""

    def __init__(self, events: EventQueue) -> None:
        self._events = events
        self._server: HealthServer | None = None
        self._place = ("", 0)

    def use(self, options: AgentOptions) -> None:
        """Serve at the address of these options, or nowhere. Raises ResourceBusy, and then the old one goes on."""
        place = (str(options.healthz_ip), options.healthz_port)
        if place == self._place:
            return
        server = _server(place, self._events) if options.healthz_port else None
        self.close()
        self._server, self._place = server, place
        if server is not None:
            server.start()

    def close(self) -> None:
        """Serve no longer."""
        if self._server is not None:
            self._server.close()
        self._server = None


def _server(place: tuple[str, int], events: EventQueue) -> HealthServer:
    from flanpy.agent.health import HealthServer

    return HealthServer(*place, events)
