"""What the kernel lost while a sample was taken: the counters that turn a surprising figure into an explained one.

Reads /proc/net of the four namespaces of a bed before and after; nothing is reset.
"""

from __future__ import annotations

from collections.abc import Iterator

from flanpy.bench.beds import Bed

WATCHED = frozenset(
    {"UdpRcvbufErrors", "UdpSndbufErrors", "UdpInCsumErrors", "UdpNoPorts", "TcpInCsumErrors", "IpInHdrErrors", "IpReasmFails"}
    | {"IpFragCreates", "IpOutNoRoutes", "TcpExtTCPBacklogDrop"}
)
DEVICE_DROPS = {3: "rx_errors", 4: "rx_dropped", 11: "tx_errors", 12: "tx_dropped"}
"""Columns of /proc/net/dev, counted from the name."""
SEPARATOR = "==\n"


def read_losses(bed: Bed) -> dict[str, int]:
    """Loss counters of a bed by ``place counter``, only those that are not zero."""
    losses: dict[str, int] = {}
    command = "cat /proc/net/snmp /proc/net/netstat; echo ==; cat /proc/net/dev"
    for place in (bed.a.host, bed.b.host, bed.a.pod, bed.b.pod):
        text = bed.sandbox.run(place, ["sh", "-c", command]).stdout
        protocols, _, devices = text.partition(SEPARATOR)
        short = place.removeprefix(f"{bed.setup}-")
        for name, value in (*parse_snmp(protocols), *parse_devices(devices)):
            if value:
                losses[f"{short} {name}"] = value
    return losses


def increase(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What was lost between two readings."""
    return {name: value - before.get(name, 0) for name, value in after.items() if value > before.get(name, 0)}


def parse_snmp(text: str) -> Iterator[tuple[str, int]]:
    """Watched counters of /proc/net/snmp and netstat: pairs of lines, names and values, with the protocol in front."""
    lines = [line for line in text.splitlines() if ":" in line]
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        protocol = names.partition(":")[0]
        for name, value in zip(names.split()[1:], values.split()[1:], strict=False):
            if protocol + name in WATCHED:
                yield protocol + name, int(value)


def parse_devices(text: str) -> Iterator[tuple[str, int]]:
    """Errors and drops of each device in /proc/net/dev."""
    for line in text.splitlines():
        device, colon, columns = line.partition(":")
        if colon and device.strip() != "lo":
            values = columns.split()
            for column, name in DEVICE_DROPS.items():
                yield f"{device.strip()} {name}", int(values[column - 1])
