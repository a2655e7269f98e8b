"""``flanpy bench``: measure the overlay beside its alternatives, in one run, interleaved.

Only the command line is here: what is measured stands in ``flanpy.bench``.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flanpy.bench.samples import MODES, SETUPS, Settings
from flanpy.cli.numbers import decimal, whole
from flanpy.errors import LabError, UsageError

if TYPE_CHECKING:
    from flanpy.bench.samples import Result

DESCRIPTION = """\
Measure the overlay beside its alternatives on this machine: all setups alive side by side, rounds interleaved, medians with
their spread and ratios taken round by round. Traffic stays in network namespaces that vanish with the command. Needs root.

  flanpy bench quick      TCP, one stream, in less than two minutes
  flanpy bench            everything; see --list for what that is and --groups to choose
  flanpy bench core       the functions of the C core by themselves: nanoseconds a packet, against the plain version of each
"""

EPILOG = """\
examples:
  flanpy bench quick
  flanpy bench --groups tcp,latency --modes wire --rounds 7
  flanpy bench --groups content --gigabytes 10 --rounds 1 --setups userspace,ebpf
  flanpy bench --flanneld /usr/local/bin/flanneld
  flanpy bench quick --output json | jq '.samples | length'

results: DIRECTORY/<time>/result.json (every sample), report.md, plots as SVG and PNG.

exit status: 0 done, 2 wrong arguments, 5 the results cannot be written, 9 a sample could not be taken, 130 interrupted; in the
last two the samples that are complete are written and shown
"""

Number = TypeVar("Number", int, float)

GROUPS = {
    "tcp": "throughput, retransmits and CPU time: streams, directions, cubic and bbr",
    "udp": "highest packet rate with at most 0.5 % loss: 64, 512 and 1400 B; delay at 80 % of it",
    "latency": "request and response: idle and under a TCP stream",
    "agent": "convergence, join time, memory, idle CPU, loss while tables change (needs etcd)",
    "core": "the C core by itself",
    "content": "random content over TCP, every byte compared (not unless named; --gigabytes)",
}
USUAL_GROUPS = tuple(name for name in GROUPS if name != "content")
USUAL_MODES = ("superpacket", "wire", "wire-gro")
QUICK_SETUPS = ("routed", "vxlan", "proxy", "userspace", "ebpf")
QUICK_MODES = ("superpacket", "wire")
QUICK_GROUPS = ("tcp",)
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("what", nargs="?", choices=("all", "quick", "core"), default="all", help="default: all")
    parser.add_argument("--quick", action="store_true", help="the same as `flanpy bench quick`")
    parser.add_argument("--setups", metavar="NAMES", help=f"of {', '.join(SETUPS)} (default: all that work here)")
    parser.add_argument(
        "--modes", metavar="NAMES", help=f"of {', '.join(MODES)} (default: {','.join(USUAL_MODES)}; quick: superpacket,wire)"
    )
    parser.add_argument("--groups", metavar="NAMES", help=f"of {', '.join(GROUPS)} (default: all but content; quick: tcp)")
    parser.add_argument("--rounds", type=whole, default=5, metavar="N", help="samples of each figure (default: %(default)s)")
    parser.add_argument("--seconds", type=decimal, default=2, metavar="S", help="length of a sample (default: %(default)s)")
    parser.add_argument("--streams", metavar="COUNTS", help="TCP streams (default: 1,4; quick: 1)")
    parser.add_argument(
        "--gigabytes", type=decimal, default=1.0, metavar="G", help="content: how much a sample (default: %(default)g)"
    )
    parser.add_argument("--flanneld", metavar="PATH", help="measure this flanneld too (needs etcd)")
    parser.add_argument("--directory", type=Path, default=Path("bench-results"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--output", choices=("text", "json"), default="text", help="what goes to standard output")
    parser.add_argument("--list", action="store_true", help="show setups, modes and groups, and what works here; measure nothing")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the results, show them."""
    from flanpy.bench import suite

    if arguments.list:
        show_list(suite.missing(SETUPS))
        return 0
    settings = settings_of(arguments, suite.missing)
    result = suite.run(settings, quick=is_quick(arguments))
    show(result, arguments)
    if result.interrupted:
        return INTERRUPTED
    return LabError.exit_code if result.failures else 0


def is_quick(arguments: argparse.Namespace) -> bool:
    """Whether the short run is asked for, in either way."""
    return bool(arguments.quick or arguments.what == "quick")


def settings_of(arguments: argparse.Namespace, missing: Callable[[Iterable[str]], dict[str, str]]) -> Settings:
    """The options as settings; ``missing`` tells which setups do not work here, and why. Raises UsageError."""
    quick = is_quick(arguments)
    groups = ("core",) if arguments.what == "core" else QUICK_GROUPS if quick else USUAL_GROUPS
    return Settings(
        setups=setups_of(arguments, QUICK_SETUPS if quick else tuple(SETUPS), missing),
        modes=chosen("--modes", arguments.modes, MODES) if arguments.modes else QUICK_MODES if quick else USUAL_MODES,
        rounds=bounded("--rounds", arguments.rounds, 1, 1000),
        seconds=bounded("--seconds", arguments.seconds, 0.1, 600),
        streams=streams(arguments.streams) if arguments.streams else ((1,) if quick else (1, 4)),
        groups=chosen("--groups", arguments.groups, GROUPS) if arguments.groups else groups,
        flanneld=arguments.flanneld,
        gigabytes=bounded("--gigabytes", arguments.gigabytes, 0.001, 1000),
    )


def setups_of(
    arguments: argparse.Namespace, usual: tuple[str, ...], missing: Callable[[Iterable[str]], dict[str, str]]
) -> tuple[str, ...]:
    """The setups to measure: those that are named, which must work here, or those of the usual ones that do."""
    if arguments.what == "core":
        return ()
    wanted = chosen("--setups", arguments.setups, SETUPS) if arguments.setups else usual
    if arguments.flanneld:
        wanted = (*(name for name in wanted if name != "flanneld"), "flanneld")
    lacking = missing(name for name in wanted if name != "flanneld" or not arguments.flanneld)
    for name, reason in lacking.items():
        if arguments.setups:
            raise UsageError(f"--setups: {name} does not work here: {reason}")
    return tuple(name for name in wanted if name not in lacking)


def chosen(option: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    """The names of a comma-separated list, each known; raises UsageError with the nearest name."""
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"{option}: {name!r} is unknown; {hint}")
    if not names:
        raise UsageError(f"{option}: empty; known: {', '.join(known)}")
    return names


def streams(text: str) -> tuple[int, ...]:
    """``1,4`` as numbers."""
    try:
        return tuple(bounded("--streams", int(word), 1, 64) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"--streams: {text!r} is not a list of numbers such as 1,4") from error


def bounded(option: str, value: Number, least: float, most: float) -> Number:
    """The value, when it lies within the bounds; raises UsageError."""
    if not least <= value <= most:
        raise UsageError(f"{option}: {value:g} is out of range ({least:g} to {most:g})")
    return value


def show_list(missing: dict[str, str]) -> None:
    """What could be measured here."""
    for title, names in (("setups", SETUPS), ("modes", MODES), ("groups", GROUPS)):
        print(f"{title}:")
        for name, meaning in names.items():
            print(f"  {name:12} {meaning}")
            if title == "setups" and name in missing:
                print(f"  {'':12} not here: {missing[name]}")


def show(result: Result, arguments: argparse.Namespace) -> None:
    """Write the files and print the result as it was asked for."""
    from flanpy.bench import output, report
    from flanpy.bench.goals import judge
    from flanpy.bench.samples import to_json

    directory = output.new_directory(arguments.directory, result.started)
    names = output.write(result, directory)
    if arguments.output == "json":
        sys.stdout.write(to_json(result))
    else:
        output.print_tables(report.tables(result))
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for failure in result.failures:
        print(f"failed: {failure}", file=sys.stderr)
    judged = [verdict for verdict in judge(result) if verdict.judged]
    if judged:
        reached = sum(verdict.reached for verdict in judged)
        print(f"goals: {reached} of {len(judged)} reached; report.md says what bounds the others", file=sys.stderr)
    print(f"written: {directory}/ ({', '.join(names)})", file=sys.stderr)
