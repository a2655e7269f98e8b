"""Threads that end by a defect. Python prints a traceback and goes on: the agent would live, and be deaf on one ear for good.

It is an event of the log, and what the node says of itself from then on. Nothing is ended for it: packets are carried, and a restart,
which costs none, is the operator's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from flanpy.agent.events import EventQueue, ThreadEnded
from flanpy.agent.logs import event

log = logging.getLogger(__name__)

LASTING = frozenset(
    (
        "watcher",
        "executor",
        "kernel-monitor",
        "rules-watch",
        "pods-watch",
        "hooks",
        "control",
        "health",
        "peer-probes",
        "datapath-watch",
        "flanpy-prober",
    )
)
"""Threads that nothing starts again; others serve one client or one watch."""


@contextlib.contextmanager
def told(events: EventQueue) -> Iterator[None]:
    """Within it, a thread that ends by an exception is said, and put on the queue if the agent cannot do without it."""

    def say(arguments: threading.ExceptHookArgs) -> None:
        name = arguments.thread.name if arguments.thread is not None else "?"
        reason = f"{arguments.exc_type.__name__}: {arguments.exc_value}"
        log.critical(
            "thread %s has ended: %s", name, reason, exc_info=arguments.exc_value, extra=event("thread_ended", thread=name)
        )
        if name in LASTING:
            events.put(ThreadEnded(name, reason))

    before, threading.excepthook = threading.excepthook, say
    try:
        yield
    finally:
        threading.excepthook = before
