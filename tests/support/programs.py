"""The BPF programs by the kernel's test run: a packet in, the return value, the packet after and the verdict counted out.

Nothing is attached or pinned. One ``Programs`` is one node with the table of tests/support/core.py, so that both can be compared.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.core import VERDICTS
from flanpy.datapath.ebpf import possible_cpus
from flanpy.datapath.ebpf_layout import COUNTERS_BYTES, OUTER_BYTES, Header, build_snapshot, sum_counters
from flanpy.datapath.ebpf_peers import PeerCounters
from flanpy.datapath.ebpf_pins import Pins
from flanpy.datapath.ebpf_programs import Loaded, load, publish, read_object
from flanpy.model import Address, Hop
from tests.support.core import PEER_A, PEERS, table

OURS = IPv4Address("172.16.0.1")
NEXT, DROP, REDIRECT = 0xFFFFFFFF, 2, 7
CALL, MOVE = 0x85, 0xB7
ADJUST_ROOM = 50
"""The kernel's number of bpf_skb_adjust_room."""
ETHERNET = bytes(12) + b"\x08\x00"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run did: ``verdict`` is the one verdict counted, or None; ``packet`` follows the link header."""

    result: int
    packet: bytes
    verdict: str | None


class Programs:
    """The loaded programs of one node."""

    def __init__(
        self,
        *,
        source_check: bool = True,
        entries: Sequence[tuple[str, Hop]] = tuple(PEERS.items()),
        self_test: bool = True,
        carries: bool = False,
        own: Address = OURS,
    ) -> None:
        self._loaded: Loaded = load(Pins(Path("/nonexistent")))
        mtu_bytes = 1500 - OUTER_BYTES[own.version]
        header = Header(1, 1, own, 8285, mtu_bytes, source_check=source_check, carries=carries, self_test=self_test)
        publish(self._loaded.maps, build_snapshot(table(entries), header))

    def close(self) -> None:
        """Unload."""
        self._loaded.close()

    def cripple(self, program: str, helper: int) -> None:
        """From now on this helper of the kernel fails (EINVAL) whenever the program calls it, as if there were no memory."""
        spec = read_object().programs[program]
        code = bytearray(spec.linked({name: fd.number for name, fd in self._loaded.maps.items()}))
        calls = [at for at in range(0, len(code), 8) if code[at : at + 8] == struct.pack("=BBhi", CALL, 0, 0, helper)]
        assert calls, f"{program} calls no helper {helper}"
        for at in calls:
            code[at : at + 8] = struct.pack("=BBhi", MOVE, 0, 0, -22)
        programs = {**self._loaded.programs, program: bpf.load_program(program, bytes(code), b"GPL")}
        self._loaded.programs[program].close()
        self._loaded = replace(self._loaded, programs=programs)

    def count_peers(self, *peers: Address) -> PeerCounters:
        """The counters of these peers, which are counted from now on."""
        counted = PeerCounters(self._loaded.maps["fp_peers"], possible_cpus())
        counted.have(peers)
        return counted

    def counts(self) -> dict[str, int]:
        """Packets of every verdict that is not zero."""
        pages = bpf.lookup(self._loaded.maps["fp_counters"], 0, COUNTERS_BYTES * possible_cpus())
        return {name: count.packets for name, count in sum_counters(pages, VERDICTS)[0].items() if count.packets}

    def note_trains(self, at_ns: int) -> None:
        """Every pair and flow has sent bulk at this time."""
        for slot in range(4096):
            bpf.update(self._loaded.maps["fp_trains"], slot, struct.pack("=Q", at_ns))

    def noticed(self) -> set[str]:
        """The counters beside verdicts that are not zero."""
        pages = bpf.lookup(self._loaded.maps["fp_counters"], 0, COUNTERS_BYTES * possible_cpus())
        return {name for name, count in sum_counters(pages, VERDICTS)[1].items() if count}

    def run(self, program: str, packet: bytes, link: bytes = ETHERNET, gso_bytes: int = 0) -> Ran:
        """Run a program on a packet behind a link header; with ``gso_bytes`` it is a superpacket of segments of that payload."""
        before = self.counts()
        context = struct.pack("=176xI12x", gso_bytes) if gso_bytes else b""  # struct __sk_buff
        result, after = bpf.test_run(self._loaded.programs[program], link + packet, context)
        gained = [name for name, count in self.counts().items() if count != before.get(name, 0)]
        assert len(gained) <= 1, gained
        return Ran(result, after[14:], gained[0] if gained else None)


def hop_that_takes_all(hop: Hop = PEER_A) -> Hop:
    """The same peer with a receiver like ours."""
    return replace(hop, superpacket=True)
