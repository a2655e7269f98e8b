"""Captures one encapsulated packet of a lab and takes it apart layer by layer with scapy."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from flanpy.errors import LabError
from flanpy.lab.cluster import Lab
from flanpy.lab.plan import UPLINK, PodPlan

LIMIT_S = 5
SHOWN_FIELDS = {
    "Ethernet": ("src", "dst", "type"),
    "IP": ("src", "dst", "ttl", "proto", "len", "id", "flags", "chksum"),
    "UDP": ("sport", "dport", "len", "chksum"),
    "ICMP": ("type", "id", "seq", "chksum"),
    "Raw": (),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a packet: where it begins, its header's length, and its fields as text."""

    name: str
    offset: int
    header_bytes: int
    fields: str


def capture(lab: Lab, source: PodPlan, target: PodPlan, port: int) -> bytes:
    """The Ethernet frame of a ping from pod to pod as it leaves the source's host."""
    script = str(Path(__file__).with_name("sniff_one.py"))
    sniffer = lab.sandbox.popen(source.host, [sys.executable, "-I", "-S", script, UPLINK, str(port), str(LIMIT_S)])
    assert sniffer.stdout is not None
    try:
        if sniffer.stdout.readline().strip() == "listening":
            lab.sandbox.run(source.name, ["ping", "-n", "-c", "1", "-W", "2", str(target.address.ip)], check=False)
        frame, errors = sniffer.communicate(timeout=LIMIT_S + 5)
    finally:
        sniffer.kill()
    if sniffer.returncode != 0:
        raise LabError(f"{source.host}: {errors.strip()}; {lab.log_tail(source.host)}")
    return bytes.fromhex(frame.strip())


def layers(frame: bytes) -> tuple[Layer, ...]:
    """Outer Ethernet, IP and UDP, then the inner packet: it begins right behind the UDP header, with nothing between."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether
    from scapy.packet import Packet, bind_layers, split_layers

    bind_layers(UDP, IP)
    try:
        packet: Packet = Ether(frame)
    finally:
        split_layers(UDP, IP)
    found: list[Layer] = []
    offset = 0
    while packet.name != "NoPayload":
        header_bytes = len(packet) - len(packet.payload)
        name = str(packet.name)
        fields = "  ".join(f"{field}={packet.sprintf(f'%{field}%')}" for field in SHOWN_FIELDS.get(name, ()))
        found.append(Layer(name, offset, header_bytes, fields or f"{header_bytes} bytes"))
        offset, packet = offset + header_bytes, packet.payload
    return tuple(found)
