"""A loop that only answers, for tests of the agent's edges (control socket, health server)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from flanpy.agent.events import Ask, EventQueue


@contextmanager
def answering_loop(answer: Callable[[Ask], dict[str, Any]]) -> Iterator[EventQueue]:
    """A queue whose every Ask is answered by a thread, until the end of the block."""
    events: EventQueue = SimpleQueue()

    def run() -> None:
        while isinstance(item := events.get(), Ask):
            item.reply.put(answer(item))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield events
    finally:
        events.put(None)  # type: ignore[arg-type]
        thread.join(timeout=5)
