"""What the ebpf datapath asks of the host by netlink and ethtool; this layer speaks neither, so it is handed in."""

from __future__ import annotations

from typing import Protocol

from flanpy.datapath.ebpf_attach import TcHooks
from flanpy.model import Network


class Host(Protocol):
    """What needs netlink, handed in by the composition root (``kernel.tc.TcHost``)."""

    def clsact_hooks(self) -> TcHooks:
        """Filters of a clsact qdisc, for kernels without tcx."""

    def carries_superpackets(self, device: str) -> bool:
        """Whether what is sent there can reach a receiver as it is, uncut and unfinished."""

    def offloads(self, device: str) -> tuple[bool, bool]:
        """Whether an interface hands superpackets on uncut, and whether it merges what arrives, as it is set now. From any thread."""

    def pod_bridge(self, subnets: tuple[Network, ...], device: str) -> int:
        """Index of the interface that pods of these subnets are behind, or 0 while there is none."""

    def merging_device(self, device: str) -> tuple[int, int]:
        """Indices of the two ends of the merging device, made if need be: where packets go in, where they come out merged."""

    def remove_merging_device(self, device: str) -> None:
        """It is not there any more."""

    def remove_tunnel(self, device: str) -> None:
        """The TUN device, which outlives its descriptors, is not there any more."""
