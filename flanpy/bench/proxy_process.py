"""The one-packet-per-call proxy as a process: opens its TUN device and socket, says ``ready``, carries packets until it is ended.

Runs inside a host of a bed (``python -m flanpy.bench.proxy_process --help``); addresses and routes of the device are the bed's to
set. The device has no offload and no vnet_hdr, the socket the system's usual buffers: as flanneld's have.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import struct
from ipaddress import IPv4Address, IPv4Network

from flanpy.bench.native import ProxyRoute, proxy

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


def open_plain_tun(name: str) -> int:
    """A TUN device that hands over one plain packet a read, non-blocking; vanishes when the descriptor is closed."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def parse_route(text: str) -> ProxyRoute:
    """``10.244.1.0/24=192.168.77.1:8285``"""
    network, _, hop = text.partition("=")
    address, _, port = hop.partition(":")
    return ProxyRoute(IPv4Network(network), IPv4Address(address), int(port))


def stop_at_sigterm() -> int:
    """A descriptor that becomes readable at SIGTERM or SIGINT."""
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writable)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return readable


def main() -> None:
    """Carry packets until SIGTERM."""
    parser = argparse.ArgumentParser(description="A TUN <-> UDP proxy of one packet a system call.")
    parser.add_argument("--device", default="flannel0")
    parser.add_argument("--address", required=True, help="underlay address to bind")
    parser.add_argument("--port", type=int, default=8285)
    parser.add_argument("--mtu", type=int, default=1472, help="largest inner packet")
    parser.add_argument("--route", type=parse_route, action="append", default=[], metavar="NETWORK=ADDRESS:PORT")
    arguments = parser.parse_args()
    stop = stop_at_sigterm()
    tun = open_plain_tun(arguments.device)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((arguments.address, arguments.port))
        udp.setblocking(False)
        print("ready", flush=True)
        proxy(tun, udp, stop, arguments.route, arguments.mtu)


if __name__ == "__main__":
    main()
