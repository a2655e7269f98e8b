"""``flanpy reserve``: keep a subnet for one node for ever. Written only if nothing has changed since it was read."""

from __future__ import annotations

import argparse
from contextlib import closing
from ipaddress import ip_address

from flanpy.cli.etcd_store import add_etcd_arguments, etcd_values, open_etcd
from flanpy.cli.output import add_output_argument, show, show_json
from flanpy.errors import ConfigError, StoreError, UsageError
from flanpy.model import Address, Subnets
from flanpy.stores import Store

EPILOG = """\
examples:
  flanpy reserve 10.244.7.0/24 --public-ip 192.0.2.7
A node that has the subnet already keeps it without expiry from now on.

exit status: 0 done, 2 wrong arguments or a subnet that does not fit, 3 no network config, 4 etcd, 7 the subnet is taken
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subnet, the address and the flags."""
    parser.description = "Keep SUBNET for the node that peers reach by the given address, also while that node is away."
    parser.epilog = EPILOG
    parser.add_argument("subnet", metavar="SUBNET", help="such as 10.244.7.0/24; with IPv6: 10.244.7.0/24,fd00:7::/64")
    parser.add_argument(
        "--public-ip", metavar="IP", required=True, help="the node's address in the underlay, IPv6 where it has no IPv4"
    )
    add_output_argument(parser)
    add_etcd_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    prefix = etcd_values(arguments)["etcd_prefix"]
    address = parse_address(arguments.public_ip)
    with closing(open_etcd(arguments)) as store:
        subnets = reserve(store, prefix, arguments.subnet, address)
    if arguments.output == "json":
        show_json({"subnets": str(subnets), "public_ip": str(address), "reservation": True})
    else:
        show([f"{subnets} is reserved for {address}"])
    return 0


def parse_address(text: str) -> Address:
    """The node's address; IPv6 for a node that has no public IPv4 address. Raises UsageError."""
    try:
        if "%" not in text:
            return ip_address(text)
    except ValueError:
        pass
    raise UsageError(f"--public-ip: {text!r} is not an address such as 192.0.2.7 or 2001:db8::7")


def reserve(store: Store, prefix: str, text: str, address: Address) -> Subnets:
    """Reserve; what is reserved now. Raises UsageError, ConfigError, LeaseError, StoreError."""
    from flanpy.config.network import parse_network_config
    from flanpy.core.codec import SUBNETS
    from flanpy.core.reservations import parse_subnets, plan_reservation

    subnets = parse_subnets(text)
    config = store.read("config")
    if config is None:
        raise ConfigError(f"etcd has no network config at {prefix}/config; write one with: flanpy network set FILE")
    write = plan_reservation(parse_network_config(config.value), store.list(SUBNETS), subnets, address)
    if store.put(write.key, write.value, expected_mod_revision=write.expected_mod_revision) is None:
        raise StoreError(f"{prefix}/{write.key} was changed by somebody else meanwhile; nothing written, try again")
    return subnets
