"""A node with a pod, a peer's pod, another container and the outside around it, and UDP packets between any two of them.

    pod 10.244.7.2 ─── pod0 ┐                        ┌ flannel0 (a veth here) ─── peer 10.244.9.2
                            ├── node, forwarding ────┤
    guest 172.20.0.2 ─ br0 ─┘                        └ out0 192.0.2.1 ─────────── outside 192.0.2.2

Both families; IPv6 has fd00:244:0:7::2, fd00:244:0:9::2, fd00:20::2 and 2001:db8::2 in these places. Everything is gone with the block.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial

from flanpy.config.network import parse_network_config
from flanpy.core.rules import RuleOptions, plan_rules
from flanpy.datapath.sockets import SO_RCVBUFFORCE
from flanpy.model import FirewallRules, FirewallTool, Subnets
from tests.support.namespaces import Namespace, inside, namespace

CONFIG = parse_network_config('{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48"}')
PORT = 5300

ADDRESSES = {
    4: {"pod": "10.244.7.2", "peer": "10.244.9.2", "guest": "172.20.0.2", "outside": "192.0.2.2", "bridge": "10.244.7.1"},
    6: {
        "pod": "fd00:244:0:7::2",
        "peer": "fd00:244:0:9::2",
        "guest": "fd00:20::2",
        "outside": "2001:db8::2",
        "bridge": "fd00:244:0:7::1",
    },
}
OUT0 = {4: "192.0.2.1", 6: "2001:db8::1"}
FLANNEL0 = {4: "10.244.7.0", 6: "fd00:244:0:7::"}

NODE = """
addr add 10.244.7.1/24 dev pod0
addr add 10.244.7.0/32 dev flannel0
addr add 172.20.0.1/24 dev br0
addr add 192.0.2.1/24 dev out0
route add 10.244.0.0/16 dev flannel0
addr add fd00:244:0:7::1/64 dev pod0 nodad
addr add fd00:244:0:7::/128 dev flannel0 nodad
addr add fd00:20::1/64 dev br0 nodad
addr add 2001:db8::1/64 dev out0 nodad
route add fd00:244::/48 dev flannel0
"""
AROUND = {
    "pod": "addr add 10.244.7.2/24 dev eth0\naddr add fd00:244:0:7::2/64 dev eth0 nodad\n"
    "route add default via 10.244.7.1\nroute add default via fd00:244:0:7::1",
    "peer": "addr add 10.244.9.2/32 dev eth0\naddr add fd00:244:0:9::2/128 dev eth0 nodad\n"
    "route add 10.244.7.0/32 dev eth0\nroute add 10.244.7.0/24 via 10.244.7.0 onlink dev eth0\n"
    "route add fd00:244:0:7::/128 dev eth0\nroute add fd00:244:0:7::/64 via fd00:244:0:7:: dev eth0 onlink",
    "guest": "addr add 172.20.0.2/24 dev eth0\naddr add fd00:20::2/64 dev eth0 nodad\n"
    "route add default via 172.20.0.1\nroute add default via fd00:20::1",
    "outside": "addr add 192.0.2.2/24 dev eth0\naddr add 2001:db8::2/64 dev eth0 nodad\n"
    "route add 10.244.0.0/16 via 192.0.2.1\nroute add fd00:244::/48 via 2001:db8::1",
}
PORTS = {"pod": "pod0", "peer": "flannel0", "guest": "br0", "outside": "out0"}


def rules(
    *, tool: FirewallTool = "nft", ip_masq: bool = True, forward_rules: bool = True, fully_random: bool = True, subnet: int = 7
) -> FirewallRules:
    """The rules of a node with the subnet 10.244.7.0/24 and its IPv6 sister."""
    from ipaddress import IPv4Network, IPv6Network

    own = Subnets(IPv4Network(f"10.244.{subnet}.0/24"), IPv6Network(f"fd00:244:0:{subnet}::/64"))
    return plan_rules(CONFIG, own, RuleOptions(ip_masq, fully_random, forward_rules, tool))


@dataclass(frozen=True, slots=True)
class Node:
    """The topology; ``spaces`` by the names of the drawing."""

    spaces: dict[str, Namespace]

    @property
    def node(self) -> Namespace:
        return self.spaces["node"]

    def flows(self, source: str, target: str, version: int = 4, port: int = PORT) -> Flows:
        """New flows from one place to another."""
        places = (partial(inside, self.spaces[source]), partial(inside, self.spaces[target]))
        return Flows(*places, ADDRESSES[version][target], port=port)

    def seen(self, source: str, target: str, version: int, *, mark: int = 0, sender: str | None = None) -> str:
        """The source address under which a packet from one place arrives at another; ``sender``: an address of the node to send from.

        The receiver's port is the kernel's choice: a program that is being started may still hold the socket of the one before.
        """
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with closing(_socket(self.spaces[target], family)) as receiver, closing(_socket(self.spaces[source], family)) as out:
            receiver.bind(("", 0))
            receiver.settimeout(3)
            if mark:
                out.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if sender is not None:
                out.bind((sender, 0))
            out.sendto(b"x", (ADDRESSES[version][target], receiver.getsockname()[1]))
            return str(receiver.recvfrom(16)[1][0])


def _socket(where: Namespace, family: int) -> socket.socket:
    with inside(where):
        return socket.socket(family, socket.SOCK_DGRAM)


@contextmanager
def node() -> Iterator[Node]:
    """The topology of the drawing, without any rules."""
    with ExitStack() as stack:
        spaces = {name: stack.enter_context(namespace()) for name in ("node", *AROUND)}
        here = spaces["node"]
        for name, device in PORTS.items():
            here.ip(f"link add {device} type veth peer name eth0 netns {spaces[name].path}\nlink set {device} up")
            spaces[name].ip("link set eth0 up")
        here.ip(NODE)
        here.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for name, lines in AROUND.items():
            spaces[name].ip(lines)
        yield Node(spaces)


# ------------------------------------------------------------------------------------------------ counters


def counters(where: Namespace, kind: str) -> dict[tuple[int | None, str], int]:
    """Packets that each of our rules has met, by (IP version, comment); ``kind`` is nft, iptables-nft or iptables-legacy."""
    if kind == "nft":
        return counters_in(json.loads(where.run("nft", "-j", "list", "table", "inet", "flanpy")))
    found: dict[tuple[int | None, str], int] = {}
    for version, command in ((4, kind), (6, kind.replace("ip", "ip6", 1))):
        found |= counters_saved(where.run(f"{command}-save", "-c"), version)
    return found


def counters_saved(text: str, version: int) -> dict[tuple[int | None, str], int]:
    """The counters in what iptables-save or ip6tables-save -c prints."""
    lines = (re.match(r'\[(\d+):\d+\] -A FLANPY-\S+ .*--comment "([^"]+)"', line) for line in text.splitlines())
    return {(version, matched[2]): int(matched[1]) for matched in lines if matched}


def counters_in(listed: dict[str, list[dict[str, dict[str, object]]]]) -> dict[tuple[int | None, str], int]:
    """The counters of a table that nft has listed."""
    return {_key(item["rule"]): _packets(item["rule"]) for item in listed["nftables"] if "rule" in item}


def _key(rule: dict[str, object]) -> tuple[int | None, str]:
    text = json.dumps(rule["expr"])
    return (6 if '"ip6"' in text else 4 if '"ip"' in text else None), str(rule["comment"])


def _packets(rule: dict[str, object]) -> int:
    expression = rule["expr"]
    assert isinstance(expression, list)
    return int(next(item["counter"]["packets"] for item in expression if "counter" in item))


# ------------------------------------------------------------------------------------------------ new flows all the time


Enter = Callable[[], AbstractContextManager[None]]
"""What moves the calling thread into a network namespace."""


_ports = itertools.cycle(range(10000, 65000))
"""Source ports of all flows: none comes again while connection tracking may remember it (30 s)."""


class Flows:
    """Sends packets, each from a fresh port and so a new connection to the firewall, and notes under which address each arrives.

    Connection tracking would hide a gap in the rules from a single flow. A context manager around what is to be survived.
    """

    def __init__(self, source: Enter, target: Enter, address: str, per_second: int = 1000, port: int = PORT) -> None:
        self._source, self._address, self._port = source, address, port
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._pause_s = 1 / per_second
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]
        with target():
            self._receiver = socket.socket(self._family, socket.SOCK_DGRAM)
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        self._receiver.bind(("", port))
        self._receiver.settimeout(0.5)
        self.sent = 0
        self.sources: dict[str, int] = {}

    def __enter__(self) -> Flows:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._receiver.close()

    @property
    def received(self) -> int:
        return sum(self.sources.values())

    def _send(self) -> None:
        due = time.monotonic()
        with self._source():
            while not self._stop.is_set():
                with socket.socket(self._family, socket.SOCK_DGRAM) as out:
                    out.bind(("", next(_ports)))
                    out.sendto(b"x", (self._address, self._port))
                self.sent += 1
                due += self._pause_s
                if (wait := due - time.monotonic()) > 0:
                    time.sleep(wait)

    def _receive(self) -> None:
        while True:
            try:
                source = self._receiver.recvfrom(16)[1][0]
            except TimeoutError:
                if self._stop.is_set():
                    return
            else:
                self.sources[source] = self.sources.get(source, 0) + 1
