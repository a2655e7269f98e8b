"""A stream of numbered datagrams between network namespaces, in a process of its own; started by tests/support/probes.py.

    python3 -I -S probe_stream.py RATE LINK...      LINK: FROM_NETNS,TO_NETNS,TO_ADDRESS

On every link RATE datagrams a second go from the one namespace to the other. A line on stdin is answered with one line of JSON, what
every link has seen so far (``stop`` first ends the sending, for as long as the process still lives). A sender that was off the CPU does
not send its arrears as one burst, for that would overflow the backlog of whatever carries them: its schedule slips.
"""

import ctypes
import json
import select
import socket
import struct
import sys
import time
from array import array
from pathlib import Path

CLONE_NEWNET = 0x40000000
FORMAT = struct.Struct("!QI")
BURST = 4
"""Datagrams that one turn sends at most to keep up with the schedule."""
PORT = 20_009
SO_RCVBUFFORCE = 33
LOST_LISTED = 200


class Link:
    """One direction: what was sent, and what of it has come."""

    def __init__(self, number: int, sender: socket.socket, receiver: socket.socket, to: str) -> None:
        self.number, self.to = number, to
        self.sender, self.receiver = sender, receiver
        self.sent = self.refused = self.received = self.duplicates = self.reordered = 0
        self.seen = bytearray()
        self.sent_s = array("d")
        self.highest = -1
        self.last_ns = time.monotonic_ns()
        self.gap_ns = 0

    def send(self) -> None:
        """One datagram. What the sender's own kernel refuses (no route, unreachable) was sent and is lost."""
        self.seen.append(0)
        self.sent_s.append(time.time())
        try:
            self.sender.sendto(FORMAT.pack(self.sent, self.number), (self.to, PORT + self.number))
        except OSError:
            self.refused += 1
        self.sent += 1

    def take(self) -> None:
        """All that waits."""
        while True:
            try:
                data = self.receiver.recv(2048)
            except BlockingIOError:
                return
            except OSError:
                continue
            if len(data) == FORMAT.size:
                self._seen(*FORMAT.unpack(data))

    def _seen(self, sequence: int, number: int) -> None:
        if number != self.number or sequence >= self.sent:
            return
        if self.seen[sequence]:
            self.duplicates += 1
            return
        now_ns = time.monotonic_ns()
        if self.received:
            self.gap_ns = max(self.gap_ns, now_ns - self.last_ns)
        self.last_ns = now_ns
        self.seen[sequence] = 1
        self.received += 1
        self.reordered += sequence < self.highest
        self.highest = max(self.highest, sequence)

    def report(self) -> dict[str, object]:
        """What has been seen so far; the longest gap is between two arrivals, or since the last one."""
        lost = [at for at, seen in enumerate(self.seen) if not seen]
        gap_ns = max(self.gap_ns, time.monotonic_ns() - self.last_ns if len(self.seen) > self.highest + 1 else 0)
        return {
            "sent": self.sent,
            "received": self.received,
            "refused": self.refused,
            "duplicates": self.duplicates,
            "reordered": self.reordered,
            "longest_gap_s": gap_ns / 1e9,
            "lost": len(lost),
            "first_lost": lost[:LOST_LISTED],
            "lost_from_s": self.sent_s[lost[0]] if lost else 0.0,
        }


def socket_in(namespace: str, bind: "tuple[str, int] | None") -> socket.socket:
    """A UDP socket of that namespace; this thread stays there, which does no harm."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(namespace).open("rb") as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")
    made = socket.socket(socket.AF_INET6 if bind and ":" in bind[0] else socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    if bind is not None:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        made.bind(bind)
    return made


def open_link(number: int, text: str) -> Link:
    """FROM,TO,ADDRESS."""
    source, target, address = text.split(",")
    receiver = socket_in(target, (address, PORT + number))
    sender = socket_in(source, None)
    if ":" in address:
        sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sender.setblocking(False)
    return Link(number, sender, receiver, address)


def stream(links: "list[Link]", rate: float) -> None:
    """Send, receive and answer until stdin ends."""
    start, turns, sending = time.monotonic(), 0, True
    waited = [sys.stdin, *(link.receiver for link in links)]
    while True:
        now = time.monotonic()
        due = int((now - start) * rate) - turns if sending else 0
        if due > BURST:
            start += (due - BURST) / rate
            due = BURST
        for _ in range(due):
            for link in links:
                link.send()
        turns += due
        pause = max(0.0, start + (turns + 1) / rate - now) if sending else 0.01
        ready = select.select(waited, [], [], pause)[0]
        for link in links:
            link.take()
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line:
                return
            sending = sending and line.strip() != "stop"
            print(json.dumps([link.report() for link in links]), flush=True)


def main() -> None:
    """Read the command line and run."""
    links = [open_link(number, text) for number, text in enumerate(sys.argv[2:])]
    print("[]", flush=True)
    stream(links, float(sys.argv[1]))


if __name__ == "__main__":
    main()
