"""What a command of the control socket does: questions go to ``report``; orders that change the process are carried out here.

Called by the loop's thread. Arguments come from outside and are checked here; a wrong one is refused and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from flanpy.agent.logs import ROOT, event

LEVELS = ("debug", "info", "warning", "error")

log = logging.getLogger(__name__)


def carry_out(
    command: str,
    arguments: Mapping[str, Any],
    question: Callable[[str, Mapping[str, Any]], dict[str, Any]],
    reload: Callable[[], dict[str, Any]],
    options: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """The answer to one command; what is no order is a question."""
    match command:
        case "log-level":
            return _set_log_level(arguments.get("level"))
        case "reload":
            return reload()
        case "options":
            return options()
    return question(command, arguments)


def _set_log_level(level: object) -> dict[str, Any]:
    """Log at this level from now on; without one only say which it is."""
    root = logging.getLogger(ROOT)
    before = logging.getLevelName(root.getEffectiveLevel()).lower()
    if level is None:
        return {"ok": True, "level": before, "before": before}
    if level not in LEVELS:
        return {"ok": False, "error": f"level: expected one of {', '.join(LEVELS)}"}
    root.setLevel(str(level).upper())
    log.warning("log level %s (was %s)", level, before, extra=event("log_level", level=level, before=before))
    return {"ok": True, "level": level, "before": before}
