"""What the datapaths of a run did: packets and system calls, from their own counters. Pure."""

from __future__ import annotations

from collections.abc import Mapping

CALLS = ("tun_reads", "tun_writes", "udp_sends", "udp_receives", "polls")
"""Counters that are system calls each."""


def packets_of(done: Mapping[str, int]) -> int:
    """Packets in both directions; a superpacket counts as its segments."""
    return done.get("encapsulated", 0) + done.get("decapsulated", 0)


def calls_a_packet(done: Mapping[str, int]) -> float:
    """System calls for each packet; 0 where programs in the kernel carried them, which make none."""
    packets = packets_of(done)
    return sum(done.get(name, 0) for name in CALLS) / packets if packets else 0.0
