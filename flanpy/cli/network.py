"""``flanpy network get|set|check``: the cluster's network config in etcd. Parses arguments and prints; the rules are in config.network.

``set`` writes the text as it was given, and only if nobody has changed the config since it was read; it writes nothing that would
leave nodes with a subnet that does not fit, unless it is told to.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import closing
from pathlib import Path

from flanpy.cli.etcd_store import add_etcd_arguments, etcd_values, open_etcd
from flanpy.config.network import parse_network_config, render_network_config
from flanpy.errors import CodecError, ConfigError, StoreError, UsageError
from flanpy.model import NetworkConfig, RecordSet
from flanpy.stores import Store

EPILOG = """\
examples:
  flanpy network check cluster.json
  flanpy network set --json '{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}'
  flanpy network get --etcd-endpoints http://10.0.0.1:2379 --output json
  flanpy network get --output json | jq .SubnetLen=25 | flanpy network set -

exit status: 0 done, 2 wrong arguments, 3 the config is missing or wrong, 4 etcd does not do what was asked
"""
KEY = "config"
SHOWN_MISFITS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The three subcommands and their flags."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="network_command", metavar="get|set|check", required=True)
    get = commands.add_parser("get", help="show the config in etcd, defaults filled in")
    get.add_argument("--raw", action="store_true", help="the text exactly as it stands in etcd, also if it is wrong")
    write = commands.add_parser("set", help="check a config and write it to etcd")
    write.add_argument("--force", action="store_true", help="write it even if subnets that nodes hold do not fit")
    check = commands.add_parser("check", help="check a config; all problems at once, with their key paths")
    for command in (write, check):
        command.add_argument("file", nargs="?", metavar="FILE", help="file with the config; - reads standard input")
        command.add_argument("--json", metavar="TEXT", help="the config itself instead of a file")
    for command in (get, check):
        command.add_argument("--output", choices=("table", "json"), default="table", help="what to print (default: table)")
    for command in (get, write):
        add_etcd_arguments(command)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    match arguments.network_command:
        case "check":
            return _check(arguments)
        case "get":
            with closing(open_etcd(arguments)) as store:
                return get_config(arguments, store, etcd_values(arguments)["etcd_prefix"])
        case _:
            text = _text(arguments)
            with closing(open_etcd(arguments)) as store:
                return set_config(arguments, text, store, etcd_values(arguments)["etcd_prefix"])


# ------------------------------------------------------------------------------------------------ check and get


def _check(arguments: argparse.Namespace) -> int:
    try:
        config = parse_network_config(_text(arguments))
    except ConfigError as error:
        if arguments.output == "json":
            print(json.dumps({"valid": False, "problems": error.problems}, indent=2))
        else:
            print("\n".join(error.problems), file=sys.stderr)
        return error.exit_code
    if arguments.output == "json":
        print(json.dumps({"valid": True, "config": json.loads(render_network_config(config))}, indent=2))
    else:
        _print_table(config)
    return 0


def get_config(arguments: argparse.Namespace, store: Store, prefix: str) -> int:
    """Print the config that the store has; returns the exit status."""
    record = store.read(KEY)
    if record is None:
        raise ConfigError(f"etcd has no network config at {prefix}/{KEY}; write one with: flanpy network set FILE")
    if arguments.raw:
        sys.stdout.write(record.value.decode("utf-8", errors="backslashreplace") + "\n")
        return 0
    config = parse_network_config(record.value)
    if arguments.output == "json":
        sys.stdout.write(render_network_config(config))
    else:
        _print_table(config)
    return 0


def _print_table(config: NetworkConfig) -> None:
    """Every setting with its value, the backend's options with their key path."""
    rows = json.loads(render_network_config(config))
    backend = rows.pop("Backend")
    rows |= {f"Backend.{name}": value for name, value in backend.items()}
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value if isinstance(value, str) else json.dumps(value)}".rstrip())


# ------------------------------------------------------------------------------------------------ set


def set_config(arguments: argparse.Namespace, text: bytes, store: Store, prefix: str) -> int:
    """Write a config if it is right, fits, and nobody has changed it since it was read; returns the exit status."""
    config = parse_network_config(text)
    before = store.read(KEY)
    if before is not None and before.value == text:
        print(f"{prefix}/{KEY} already says so; nothing written")
        return 0
    misfits = _misfits(config, store.list("subnets/"))
    if misfits and not arguments.force:
        raise ConfigError((*_shortened(misfits), "nothing written; --force writes it, and these nodes change their subnets"))
    if store.put(KEY, text, expected_mod_revision=before.mod_revision if before else 0) is None:
        raise StoreError(f"{prefix}/{KEY} was changed by somebody else meanwhile; nothing written, look at it and try again")
    for line in _shortened(misfits):
        print(f"warning: {line}", file=sys.stderr)
    print(f"{prefix}/{KEY} {'replaced' if before else 'written'}: {config.network or config.ipv6_network}, {config.backend.type}")
    return 0


def _misfits(config: NetworkConfig, records: RecordSet) -> list[str]:
    """A line for each leased subnet that the config would not give to anybody."""
    from flanpy.core.allocate import fits
    from flanpy.core.codec import subnets_of

    lines: list[str] = []
    for record in records.records:
        try:
            subnets = subnets_of(record.key)
        except CodecError:
            continue  # not a lease of anybody
        if not fits(config, subnets):
            lines.append(f"{subnets}: leased, and does not fit the new config")
    return lines


def _shortened(lines: list[str]) -> list[str]:
    rest = len(lines) - SHOWN_MISFITS
    return lines if rest <= 0 else [*lines[:SHOWN_MISFITS], f"and {rest} more"]


# ------------------------------------------------------------------------------------------------ where things come from


def _text(arguments: argparse.Namespace) -> bytes:
    """The config's text, without the white space around it."""
    if (arguments.file is None) == (arguments.json is None):
        raise UsageError("network: give either a FILE (- for standard input) or --json TEXT")
    if arguments.json is not None:
        return os.fsencode(arguments.json).strip()
    if arguments.file == "-":
        return sys.stdin.buffer.read().strip()
    try:
        return Path(arguments.file).read_bytes().strip()
    except OSError as exc:
        raise UsageError(f"network: cannot read {arguments.file}: {exc.strerror}") from exc
