"""``flanpy leases``: who has which subnet, read from etcd; needs no agent. Prints; ``core.codec`` reads the records."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass

from flanpy.cli.etcd_store import add_etcd_arguments, etcd_values, open_etcd
from flanpy.cli.output import Paint, add_output_argument, duration, paint, printable, show, show_json, table
from flanpy.errors import CodecError
from flanpy.model import RecordSet

EPILOG = """\
examples:
  flanpy leases --etcd-endpoints http://10.0.0.1:2379
  flanpy leases --output json | jq '.leases[] | select(.reservation)'

exit status: 0 done, 2 wrong arguments, 4 etcd does not do what was asked
"""
ASKERS = 8
"""Questions to etcd at a time: the time left is asked for each lease."""


@dataclass(frozen=True, slots=True)
class Row:
    """One lease. ``seconds_left`` None: a reservation, or it has just ended."""

    subnets: str
    node: str | None
    public_ip: str
    backend: str
    seconds_left: int | None
    reservation: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """One key that is no lease."""

    key: str
    reason: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description = "All leases and reservations of the cluster, from etcd."
    parser.epilog = EPILOG
    add_output_argument(parser)
    add_etcd_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read and print."""
    from flanpy.core.codec import SUBNETS

    with closing(open_etcd(arguments)) as store:
        rows, refused = read(store.list(SUBNETS), store.seconds_left)
    if arguments.output == "json":
        show_json({"leases": [asdict(row) for row in rows], "refused": [asdict(item) for item in refused]})
    else:
        show(render(rows, refused, paint(), f"{etcd_values(arguments)['etcd_prefix'].rstrip('/')}/{SUBNETS}"))
    return 0


def read(records: RecordSet, seconds_left: Callable[[int], int | None]) -> tuple[list[Row], list[Refused]]:
    """The records as rows, in the order of their subnets, and those that are no leases."""
    from flanpy.core.codec import decode_lease

    leases, refused = [], []
    for record in records.records:
        try:
            leases.append(decode_lease(record))
        except CodecError as error:
            refused.append(Refused(record.key, str(error)))
    leases.sort(key=lambda lease: (lease.subnets.ipv4 is None, int((lease.subnets.ipv4 or lease.subnets.ipv6).network_address)))  # type: ignore[union-attr]
    with ThreadPoolExecutor(ASKERS) as pool:
        left = list(pool.map(lambda lease: None if lease.is_reservation else seconds_left(lease.etcd_lease_id), leases))
    rows = [
        Row(
            str(lease.subnets),
            lease.attributes.flanpy.node if lease.attributes.flanpy else None,
            str(lease.attributes.address),
            lease.attributes.backend_type.lower() or "udp",
            seconds,
            lease.is_reservation,
        )
        for lease, seconds in zip(leases, left, strict=True)
    ]
    return rows, refused


def render(rows: Iterable[Row], refused: Iterable[Refused], colours: Paint, place: str) -> list[str]:
    """The table, line by line; ``place``: where in etcd they are."""
    cells = [(row.subnets, row.public_ip, row.backend, _left(row), row.node or "-") for row in rows]
    lines = table(("SUBNET", "PUBLIC IP", "BACKEND", "TIME LEFT", "NODE"), cells, colours) if cells else [f"no leases at {place}"]
    bad = [f"  {printable(item.key)}: {printable(item.reason)}" for item in refused]
    return [*lines, *(["", colours.warn("no leases, refused by every node"), *bad] if bad else [])]


def _left(row: Row) -> str:
    if row.reservation:
        return "reservation"
    return "ended" if row.seconds_left is None else duration(row.seconds_left)
