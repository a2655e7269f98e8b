"""``flanpy peers``: the other nodes as this node sees them, and the leases that it does not use, with the reason."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from flanpy.cli.output import Paint, add_agent_arguments, ask_and_show, duration, number, printable, size, table

TRAFFIC = ("SENT", "RECEIVED", "DROPS")
"""Headers of ``traffic_cells``."""
EPILOG = """\
examples:
  flanpy peers
  flanpy peers --output json | jq -r '.peers[] | "\\(.subnets) \\(.hop)"'

exit status: 0 done, 10 no agent answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description = (
        "Peers with subnet, endpoint, path, and what they were sent and have sent (bytes / packets, and packets dropped); then leases "
        "of another backend and leases that were refused, with the reason."
    )
    parser.epilog = EPILOG
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    return ask_and_show(arguments, "peers", render)


def render(answer: Mapping[str, Any], colours: Paint) -> list[str]:
    """The tables, line by line."""
    lines = peer_table(answer["peers"], colours) if answer["peers"] else ["no peers"]
    if answer["peers"] and answer.get("traffic_reason"):
        lines += ["", colours.faint(f"traffic: {printable(answer['traffic_reason'])}")]
    if answer["foreign"]:
        lines += ["", *foreign_table(answer["foreign"], colours)]
    if answer["refused"]:
        lines += [
            "",
            colours.warn("refused"),
            *(f"  {printable(item['key'])}: {printable(item['reason'])}" for item in answer["refused"]),
        ]
    return lines


def peer_table(peers: list[Mapping[str, Any]], colours: Paint) -> list[str]:
    """Who packets are sent to, and how the path is; a node without an id runs flanneld, or has a reservation and is not there.

    The column GRACE is there only when a peer is kept though its lease has vanished: for how long still, and why.
    """
    with_grace = any(peer["grace"] for peer in peers)
    headers = ("SUBNET", "ENDPOINT", "BACKEND", "PATH", "RTT", "LAST SEEN", *TRAFFIC, "NODE", "FEATURES")
    rows = ((*_peer_row(peer), _grace(peer["grace"])) if with_grace else _peer_row(peer) for peer in peers)
    return table((*headers, "GRACE") if with_grace else headers, rows, colours, numbers=(4, 6, 7, 8))


def _peer_row(peer: Mapping[str, Any]) -> tuple[str, ...]:
    features = " ".join(peer["features"]) or "-"
    return (
        *(peer["subnets"], peer["hop"], peer["backend"], *_path(peer["path"])),
        *traffic_cells(peer.get("traffic")),
        *(peer["node"] or "-", features),
    )


def traffic_cells(traffic: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Sent and received, bytes and packets; drops on both ways. A dash for what nobody counts."""
    if traffic is None:
        return "-", "-", "-"
    drops = [traffic[name] for name in ("dropped_out", "dropped_in")]
    both = [_volume(traffic[f"{way}_bytes"], traffic[f"{way}_packets"]) for way in ("sent", "received")]
    return both[0], both[1], "-" if None in drops else number(sum(drops))


def _volume(bytes_: int | None, packets: int | None) -> str:
    words = [size(bytes_) if bytes_ is not None else "", f"{number(packets)} p" if packets is not None else ""]
    return " / ".join(filter(None, words)) or "-"


def _path(path: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """State, round trip and last sign of life; dashes for whom nobody probes."""
    if path is None:
        return "-", "-", "-"
    word = f"{path['state']} {path['loss']:.0%}" if path["state"] == "lossy" else path["state"]
    rtt = "-" if path["rtt_ms"] is None else f"{path['rtt_ms']:.2f} ms"
    ago = path["last_seen_s_ago"]
    return word, rtt, "never" if ago is None else f"{duration(ago)} ago"


def _grace(grace: Mapping[str, Any] | None) -> str:
    return "-" if grace is None else f"{duration(grace['seconds_left'])} ({grace['cause']})"


def foreign_table(foreign: list[Mapping[str, Any]], colours: Paint) -> list[str]:
    """Who packets are not sent to, for its backend is another."""
    rows = ((lease["subnets"], lease["public_ip"], lease["reason"]) for lease in foreign)
    return table(("FOREIGN", "PUBLIC IP", "NOT USED BECAUSE"), rows, colours)
