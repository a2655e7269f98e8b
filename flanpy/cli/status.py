"""``flanpy status``: how the agent of this host is, on one screen. Asks and prints; the agent judges."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

from flanpy.cli.numbers import decimal
from flanpy.cli.output import (
    Paint,
    add_agent_arguments,
    ask_agent,
    counted,
    duration,
    number,
    paint,
    printable,
    show,
    show_json,
    size,
)
from flanpy.errors import AgentAbsent, UsageError

DESCRIPTION = """\
Lease, datapath and why this one, table, peers, etcd, drops by reason, and what is wrong.
"""
EPILOG = """\
examples:
  flanpy status
  flanpy status --wait 30 && echo ready
  flanpy status --output json | jq .lease.seconds_left

exit status:
   0  ready
   1  an agent answers, but is not ready, or degraded (etcd away, a changed network config, no underlay)
  10  no agent answers
"""
LISTED = 10
"""Problems that are shown; --output json has them all."""
POLL_S = 0.1
WAIT_S = 30.0
"""Of ``--wait`` by itself."""
WAIT_S_MOST = 86400.0
SENT, RECEIVED = "encapsulated", "decapsulated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_agent_arguments(parser)
    parser.add_argument(
        "--wait",
        type=decimal,
        nargs="?",
        default=0.0,
        const=WAIT_S,
        metavar="SECONDS",
        help=f"wait until ready, at most this long ({WAIT_S:g} when no number follows)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask, print, and say by the exit status how it is."""
    if not 0 <= arguments.wait <= WAIT_S_MOST:
        raise UsageError(f"--wait: {arguments.wait:g} is out of range (0 to {WAIT_S_MOST:g} seconds)")
    status = wait(arguments, time.monotonic() + arguments.wait)
    if arguments.output == "json":
        status = ask_agent(arguments, "status")  # with the lists, which the screen has no room for
        show_json(status)
    else:
        show(render(status, paint()))
    return 0 if status["state"] == "ready" else 1


def wait(arguments: argparse.Namespace, deadline_s: float) -> dict[str, Any]:
    """The status as soon as it is ready, else the last one before the deadline. Raises AgentAbsent when there is none then."""
    while True:
        late = time.monotonic() >= deadline_s
        try:
            status = ask_agent(arguments, "status", {"brief": True})
        except AgentAbsent:
            if late:
                raise
        else:
            if status["state"] == "ready" or late:
                return status
        time.sleep(POLL_S)


# ------------------------------------------------------------------------------------------------ the screen


def render(status: Mapping[str, Any], colours: Paint) -> list[str]:
    """The screen, line by line."""
    state = {"ready": colours.good, "degraded": colours.warn}.get(status["state"], colours.bad)(status["state"])
    rows = [("flanpy", f"{status['version']}, {state}, for {duration(status['uptime_s'])}"), *_rows(status)]
    lines = [f"{colours.faint(f'{name:8}')}  {text}" for name, text in rows]
    lines += _listed("problems", status["problems"], colours.bad(" - "))
    return lines + _listed("warnings", status["warnings"], colours.warn(" - "))


def _rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "lease", _lease(status["lease"])
    yield "network", _network(status)
    yield from _datapath(status["datapath"], status["counts"])
    mtu = "" if status["mtu_bytes"] is None else f", MTU {status['mtu_bytes']}"
    yield "device", f"{', '.join(status['devices']) or 'none'}{mtu}"
    uplink = status["uplink"]
    yield "uplink", f"{uplink['name']} {uplink['address']}, MTU {uplink['mtu_bytes']}"
    yield from _rules(status["rules"])
    yield from _paths(status["paths"])
    yield "etcd", _etcd(status["etcd"])
    yield from _packets((status["datapath"] or {}).get("verdicts", {}))


def _lease(lease: Mapping[str, Any] | None) -> str:
    if lease is None:
        return "none yet"
    left = lease["seconds_left"]
    return f"{lease['subnets']}, {'a reservation' if left is None else duration(left) + ' left'}"


def _network(status: Mapping[str, Any]) -> str:
    if status["network"] is None:
        return "not known yet"
    port = f", port {status['port']}" if status["port"] else ""
    return f"{status['network']}, backend {status['backend']}{port}"


def _datapath(datapath: Mapping[str, Any] | None, counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    yield "datapath", f"{datapath['kind']} ({printable(datapath['reason'])})" if datapath else "none yet"
    if process := (datapath or {}).get("process"):
        restarts = f", started anew {process['restarts']} ×" if process["restarts"] else ""
        yield "process", f"{process['pid']}, {'adopted' if process['adopted'] else 'started'} by this agent{restarts}"
    generation = f", table {datapath['table_generation']}" if datapath and datapath["table_generation"] else ""
    words = {"kept": "kept without a lease", "foreign": "foreign", "refused": "refused"}
    others = "".join(f", {counts[name]} {word}" for name, word in words.items() if counts[name])
    yield "peers", f"{counts['peers']}{others}{generation}"


def _rules(rules: Mapping[str, str | None] | None) -> Iterator[tuple[str, str]]:
    if rules is not None:
        yield "rules", ", ".join(f"{name} by {tool}" if tool else f"{name} off" for name, tool in rules.items())


def _paths(paths: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """The probes of the paths to the peers; nothing where nobody is asked."""
    if paths is not None and paths["probed"]:
        words = ", ".join(f"{count} {word}" for word, count in paths["states"].items())
        longest = "" if paths["rtt_ms_most"] is None else f", round trip at most {paths['rtt_ms_most']} ms"
        yield "paths", f"{words}{longest}"


def _etcd(etcd: Mapping[str, Any]) -> str:
    ago = etcd["last_word_s_ago"]
    return f"{etcd['state']}, " + ("never heard of" if ago is None else f"last heard of {duration(ago)} ago")


def _packets(verdicts: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[str, str]]:
    if not verdicts:
        return
    for name, verdict in (("sent", SENT), ("received", RECEIVED)):
        yield name, f"{counted(verdicts[verdict]['packets'], 'packet')}, {size(verdicts[verdict]['bytes'])}"
    drops = [f"{name.removeprefix('drop_')} {number(count['packets'])}" for name, count in dropped(verdicts)]
    yield "dropped", ", ".join(drops) or "none"


def dropped(verdicts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, Mapping[str, int]]]:
    """The drops that happened, the most frequent first."""
    found = [(name, count) for name, count in verdicts.items() if name.startswith("drop_") and count["packets"]]
    return sorted(found, key=lambda item: -item[1]["packets"])


def _listed(title: str, items: list[str], mark: str) -> list[str]:
    if not items:
        return []
    rest = len(items) - LISTED
    more = [f"{mark}and {rest} more"] if rest > 0 else []
    return [title, *(f"{mark}{printable(item)}" for item in items[:LISTED]), *more]
