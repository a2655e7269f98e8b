"""``flanpy network get|set|check``: the cluster's network config in etcd. Parses arguments and prints; the rules are in config.network.

``set`` writes the text as it was given, and only if nobody has changed the config since it was read; it writes nothing that would
leave nodes with a subnet that does not fit, or cut running nodes off from each other, unless it is told to.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import closing, suppress
from pathlib import Path

from flanpy.cli.etcd_store import add_etcd_arguments, etcd_values, open_etcd
from flanpy.config.network import parse_network_config, render_network_config
from flanpy.errors import CodecError, ConfigError, StoreError, UsageError
from flanpy.model import NetworkConfig, Record, RecordSet, Subnets
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
AGREED_OPTIONS = ("Port", "VNI", "ListenPort", "ListenPortV6")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The three subcommands and their flags."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="network_command", metavar="get|set|check", required=True)
    get = commands.add_parser("get", help="show the config in etcd, defaults filled in")
    get.add_argument("--raw", action="store_true", help="the text exactly as it stands in etcd, also if it is wrong")
    write = commands.add_parser("set", help="check a config and write it to etcd")
    write.add_argument("--force", action="store_true", help="write it even if nodes lose their subnets or each other by it")
    check = commands.add_parser("check", help="check a config; all problems at once, with their key paths")
    for command in (write, check):
        command.add_argument("file", nargs="?", metavar="FILE", help="file with the config; - reads standard input")
        command.add_argument("--json", metavar="TEXT", help="the config itself instead of a file")
    for command in (get, write, check):
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
    from flanpy.core.allocate import fits

    config = parse_network_config(text)
    before = store.read(KEY)
    if before is not None and before.value == text:
        _say(arguments, f"{prefix}/{KEY} already says so; nothing written", key=f"{prefix}/{KEY}", written=False, warnings=[])
        return 0
    leased = _leased(store.list("subnets/"))
    cuts = _cuts(before, config, len(leased))
    misfits = [f"{subnets}: leased, and does not fit the new config" for subnets in leased if not fits(config, subnets)]
    if (cuts or misfits) and not arguments.force:
        end = ", and these nodes change their subnets" if misfits else ""
        raise ConfigError((*cuts, *_shortened(misfits), f"nothing written; --force writes it{end}"))
    if store.put(KEY, text, expected_mod_revision=before.mod_revision if before else 0) is None:
        raise StoreError(f"{prefix}/{KEY} was changed by somebody else meanwhile; nothing written, look at it and try again")
    warnings = [*cuts, *_shortened(misfits)]
    if arguments.output != "json":
        for line in warnings:
            print(f"warning: {line}", file=sys.stderr)
    told = f"{prefix}/{KEY} {'replaced' if before else 'written'}: {config.network or config.ipv6_network}, {config.backend.type}"
    restart = "\nrunning agents keep the old config until they are restarted" if before is not None else ""
    _say(arguments, told + restart, key=f"{prefix}/{KEY}", written=True, warnings=warnings)
    return 0


def _say(arguments: argparse.Namespace, text: str, **facts: object) -> None:
    print(json.dumps(facts, indent=2) if arguments.output == "json" else text)


def _leased(records: RecordSet) -> list[Subnets]:
    """The subnets that somebody holds; keys that are no lease of anybody are passed over."""
    from flanpy.core.codec import subnets_of

    found: list[Subnets] = []
    for record in records.records:
        with suppress(CodecError):
            found.append(subnets_of(record.key))
    return found


def _cuts(before: Record | None, config: NetworkConfig, nodes: int) -> list[str]:
    """A line for each change by which nodes with the old config and nodes with the new one lose each other."""
    if before is None or not nodes:
        return []
    try:
        old = _shared(parse_network_config(before.value))
    except ConfigError:
        return []  # no node runs by it
    new = _shared(config)
    held = "1 node holds a lease" if nodes == 1 else f"{nodes} nodes hold leases"
    names = [name for name in old if old["Backend.Type"] == new["Backend.Type"] or "Network" in name or name == "Backend.Type"]
    return [
        f"{name}: {old[name]} becomes {new[name]} while {held}; "
        "until all agents are restarted, old and new nodes do not reach each other"
        for name in names
        if name in new and old[name] != new[name]
    ]


def _shared(config: NetworkConfig) -> dict[str, object]:
    """What all nodes have to agree on, by key path. Options of another backend type cannot be compared, their type can."""
    networks = {"Network": config.network or "none", "IPv6Network": config.ipv6_network or "none"}
    backend = config.backend
    options = {f"Backend.{name}": backend.options[name] for name in AGREED_OPTIONS if name in backend.options}
    return {**networks, "Backend.Type": backend.type, **options}


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
