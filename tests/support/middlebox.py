"""A bad network: frames between two devices are lost, delayed, reordered and duplicated by a process; started by tests/faults.

    python3 -I -S middlebox.py DEVICE DEVICE SEED LOSS DUPLICATES DELAY_S JITTER_S

For kernels without netem. Each frame is dropped with the probability LOSS, or sent on after DELAY_S and up to JITTER_S more, so that
later ones overtake it; with the probability DUPLICATES twice. A line on stdin is answered with JSON: what became of all frames, and of
those that carry probes (the stream's ports behind flannel's outer headers). The kernel must not see the frames itself: the caller
drops them at ingress, which packet sockets come before.
"""

import heapq
import json
import random
import select
import socket
import sys
import time

PACKET_OUTGOING = 4
PROBE_PORTS = range(20_009, 20_019)
OUTER_PORT = 8285
PORT_AT = 14 + 20 + 2
INNER_PORT_AT = 14 + 20 + 8 + 20 + 2


def is_probe(frame: bytes) -> bool:
    """Whether this is a probe in an IPv4 packet in UDP."""
    if len(frame) < INNER_PORT_AT + 2 or frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_UDP:
        return False
    ports = int.from_bytes(frame[PORT_AT : PORT_AT + 2], "big"), int.from_bytes(frame[INNER_PORT_AT : INNER_PORT_AT + 2], "big")
    return ports[0] == OUTER_PORT and ports[1] in PROBE_PORTS


def main() -> None:
    """Until stdin ends."""
    names, seed = sys.argv[1:3], int(sys.argv[3])
    loss, duplicates, delay_s, jitter_s = map(float, sys.argv[4:8])
    chance = random.Random(seed)
    ends = []
    for name in names:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)
        made.bind((name, 3))
        made.setblocking(False)
        ends.append(made)
    counts = dict.fromkeys(("frames", "dropped", "probes", "probes_dropped", "probes_doubled", "failed"), 0)
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    print("ready", flush=True)
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1.0
        ready = select.select([sys.stdin, *ends], [], [], pause)[0]
        now = time.monotonic()
        for at, end in enumerate(ends):
            while end in ready:
                try:
                    frame, address = end.recvfrom(65536)
                except OSError:
                    break
                if address[2] == PACKET_OUTGOING:
                    continue
                probe = is_probe(frame)
                counts["frames"] += 1
                counts["probes"] += probe
                if chance.random() < loss:
                    counts["dropped"] += 1
                    counts["probes_dropped"] += probe
                    continue
                double = chance.random() < duplicates
                counts["probes_doubled"] += probe and double
                for _ in range(1 + double):
                    number += 1
                    heapq.heappush(waiting, (now + delay_s + chance.random() * jitter_s, number, 1 - at, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, to, frame = heapq.heappop(waiting)
            try:
                ends[to].send(frame)
            except OSError:
                counts["failed"] += 1
        if sys.stdin in ready:
            if not sys.stdin.readline():
                return
            print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
