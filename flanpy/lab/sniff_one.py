"""Prints the first ping in a UDP packet to a port that leaves an interface, in hex. A script for inside a lab: standard library alone.

    python -I -S sniff_one.py INTERFACE PORT SECONDS         prints "listening", then one line of hex, the Ethernet frame

Ends with status 1 when nothing came. An AF_PACKET socket sees a frame as it is given to the device, before any offload.
"""

import socket
import sys
import time

ETH_P_ALL = 3
PACKET_OUTGOING = 4
ETHERNET_BYTES = 14


def is_ping_to(frame: bytes, port: int) -> bool:
    """Whether an Ethernet frame holds IPv4, UDP to this port, and IPv4 with ICMP: the agents' own probes are not what is looked for."""
    ip = frame[ETHERNET_BYTES:]
    if len(ip) < 28 or frame[12:14] != b"\x08\x00" or ip[9] != socket.IPPROTO_UDP:
        return False
    header_bytes = (ip[0] & 15) * 4
    inner = ip[header_bytes + 8 :]
    to_port = int.from_bytes(ip[header_bytes + 2 : header_bytes + 4], "big") == port
    return to_port and len(inner) >= 20 and inner[9] == socket.IPPROTO_ICMP


def main(interface: str, port: str, limit_s: str) -> int:
    """Listen until one comes or the time is over."""
    deadline = time.monotonic() + float(limit_s)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sniffer:
        sniffer.bind((interface, ETH_P_ALL))
        print("listening", flush=True)
        while (left_s := deadline - time.monotonic()) > 0:
            sniffer.settimeout(left_s)
            try:
                frame, sender = sniffer.recvfrom(65536)
            except TimeoutError:
                break
            if sender[2] == PACKET_OUTGOING and is_ping_to(frame, int(port)):
                print(frame.hex(), flush=True)
                return 0
    print(f"no ping in a UDP packet to port {port} left {interface} within {limit_s} s", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
