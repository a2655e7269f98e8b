"""``flanpy lab``: an overlay of several hosts on this machine, in namespaces of its own."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flanpy.cli.numbers import decimal, whole
from flanpy.cli.output import counted
from flanpy.errors import UsageError

if TYPE_CHECKING:
    from flanpy.lab.registry import LabSpec

DESCRIPTION = """\
Hosts and pods are network namespaces, etcd is the real server, every host runs a real agent. A lab lives in namespaces of its own
and is held by one process: when that ends, for whatever reason, the kernel removes everything. Several labs can run at once.
Root is not needed where the kernel lets users make user namespaces and /dev/net/tun may be opened (--datapath ebpf needs root).
"""

EPILOG = """\
examples:
  flanpy lab demo                                     see it all in half a minute
  flanpy lab up --hosts 3 --pods 2                    start a lab that stays; then:
  flanpy lab status
  flanpy lab exec host1-pod1 -- ping -c 3 host2-pod1
  flanpy lab exec host1 -- ip route                   a host; `etcd` is where etcd runs
  flanpy lab logs host1 --follow
  flanpy lab cut host2; flanpy lab join host2         pull its cable, plug it in again
  flanpy lab stop host2 --kill; flanpy lab start host2      its agent, without a farewell; also etcd
  flanpy lab impair host2 --loss 10 --rate 100        10 percent loss, 100 Mbit/s
  flanpy lab down
Where several labs run, name one: `flanpy lab status LAB` or `--lab LAB`.

exit status: 0 done, 2 wrong arguments, 3 wrong network config, 9 the lab cannot do it; exec: the command's own, 126 it cannot be
executed, 127 not found, 128 + N ended by signal N
"""

DEFAULT_NAME = "lab"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser the lab's actions."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str, *, lab: str = "which lab (default: the only one)") -> argparse.ArgumentParser:
        child = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if lab:
            child.add_argument("name", nargs="?", metavar="LAB", help=lab)
            child.add_argument("--lab", metavar="LAB", help="the same as LAB")
        return child

    _add_up(action("up", "start a lab that stays until `lab down`", lab=f"its name (default {DEFAULT_NAME})"))
    action("status", "show hosts, leases, agents and pods").add_argument("--output", choices=("table", "json"), default="table")
    action("list", "name the labs that run", lab="").add_argument("--output", choices=("table", "json"), default="table")
    execute = action("exec", "run a command on a host or in a pod; its exit status is passed on", lab="")
    execute.usage = "flanpy lab exec [--lab LAB] [LAB] NAME -- COMMAND [ARGUMENT ...]"
    execute.add_argument("--lab", metavar="LAB", help="the same as LAB")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="[LAB] NAME -- COMMAND")
    logs = action("logs", "print the log of a host's agent, or of etcd")
    logs.add_argument("of", metavar="HOST|etcd", help="whose agent, or etcd")
    logs.add_argument("--follow", "-f", action="store_true", help="go on with what is written from now on")
    for name, text in (("cut", "pull a host's cable"), ("join", "plug a host's cable in again")):
        action(name, text).add_argument("host", metavar="HOST")
    stop = action("stop", "end a host's agent, or etcd, by SIGTERM; packets go on")
    stop.add_argument("of", metavar="HOST|etcd", help="whose agent, or etcd")
    stop.add_argument("--kill", action="store_true", help="by SIGKILL, without a farewell")
    start = action("start", "start a host's agent again, or etcd, and wait until it is ready")
    start.add_argument("of", metavar="HOST|etcd", help="whose agent, or etcd")
    impair = action("impair", "make a host's cable lose packets or slower; 0 ends it")
    impair.add_argument("host", metavar="HOST")
    impair.add_argument("--loss", type=decimal, metavar="PERCENT", help="drop this share at random, in each direction")
    impair.add_argument("--rate", type=decimal, metavar="MBIT", help="limit the rate in each direction, Mbit/s")
    down = action("down", "end a lab and remove everything of it")
    down.add_argument("--all", action="store_true", help="all of them")
    demo = action("demo", "show an overlay of three hosts at work, then remove it", lab="")
    demo.add_argument("--datapath", default="auto", choices=("auto", "userspace", "ebpf"))


def _add_up(up: argparse.ArgumentParser) -> None:
    up.add_argument("--hosts", type=whole, default=3, metavar="N", help="hosts (default 3)")
    up.add_argument("--pods", type=whole, default=2, metavar="N", help="pods on each host (default 2)")
    up.add_argument("--backend", default="udp", metavar="TYPE", help="the network config's backend (default udp)")
    up.add_argument("--network", default="10.5.0.0/16", metavar="CIDR", help="the pods' network (default 10.5.0.0/16)")
    up.add_argument("--network-config", type=Path, metavar="FILE", help="a whole network config (JSON) in place of both")
    up.add_argument("--datapath", default="auto", choices=("auto", "userspace", "ebpf"), help="the agents' datapath")
    up.add_argument(
        "--underlay",
        default="superpacket",
        choices=("superpacket", "wire", "wire-gro", "wire-uso"),
        help="superpacket: cables carry whole superpackets; wire: each packet fits the MTU, as on a real wire; "
        "wire-gro: the same, merged again by the receiver; wire-uso: as wire, but UDP superpackets stay whole",
    )
    up.add_argument("--mtu", type=whole, default=1500, metavar="BYTES", help="MTU of the underlay (default 1500)")
    up.add_argument(
        "--agent-flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="a further flag for every agent: --agent-flag=--queues=2",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do one action; returns the exit status."""
    status: int = ACTIONS[arguments.action](arguments)
    return status


def lab_of(arguments: argparse.Namespace) -> str | None:
    """The lab that is named, by its position or by --lab; UsageError when these are two."""
    if None not in (arguments.name, arguments.lab) and arguments.name != arguments.lab:
        raise UsageError(f"--lab {arguments.lab}: {arguments.name} is named too; name one lab")
    name: str | None = arguments.name or arguments.lab
    return name


def _up(arguments: argparse.Namespace) -> int:
    from flanpy.lab import lifecycle
    from flanpy.lab.screen import Screen
    from flanpy.lab.status import read_status

    spec = _spec(arguments)
    with Screen() as screen:
        lab = lifecycle.start(spec, screen.working)
    screen.status(read_status(lab))
    screen.say(f"try: flanpy lab exec {spec.name} host1-pod1 -- ping -c 3 host{min(2, spec.hosts)}-pod1")
    return 0


def _spec(arguments: argparse.Namespace) -> LabSpec:
    """What `lab up` asks for; the network config is checked before anything is made."""
    from flanpy.config.network import parse_network_config
    from flanpy.lab.registry import LabSpec

    if arguments.network_config is not None:
        try:
            text = arguments.network_config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--network-config: cannot read {arguments.network_config}: {error}") from error
    else:
        text = json.dumps({"Network": arguments.network, "Backend": {"Type": arguments.backend}})
    parse_network_config(text)
    return LabSpec(
        name=lab_of(arguments) or DEFAULT_NAME,
        hosts=arguments.hosts,
        pods=arguments.pods,
        network_config=text,
        datapath=arguments.datapath,
        mode=arguments.underlay,
        mtu_bytes=arguments.mtu,
        agent_flags=tuple(arguments.agent_flag),
    )


def _down(arguments: argparse.Namespace) -> int:
    from flanpy.lab import lifecycle, registry

    names = [entry.spec.name for entry in registry.labs()] if arguments.all else [lab_of(arguments)]
    for name in names:
        print(f"{lifecycle.end(name)}: gone")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from flanpy.lab.demo import run_demo

    run_demo(arguments.datapath)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from flanpy.lab import registry

    labs = registry.labs()
    if arguments.output == "json":
        print(json.dumps([{**asdict(entry.spec), "holder": entry.holder} for entry in labs], indent=2))
    for entry in labs if arguments.output == "table" else ():
        size = f"{counted(entry.spec.hosts, 'host')}, {counted(entry.spec.pods, 'pod')} on each"
        print(f"{entry.spec.name}: {size}, held by process {entry.holder}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from flanpy.lab import lifecycle
    from flanpy.lab.screen import Screen
    from flanpy.lab.status import read_status

    status = read_status(lifecycle.attach(lab_of(arguments)))
    if arguments.output == "json":
        print(json.dumps(asdict(status), indent=2))
    else:
        Screen().status(status)
    return 0


def _exec(arguments: argparse.Namespace) -> int:
    from flanpy.lab import lifecycle, registry
    from flanpy.lab.console import execute

    where, command = split_exec(arguments.words)
    if "--" not in arguments.words and where[0] in {entry.spec.name for entry in registry.labs()}:
        fixed = shlex.join([*where, command[0], "--", *(command[1:] or ["COMMAND"])])
        raise UsageError(f"lab exec: {where[0]} is a lab; put -- before the command: flanpy lab exec {fixed}")
    arguments.name = where[0] if len(where) == 2 else None
    return execute(lifecycle.attach(lab_of(arguments)), where[-1], command)


def split_exec(words: list[str]) -> tuple[list[str], list[str]]:
    """``[LAB] NAME -- COMMAND...`` into its two halves; a ``--lab LAB`` behind NAME is moved to its place."""
    head, tail = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words[:1], words[1:])
    if "--lab" in head[:-1]:
        at = head.index("--lab")
        head = [head[at + 1], *head[:at], *head[at + 2 :]]
    if len(head) not in (1, 2) or not tail:
        raise UsageError("lab exec: say where and what, such as `flanpy lab exec host1-pod1 -- ping -c 3 host2-pod1`")
    return head, tail


def _logs(arguments: argparse.Namespace) -> int:
    from flanpy.lab import lifecycle
    from flanpy.lab.console import print_log

    lab = lifecycle.attach(lab_of(arguments))
    if arguments.of != "etcd":
        lab.plan.host(arguments.of)
    print_log(lab.log_path(arguments.of), follow=arguments.follow, goes_on=lambda: lab.sandbox.alive)
    return 0


def _cable(arguments: argparse.Namespace) -> int:
    from flanpy.lab import lifecycle

    lab = lifecycle.attach(lab_of(arguments))
    match arguments.action:
        case "cut":
            lab.cut(arguments.host)
        case "join":
            lab.join(arguments.host)
        case _:
            if arguments.loss is None and arguments.rate is None:
                raise UsageError("lab impair: give --loss PERCENT, --rate MBIT or both (0 ends it)")
            lab.impair(arguments.host, loss_percent=arguments.loss, rate_mbit=arguments.rate)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from flanpy.lab import lifecycle
    from flanpy.lab.console import ETCD

    lab = lifecycle.attach(lab_of(arguments))
    number = signal.SIGKILL if arguments.kill else signal.SIGTERM
    if arguments.of == ETCD:
        lab.stop_etcd(number)
    else:
        lab.stop_agent(lab.plan.host(arguments.of).name, number)
    return 0


def _start(arguments: argparse.Namespace) -> int:
    from flanpy.lab import lifecycle
    from flanpy.lab.console import ETCD

    lab = lifecycle.attach(lab_of(arguments))
    if arguments.of == ETCD:
        lab.start_etcd_again()
    else:
        lab.start_agents([arguments.of])
    return 0


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": _up,
    "status": _status,
    "list": _list,
    "exec": _exec,
    "logs": _logs,
    "cut": _cable,
    "join": _cable,
    "stop": _stop,
    "start": _start,
    "impair": _cable,
    "down": _down,
    "demo": _demo,
}
