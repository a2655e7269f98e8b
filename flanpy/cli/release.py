"""``flanpy release``: take a lease or a reservation out of etcd. Asks for ``--yes`` where a living lease would go."""

from __future__ import annotations

import argparse
from contextlib import closing

from flanpy.cli.etcd_store import add_etcd_arguments, open_etcd
from flanpy.cli.output import add_output_argument, duration, show, show_json
from flanpy.errors import LeaseError, StoreError
from flanpy.model import Record, Subnets
from flanpy.stores import Store

EPILOG = """\
examples:
  flanpy release 10.244.7.0/24            a reservation, or what a bad key holds
  flanpy release 10.244.7.0/24 --yes      a lease that has not ended; a running agent registers its subnet again

exit status: 0 done, 2 wrong arguments, 4 etcd, 7 no such lease, or it lives and --yes is missing
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subnet and the flags."""
    parser.description = "Give SUBNET back: delete its lease or reservation."
    parser.epilog = EPILOG
    parser.add_argument("subnet", metavar="SUBNET", help="such as 10.244.7.0/24")
    parser.add_argument("--yes", action="store_true", help="also if the lease lives: its node's pods lose the overlay")
    add_output_argument(parser)
    add_etcd_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    with closing(open_etcd(arguments)) as store:
        subnets = release(store, arguments.subnet, sure=arguments.yes)
    if arguments.output == "json":
        show_json({"subnets": str(subnets), "released": True})
    else:
        show([f"{subnets} is free"])
    return 0


def release(store: Store, text: str, *, sure: bool) -> Subnets:
    """Release; what is free now. Raises UsageError, LeaseError, StoreError."""
    from flanpy.core.codec import SUBNETS
    from flanpy.core.reservations import find, parse_subnets

    subnets = parse_subnets(text)
    record = find(store.list(SUBNETS), subnets)
    if not sure:
        _must_not_live(store, subnets, record)
    if not store.delete(record.key, expected_mod_revision=record.mod_revision):
        raise StoreError(f"{subnets} was written by somebody meanwhile (renewed?); nothing deleted, try again")
    return subnets


def _must_not_live(store: Store, subnets: Subnets, record: Record) -> None:
    left = store.seconds_left(record.etcd_lease_id) if record.etcd_lease_id else None
    if left is not None:
        raise LeaseError(
            f"{subnets} is leased for another {duration(left)}: its node's pods would lose the overlay, and a running agent would "
            "register it again; stop that agent first, then --yes"
        )
