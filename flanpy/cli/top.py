"""``flanpy top``: packets and work of the datapath as rates, again and again. Two answers of the agent make one screen."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flanpy.cli.output import Paint, add_agent_arguments, ask_agent, duration, number, paint, show, show_json, size, table
from flanpy.errors import UsageError

EPILOG = """\
examples:
  flanpy top
  flanpy top --once --interval 5 --output json

exit status: 0 done, 10 no agent answers
"""
HOME_AND_CLEAR = "\x1b[H\x1b[J"


@dataclass(frozen=True, slots=True)
class Rate:
    """One counter: how often by now, and how often a second since the last look. ``bytes_per_s`` None: it has no bytes."""

    name: str
    total: int
    per_s: float
    bytes_per_s: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description = "What becomes of packets and what the workers do, per second. Ctrl-C ends it."
    parser.epilog = EPILOG
    parser.add_argument("--once", action="store_true", help="one interval, then end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="counters that stand at 0 too")
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look, wait, look, print."""
    if not 0.05 <= arguments.interval <= 3600:
        raise UsageError(f"--interval: {arguments.interval:g} is out of range (0.05 to 3600 seconds)")
    before, before_s = _look(arguments)
    while True:
        time.sleep(arguments.interval)
        now, now_s = _look(arguments)
        _print(arguments, now, rates(before, now, now_s - before_s))
        if arguments.once:
            return 0
        before, before_s = now, now_s


def _look(arguments: argparse.Namespace) -> tuple[dict[str, Any], float]:
    return ask_agent(arguments, "status", {"brief": True}), time.monotonic()


def _print(arguments: argparse.Namespace, status: Mapping[str, Any], found: list[Rate]) -> None:
    shown = [rate for rate in found if rate.total or arguments.all]
    if arguments.output == "json":
        show_json({"uptime_s": status["uptime_s"], "rates": [asdict(rate) for rate in shown]})
        return
    if sys.stdout.isatty() and not arguments.once:
        sys.stdout.write(HOME_AND_CLEAR)
    show(render(status, shown, paint()))
    sys.stdout.flush()


def rates(before: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> list[Rate]:
    """What has changed between two answers. A counter that went back belongs to a new datapath and counts from 0."""
    old, new = before["datapath"] or {}, now["datapath"] or {}
    verdicts = old.get("verdicts", {})
    zero = {"packets": 0, "bytes": 0}
    found = []
    for name, count in new.get("verdicts", {}).items():
        was = verdicts.get(name, zero)
        bytes_per_s = _rise(was["bytes"], count["bytes"]) / seconds
        found.append(Rate(name, count["packets"], _rise(was["packets"], count["packets"]) / seconds, bytes_per_s))
    work = old.get("counters", {})
    found += [Rate(name, total, _rise(work.get(name, 0), total) / seconds) for name, total in new.get("counters", {}).items()]
    return found


def _rise(before: int, now: int) -> int:
    return now - before if now >= before else now


def render(status: Mapping[str, Any], found: list[Rate], colours: Paint) -> list[str]:
    """The screen, line by line."""
    datapath = status["datapath"]["kind"] if status["datapath"] else "none"
    head = f"{status['state']}, datapath {datapath}, peers {status['counts']['peers']}, for {duration(status['uptime_s'])}"
    return [head, "", *table(("COUNTER", "PER SECOND", "BYTES/S", "TOTAL"), _cells(found), colours, numbers=(1, 2, 3))]


def _cells(found: list[Rate]) -> Iterator[tuple[str, str, str, str]]:
    for rate in found:
        volume = "" if rate.bytes_per_s is None else size(rate.bytes_per_s)
        yield rate.name, number(rate.per_s), volume, number(rate.total)
