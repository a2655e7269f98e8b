"""The agent's log on standard error: text for people, JSON for machines, both with stable event names.

A line is ``logger.log(level, message, extra=event("lease_acquired", subnet="10.5.1.0/24"))``: names never change once released, for
alerts are built on them; messages may.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

MESSAGE_CHARS_MAX = 2000
ROOT = "flanpy"
"""The logger that everything here hangs on."""


def event(name: str, /, **fields: Any) -> dict[str, Any]:
    """The ``extra`` of a log call: the event's stable name and its fields."""
    return {"event": name, "fields": fields}


class TextFormatter(logging.Formatter):
    """``2026-01-02T03:04:05.678Z warning lease_lost: message``; a newline in the message becomes a space."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback, if any, follows on lines of its own."""
        name = getattr(record, "event", record.name)
        line = f"{_timestamp(record)} {record.levelname.lower():7} {name}: {_printable(record.getMessage())}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, event, message, and the event's fields beside them."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON, whatever the message holds."""
        line = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "message": record.getMessage()[:MESSAGE_CHARS_MAX],
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _printable(text: str) -> str:
    """One line without control characters, of a bounded length: what strangers wrote into etcd ends up here too."""
    if len(text) > MESSAGE_CHARS_MAX:
        text = f"{text[:MESSAGE_CHARS_MAX]}... ({len(text)} characters)"
    return "".join(char if char.isprintable() else " " if char == "\n" else f"\\x{ord(char):02x}" for char in text)


def _timestamp(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z"


def set_up(form: str, level: str) -> None:
    """Send everything at ``level`` and above to standard error, as ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())
