"""What every peer was sent and has sent, by whoever carries the packets: a datapath of ours, or the kernel's WireGuard.

The kernel's other tunnels and plain routes count for nobody in particular: there the answer is the reason why there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from flanpy.datapath import Datapath, PeerCount
from flanpy.errors import FlanpyError
from flanpy.kernel.wireguard import transferred
from flanpy.model import Address, DesiredState, WireguardLink


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one peer, since the counters began; None: nobody counts that."""

    sent_packets: int | None = None
    sent_bytes: int | None = None
    received_packets: int | None = None
    received_bytes: int | None = None
    dropped_out: int | None = None
    dropped_in: int | None = None


@dataclass(frozen=True, slots=True)
class PeerTraffic:
    """``by_peer``: by the address on the underlay. ``reason``: why there is nothing, or less than everything; "" where all is counted."""

    by_peer: Mapping[Address, Traffic] = field(default_factory=dict)
    reason: str = ""


NOT_YET = PeerTraffic(reason="nothing carries packets yet")


def of_datapath(datapath: Datapath, peers: Sequence[Address]) -> PeerTraffic:
    """What our own datapath has counted."""
    try:
        return PeerTraffic({peer: _counted(count) for peer, count in datapath.peer_counts(peers).items()})
    except FlanpyError as error:
        return PeerTraffic(reason=str(error))


def of_kernel(desired: DesiredState, backend: str) -> PeerTraffic:
    """What the kernel says where it carries the packets alone: of WireGuard peers the bytes on the underlay, of others nothing."""
    devices = [link for link in desired.links if isinstance(link, WireguardLink)]
    if not devices:
        return PeerTraffic(reason=f"backend {backend}: the kernel carries the packets and does not count them by peer")
    by_peer: dict[Address, Traffic] = {}
    for device in devices:
        try:
            found = transferred(device.name)
        except FlanpyError as error:
            return PeerTraffic(reason=str(error))
        for peer in device.peers:
            received, sent = found.get(peer.public_key, (0, 0))
            before = by_peer.get(peer.endpoint.address, Traffic(sent_bytes=0, received_bytes=0))
            by_peer[peer.endpoint.address] = Traffic(
                sent_bytes=(before.sent_bytes or 0) + sent, received_bytes=(before.received_bytes or 0) + received
            )
    return PeerTraffic(by_peer, "backend wireguard: the kernel counts bytes of each peer, and neither packets nor drops")


def as_json(traffic: Traffic | None) -> dict[str, int | None] | None:
    """For answers to the control socket; None: nothing is counted for this peer."""
    return None if traffic is None else asdict(traffic)


def _counted(count: PeerCount) -> Traffic:
    return Traffic(
        count.sent.packets, count.sent.bytes, count.received.packets, count.received.bytes, count.dropped_out, count.dropped_in
    )
