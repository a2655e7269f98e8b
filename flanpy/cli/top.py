"""``flanpy top``: peers, packets and work of the datapath as rates, again and again. Two looks at the agent make one screen."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flanpy.cli.numbers import decimal
from flanpy.cli.output import (
    Paint,
    add_agent_arguments,
    ask_agent,
    duration,
    number,
    paint,
    printable,
    show,
    show_json,
    size,
    table,
)
from flanpy.errors import UsageError

EPILOG = """\
examples:
  flanpy top
  flanpy top --once --interval 5 --output json

exit status: 0 done, 10 no agent answers
"""
PEERS_SHOWN = 20
"""The busiest ones; JSON has all."""
HOME_AND_CLEAR = "\x1b[H\x1b[J"


@dataclass(frozen=True, slots=True)
class Rate:
    """One counter: how often by now, and how often a second since the last look. ``bytes_per_s`` None: it has no bytes."""

    name: str
    total: int
    per_s: float
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class PeerRate:
    """One peer: what goes to it and comes from it a second, None where nobody counts that; ``drops`` since counters began."""

    subnets: str
    public_ip: str
    path: str | None
    rtt_ms: float | None
    sent_bytes_per_s: float | None
    received_bytes_per_s: float | None
    packets_per_s: float | None
    drops: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description = (
        "What goes to the peers and comes from them, what becomes of packets and what the workers do, per second. Ctrl-C ends it."
    )
    parser.epilog = EPILOG
    parser.add_argument("--once", action="store_true", help="one interval, then end")
    parser.add_argument(
        "--interval", type=decimal, default=1.0, metavar="SECONDS", help="between two looks (default: %(default)s)"
    )
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
        _print(arguments, now, rates(before, now, now_s - before_s), peer_rates(before, now, now_s - before_s))
        if arguments.once:
            return 0
        before, before_s = now, now_s


def _look(arguments: argparse.Namespace) -> tuple[dict[str, Any], float]:
    peers = ask_agent(arguments, "peers")
    status = ask_agent(arguments, "status", {"brief": True})
    return {**status, "peers": peers["peers"], "traffic_reason": peers.get("traffic_reason", "")}, time.monotonic()


def _print(arguments: argparse.Namespace, status: Mapping[str, Any], found: list[Rate], peers: list[PeerRate]) -> None:
    shown = [rate for rate in found if rate.total or arguments.all]
    if arguments.output == "json":
        listed = [asdict(peer) for peer in peers]
        show_json({"uptime_s": status["uptime_s"], "rates": [asdict(rate) for rate in shown], "peers": listed})
        return
    if sys.stdout.isatty() and not arguments.once:
        sys.stdout.write(HOME_AND_CLEAR)
    show(render(status, shown, peers, paint()))
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


def peer_rates(before: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> list[PeerRate]:
    """Every peer, the busiest first; a peer that has just come counts from its next look on."""
    earlier = {(peer["public_ip"], peer["subnets"]): peer.get("traffic") for peer in before["peers"]}
    found = [_peer_rate(peer, earlier.get((peer["public_ip"], peer["subnets"])), seconds) for peer in now["peers"]]
    return sorted(found, key=_busy, reverse=True)


def _busy(rate: PeerRate) -> tuple[float, bool]:
    """One that is quiet comes before one that nobody counts."""
    return (rate.sent_bytes_per_s or 0) + (rate.received_bytes_per_s or 0), rate.sent_bytes_per_s is not None


def _peer_rate(peer: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> PeerRate:
    traffic, path = peer.get("traffic") or {}, peer.get("path") or {}

    def per_s(name: str) -> float | None:
        was, is_ = (before or {}).get(name), traffic.get(name)
        return None if was is None or is_ is None else _rise(was, is_) / seconds

    packets = [each for each in (per_s("sent_packets"), per_s("received_packets")) if each is not None]
    drops = [traffic[name] for name in ("dropped_out", "dropped_in") if traffic.get(name) is not None]
    return PeerRate(
        subnets=peer["subnets"],
        public_ip=peer["public_ip"],
        path=path.get("state"),
        rtt_ms=path.get("rtt_ms"),
        sent_bytes_per_s=per_s("sent_bytes"),
        received_bytes_per_s=per_s("received_bytes"),
        packets_per_s=sum(packets) if packets else None,
        drops=sum(drops) if drops else None,
    )


def _rise(before: int, now: int) -> int:
    return now - before if now >= before else now


def render(status: Mapping[str, Any], found: list[Rate], peers: list[PeerRate], colours: Paint) -> list[str]:
    """The screen, line by line."""
    datapath = status["datapath"]["kind"] if status["datapath"] else "none"
    head = f"{status['state']}, datapath {datapath}, peers {status['counts']['peers']}, for {duration(status['uptime_s'])}"
    lines = [head, ""]
    if peers:
        headers = ("PEER", "ENDPOINT", "PATH", "RTT", "SENT/S", "RECEIVED/S", "PACKETS/S", "DROPS")
        lines += table(headers, map(_peer_cells, peers[:PEERS_SHOWN]), colours, numbers=(3, 4, 5, 6, 7))
        more, reason = len(peers) - PEERS_SHOWN, status.get("traffic_reason")
        lines += [f"and {more} more"] if more > 0 else []
        lines += [colours.faint(f"traffic: {printable(reason)}")] if reason else []
        lines += [""]
    return [*lines, *table(("COUNTER", "PER SECOND", "BYTES/S", "TOTAL"), _cells(found), colours, numbers=(1, 2, 3))]


def _peer_cells(peer: PeerRate) -> tuple[str, ...]:
    rtt = "-" if peer.rtt_ms is None else f"{peer.rtt_ms:.2f} ms"
    volumes = ["-" if each is None else size(each) for each in (peer.sent_bytes_per_s, peer.received_bytes_per_s)]
    packets, drops = ("-" if each is None else number(each) for each in (peer.packets_per_s, peer.drops))
    return peer.subnets, peer.public_ip, peer.path or "-", rtt, *volumes, packets, drops


def _cells(found: list[Rate]) -> Iterator[tuple[str, str, str, str]]:
    for rate in found:
        volume = "" if rate.bytes_per_s is None else size(rate.bytes_per_s)
        yield rate.name, number(rate.per_s), volume, number(rate.total)
