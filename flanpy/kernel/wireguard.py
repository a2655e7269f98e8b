"""WireGuard devices as they should be, with exactly the wanted peers: changed where they differ, never torn down by a restart.

A peer that roams tells WireGuard so itself, by authenticated packets: an endpoint is written when the lease names another than the last
time, or when nothing was heard of the peer for ``SILENT_S``, and otherwise left as the kernel knows it. The kernel tells the time of day of
the last handshake, which a jump of the clock makes wrong: what counts is how long it has stayed the same, by a clock that does not jump.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic.wireguard import WireGuard

from flanpy.errors import PlatformError
from flanpy.kernel.devices import Device
from flanpy.kernel.links import Ensured, ensure_addresses, find_device, own_device, without_link_local
from flanpy.kernel.netlink import Kernel, explained
from flanpy.model import Hop, Network, WireguardLink, WireguardPeer

KIND = "wireguard"
SILENT_S = 180
"""WireGuard's own bound for a session: a peer that lives has shaken hands within it, if there was anything to say."""
_NO_KEY = base64.b64encode(bytes(32)).decode()


@dataclass(frozen=True, slots=True)
class PeerThere:
    """A peer of the device as the kernel has it."""

    endpoint: Hop | None
    allowed: frozenset[Network]
    keepalive_s: int
    preshared_key: str
    handshake_s: int


def transferred(name: str) -> dict[str, tuple[int, int]]:
    """Bytes received from and sent to each peer of a device, by public key, since the peer was added. Raises PlatformError."""
    with explained(f"read {name}'s peers"), contextlib.closing(WireGuard()) as wireguard:
        found = [peer for message in wireguard.info(name) for peer in message.get("WGDEVICE_A_PEERS") or ()]
    return {
        _text(peer.get_attr("WGPEER_A_PUBLIC_KEY")): (
            int(peer.get_attr("WGPEER_A_RX_BYTES") or 0),
            int(peer.get_attr("WGPEER_A_TX_BYTES") or 0),
        )
        for peer in found
    }


class WireguardDevices:
    """Has the node's private key and remembers which endpoints were written; belongs to the thread of its ``Kernel``."""

    def __init__(self, private_key: str) -> None:
        self._private_key = private_key
        self._endpoints: dict[tuple[str, str], Hop] = {}
        self._heard: dict[tuple[str, str], tuple[int, float]] = {}  # the last handshake, and since when we know it

    def ensure(self, kernel: Kernel, link: WireguardLink) -> Ensured:
        """Make the device what ``link`` says. Raises ResourceBusy when its name is another kind of device's, PlatformError."""
        device = own_device(kernel, link.name, KIND)
        changed: list[str] = []
        if device is None:
            device = _made(kernel, link)
            changed.append("made")
        with explained(f"configure {link.name} (UDP port {link.port})"), contextlib.closing(WireGuard()) as wireguard:
            if device.mtu_bytes != link.mtu_bytes:
                kernel.ip.link("set", index=device.index, mtu=link.mtu_bytes)
                changed.append(f"MTU {device.mtu_bytes} -> {link.mtu_bytes}")
            changed += self._configure(wireguard, link)
            changed += ensure_addresses(kernel, device.index, link.addresses)
            if not device.is_up:
                kernel.ip.link("set", index=device.index, state="up")
                changed.append("set up")
        return Ensured(device.index, tuple(changed))

    def _configure(self, wireguard: Any, link: WireguardLink) -> list[str]:
        changed = []
        key, port, peers = _read(wireguard, link.name)
        if (key, port) != (self._private_key, link.port):
            wireguard.set(link.name, private_key=self._private_key, listen_port=link.port)
            changed.append("key and port set")
        wanted = {peer.public_key: peer for peer in link.peers}
        for gone in peers.keys() - wanted.keys():
            wireguard.set(link.name, peer={"public_key": gone, "remove": True})
            self._endpoints.pop((link.name, gone), None)
            self._heard.pop((link.name, gone), None)
            changed.append(f"peer {gone} removed")
        for public_key, peer in wanted.items():
            if self._differs(link.name, peer, peers.get(public_key)):
                wireguard.set(link.name, peer=_arguments(peer))
                self._endpoints[link.name, public_key] = peer.endpoint
                changed.append(f"peer {public_key} at {peer.endpoint}")
        return changed

    def _differs(self, name: str, peer: WireguardPeer, there: PeerThere | None) -> bool:
        if there is None:
            return True
        settings = (there.allowed, there.keepalive_s, there.preshared_key)
        if settings != (frozenset(peer.allowed), peer.keepalive_s, peer.preshared_key or _NO_KEY):
            return True
        if there.endpoint == peer.endpoint:
            return False
        at = name, peer.public_key
        return self._is_silent(at, there.handshake_s) or self._endpoints.get(at, peer.endpoint) != peer.endpoint

    def _is_silent(self, at: tuple[str, str], handshake_s: int) -> bool:
        """Whether this peer has not shaken hands for long, as far as we have watched it; one that never has is."""
        now_s = time.monotonic()
        if self._heard.get(at, (-1, 0.0))[0] != handshake_s:
            self._heard[at] = handshake_s, now_s
        return handshake_s == 0 or now_s - self._heard[at][1] > SILENT_S


def _made(kernel: Kernel, link: WireguardLink) -> Device:
    with explained(f"make {link.name}"):
        try:
            kernel.ip.link("add", ifname=link.name, kind=KIND, mtu=link.mtu_bytes)
        except NetlinkError as error:
            if error.code != errno.EOPNOTSUPP:
                raise
            raise PlatformError(
                f"{link.name}: this kernel has no WireGuard (option CONFIG_WIREGUARD, module wireguard): modprobe wireguard, take a "
                "kernel from 5.6 on that has it, or another Backend.Type such as vxlan"
            ) from error
        device = find_device(kernel, link.name)
        if device is None:
            raise PlatformError(f"{link.name}: it has gone as soon as it was made; it is tried again")
        without_link_local(kernel, device.index)
    return device


def _read(wireguard: Any, name: str) -> tuple[str, int, Mapping[str, PeerThere]]:
    """Private key, port and peers of a device; a device with many peers comes in several messages."""
    key, port = "", 0
    peers: dict[str, PeerThere] = {}
    for message in wireguard.info(name):
        if (found := message.get("WGDEVICE_A_PRIVATE_KEY")) is not None:
            key = _text(found)
        port = message.get("WGDEVICE_A_LISTEN_PORT") or port
        peers.update(_peers(message.get("WGDEVICE_A_PEERS") or ()))
    return key, port, peers


def _peers(found: Any) -> Iterator[tuple[str, PeerThere]]:
    for peer in found:
        endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
        handshake = peer.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")
        yield (
            _text(peer.get_attr("WGPEER_A_PUBLIC_KEY")),
            PeerThere(
                endpoint=Hop(ip_address(endpoint["addr"]), endpoint["port"]) if endpoint else None,
                allowed=frozenset(ip_network(allowed["addr"]) for allowed in peer.get_attr("WGPEER_A_ALLOWEDIPS") or ()),
                keepalive_s=peer.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
                preshared_key=_text(peer.get_attr("WGPEER_A_PRESHARED_KEY")),
                handshake_s=handshake["tv_sec"] if handshake else 0,
            ),
        )


def _text(key: Any) -> str:
    value = key["value"] if isinstance(key, dict) else key
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _arguments(peer: WireguardPeer) -> dict[str, object]:
    return {
        "public_key": peer.public_key,
        "endpoint_addr": str(peer.endpoint.address),
        "endpoint_port": peer.endpoint.port,
        "persistent_keepalive": peer.keepalive_s,
        "preshared_key": peer.preshared_key or _NO_KEY,
        "replace_allowed_ips": True,
        "allowed_ips": [str(network) for network in peer.allowed],
    }
