"""A process in each pod that sends, receives and asks when told to: one line of JSON in, one line out.

    {"do": "receive", ...}   -> {"ready": true}; after an empty line, when the packets have ceased -> {"done": {...}}
    {"do": "generate", ...}  -> {"done": {...}}
    {"do": "ask", ...}       -> {"done": {...}}

Every station also answers requests (``ANSWER_PORT``) and has its receiving socket open (``RECEIVE_PORT``) for all its life.
It ends at the end of its standard input. Arguments are those of the functions in ``native`` by name.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import threading
from typing import Any

from flanpy.bench import native

ANSWER_PORT = 9007
RECEIVE_PORT = 9009
FIRST_SOURCE_PORT = 20000
RECEIVE_BUFFER_BYTES = 64 << 20
LIFE_S = 24 * 3600.0


def _socket(port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind(("0.0.0.0", port))
    return opened


def _answer_for_ever() -> None:
    """Answer requests in a thread that ends with the process."""
    answerer = _socket(ANSWER_PORT)
    never, _keep_open = os.pipe()
    threading.Thread(target=native.answer, args=(answerer, never, LIFE_S), daemon=True).start()


def generate(to: str, flows: int, **what: Any) -> native.Sent:
    """Send probes to the station at address ``to``, each flow from a port of its own."""
    sockets = [_socket(FIRST_SOURCE_PORT + number) for number in range(flows)]
    try:
        for each in sockets:
            each.connect((to, RECEIVE_PORT))
        return native.generate(sockets, **what)
    finally:
        for each in sockets:
            each.close()


def ask(to: str, **what: Any) -> native.Answers:
    """Ask the station at address ``to``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect((to, ANSWER_PORT))
        return native.ask(asker, **what)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    """Take orders until standard input ends."""
    _answer_for_ever()
    receiver = _socket(RECEIVE_PORT)
    native.prepare_receiver(receiver, RECEIVE_BUFFER_BYTES)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        done: native.Sent | native.Received | native.Answers
        match order.pop("do"):
            case "generate":
                done = generate(**order)
            case "ask":
                done = ask(**order)
            case "receive":
                _say({"ready": True})
                done = native.receive(receiver, sys.stdin.fileno(), **order)
                sys.stdin.readline()
            case other:
                raise SystemExit(f"station: no such order: {other}")
        _say({"done": dataclasses.asdict(done)})


if __name__ == "__main__":
    main()
