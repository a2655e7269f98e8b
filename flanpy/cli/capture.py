"""``flanpy capture``: inner and outer packets as they pass, as text or as a file for Wireshark. Prints; ``agent.capture`` looks."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flanpy.cli.numbers import decimal, whole
from flanpy.cli.output import add_agent_arguments, counted, run_dir
from flanpy.errors import UsageError

if TYPE_CHECKING:
    from flanpy.agent.capture import Captured, Plan

DESCRIPTION = """\
Show the packets of the overlay: inner ones at its device, outer ones at the underlay interface, each with what it carries.

Nothing is touched while it runs or after: the kernel hands copies to this command alone. Of a superpacket the first packet is shown and
judged. With the ebpf datapath, packets that go out are taken at the overlay's device before they can be seen there: look at the outer ones,
which show the inner packet in brackets. wireguard's outer packets are encrypted. Ctrl-C ends it.
"""
EPILOG = """\
examples:
  flanpy capture --count 20
  flanpy capture --pod 10.244.7.2 --side inner
  flanpy capture --peer 10.0.0.2 --seconds 10 --write peer.pcapng
  flanpy capture --write - | wireshark -k -i -

exit status: 0 done, 2 no such peer or pod, 5 no permission, 10 no agent answers
"""
FILE_MODE = 0o600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--peer", metavar="NODE", help="only outer packets from or to this node")
    parser.add_argument("--pod", metavar="POD", help="only packets of this pod (an address, or its name)")
    parser.add_argument("--side", choices=("inner", "outer", "both"), default="both", help="where to look (default: both)")
    parser.add_argument("--count", type=whole, metavar="N", help="end after so many packets")
    parser.add_argument("--seconds", type=decimal, metavar="S", help="end after so long")
    parser.add_argument("--write", metavar="FILE", help="write pcapng instead of text; - is standard output")
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look and print until the count, the time, or Ctrl-C."""
    from flanpy.agent import capture

    if arguments.count is not None and arguments.count < 1:
        raise UsageError(f"--count: {arguments.count} is not a positive number")
    if arguments.seconds is not None and not 0 < arguments.seconds <= 86400:
        raise UsageError(f"--seconds: {arguments.seconds:g} is out of range (more than 0, at most 86400)")
    plan = capture.plan(run_dir(arguments), arguments.peer, arguments.pod, arguments.side)
    seen = 0
    with ExitStack() as stack:
        running = stack.enter_context(capture.Capture(plan))
        keep = _writer(arguments, plan, stack)
        places = ", ".join(place.device for place in plan.places)
        print(f"flanpy: capturing at {places}; Ctrl-C ends it", file=sys.stderr, flush=True)
        until_s = None if arguments.seconds is None else time.monotonic() + arguments.seconds
        try:
            for captured in running.packets(until_s):
                keep(captured)
                seen += 1
                if seen == arguments.count:
                    break
        except KeyboardInterrupt:
            pass
        running.close()
        lost = f", {running.lost} more were not recorded: too many at once" if running.lost else ""
        print(f"flanpy: {counted(seen, 'packet')}{lost}", file=sys.stderr)
    return 0


def _writer(arguments: argparse.Namespace, plan: Plan, stack: ExitStack) -> Callable[[Captured], None]:
    """What becomes of each packet. Raises UsageError when the file cannot be written."""
    if arguments.write is None:
        line = _json if arguments.output == "json" else _text
        return lambda captured: print(line(captured, plan), flush=True)
    from flanpy.core.captured import file_head, file_packet

    try:
        number = 1 if arguments.write == "-" else os.open(arguments.write, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    except OSError as error:
        raise UsageError(f"--write: {arguments.write}: {error.strerror}") from error
    file = stack.enter_context(os.fdopen(number, "wb", closefd=arguments.write != "-"))
    file.write(file_head([(place.device, 0) for place in plan.places], 262144))

    def keep(captured: Captured) -> None:
        file.write(file_packet(captured.place, captured.time_ns, captured.data, captured.original_bytes, captured.direction))
        if arguments.write == "-":
            file.flush()

    return keep


def _text(captured: Captured, plan: Plan) -> str:
    return "  ".join(_words(captured, plan))


def _words(captured: Captured, plan: Plan) -> Iterator[str]:
    from flanpy.core.captured import OUTBOUND, describe

    place = plan.places[captured.place]
    width = max(len(each.device) for each in plan.places)
    yield datetime.fromtimestamp(captured.time_ns / 1e9, UTC).strftime("%H:%M:%S.%f")
    yield f"{place.device:{width}} {'out' if captured.direction == OUTBOUND else 'in '}"
    yield describe(captured.packet, plan.tunnel if place.outer else None) if captured.packet else ""


def _json(captured: Captured, plan: Plan) -> str:
    from flanpy.core.captured import OUTBOUND, describe

    place, packet = plan.places[captured.place], captured.packet
    shown: dict[str, Any] = {
        "time_ns": captured.time_ns,
        "device": place.device,
        "side": "outer" if place.outer else "inner",
        "direction": "out" if captured.direction == OUTBOUND else "in",
        "bytes": captured.original_bytes,
    }
    if packet is not None:
        shown |= {"source": str(packet.source), "destination": str(packet.destination), "protocol": packet.protocol}
        shown["text"] = describe(packet, plan.tunnel if place.outer else None)
    return json.dumps(shown)
