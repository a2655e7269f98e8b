"""flannel's wireguard backend: the kernel's WireGuard, told every peer's key, endpoint and subnets; no I/O.

Mode separate     flannel-wg (IPv4 in IPv4, ListenPort) and flannel-wg-v6 (IPv6 in IPv6, ListenPortV6)
Mode ipv4, ipv6   flannel-wg alone carries both families to peers' IPv4 or IPv6 addresses
Mode auto         the same, to the address that more likely works: a public IPv4 one, else a public IPv6 one, else IPv4
per device        MTU = underlay - 80, address = subnet base /32 (/128), the whole Network routed through it: WireGuard picks the peer

BackendData {"PublicKey":"...","Port":51820}; BackendV6Data the same for the device that carries IPv6
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import replace

from flanpy.backends.families import Side, enabled_versions, families, missing_address, mtu_below, same_family, screened
from flanpy.core.membership import View
from flanpy.errors import CodecError, ConfigError
from flanpy.model import (
    Address,
    DesiredState,
    FlanpyInfo,
    Hop,
    Lease,
    LocalFacts,
    Network,
    NetworkConfig,
    NodeAttributes,
    Peer,
    Route,
    Uplink,
    WireguardLink,
    WireguardPeer,
)
from flanpy.strict_json import JsonError, JsonObject, parse_json, render_json

TYPE = "wireguard"
DEVICE, DEVICE6 = "flannel-wg", "flannel-wg-v6"
OVERHEAD_BYTES = 80
"""Outer IPv6 (40) and UDP (8) header, WireGuard's header (16) and tag (16): enough for either family, as flannel has it."""


def _separate(config: NetworkConfig) -> bool:
    return config.backend.options["Mode"] == "separate"


def _port(config: NetworkConfig, version: int) -> int:
    value = config.backend.options["ListenPortV6" if version == 6 and _separate(config) else "ListenPort"]
    assert isinstance(value, int)
    return value


def attributes(base: NodeAttributes, config: NetworkConfig, facts: LocalFacts) -> NodeAttributes:
    """What our lease says: our public key and port, for each family."""

    def data(version: int) -> str:
        return render_json(JsonObject((("PublicKey", facts.public_key), ("Port", _port(config, version)))))

    return replace(
        base,
        backend_type=TYPE,
        backend_data=data(4) if config.enable_ipv4 else None,
        backend_v6_data=data(6) if config.enable_ipv6 else None,
        flanpy=FlanpyInfo(facts.node_id),
    )


def reached_by(config: NetworkConfig) -> tuple[int, ...]:
    """Each family over itself, or both over the one that the mode names."""
    modes: dict[object, tuple[int, ...]] = {"separate": enabled_versions(config), "ipv4": (4,), "ipv6": (6,)}
    return modes.get(config.backend.options["Mode"], ())


def screen(config: NetworkConfig, own: Lease, view: View, uplink: Uplink) -> View:
    """The view without the peers whose key cannot be used; each is refused on its own, with the key path."""
    return screened(view, _judge(config, own))


def _judge(config: NetworkConfig, own: Lease) -> Callable[[Peer], str | None]:
    taken = {key_and_port(side, config)[0]: "our own" for side in families(own.subnets, own.attributes)}

    def judge(peer: Peer) -> str | None:
        keys = set()
        for side in same_family(peer, own.subnets):
            try:
                key, _ = key_and_port(side, config)
                _endpoint(config, peer, side, None)
            except CodecError as exc:
                return str(exc)
            if key in taken:
                return f"{side.data_name}.PublicKey: {key} is {taken[key]}; two nodes cannot have one key"
            keys.add(key)
        if not _separate(config) and len(keys) > 1:
            return "BackendV6Data.PublicKey: differs from BackendData's, but one device carries both families"
        taken.update(dict.fromkeys(keys, f"that of {peer.subnets}"))
        return None

    return judge


def key_and_port(side: Side, config: NetworkConfig) -> tuple[str, int]:
    """The public key and port in a node's data; raises CodecError with the key path."""
    name = side.data_name
    data = _object(name, side.data)
    key, port = data.get("PublicKey"), data.get("Port")
    try:
        raw = base64.b64decode(key, validate=True) if isinstance(key, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or not any(raw):
        raise CodecError(f"{name}.PublicKey: {ascii(key)[:60]} is not a WireGuard key (32 bytes in base64)")
    if port is not None and (not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535):
        raise CodecError(f"{name}.Port: {ascii(port)[:60]} is not a UDP port")
    return base64.b64encode(raw).decode(), port or _port(config, side.version)


def _object(name: str, text: str | None) -> JsonObject:
    if text is None:
        raise CodecError(f'{name}: missing; wireguard needs {{"PublicKey":"..."}}')
    try:
        value = parse_json(text)
    except JsonError as exc:
        raise CodecError(f"{name}: {exc}") from exc
    if not isinstance(value, JsonObject):
        raise CodecError(f'{name}: {ascii(text)[:60]} is not an object such as {{"PublicKey":"..."}}')
    return value


# ------------------------------------------------------------------------------------------------ the plan


def plan(config: NetworkConfig, own: Lease, view: View, uplink: Uplink, generation: int) -> DesiredState:
    """The desired state of this machine; ``view`` has passed ``screen``."""
    sides = families(own.subnets, own.attributes)
    try:
        for side in sides:
            key_and_port(side, config)
    except CodecError as exc:
        raise ConfigError(f"our own lease {own.subnets} is not a wireguard lease yet: {exc}") from exc
    mtu = min(mtu_below(uplink, config.backend.options["MTU"], OVERHEAD_BYTES, side.version, TYPE) for side in sides)
    groups = [(side,) for side in sides] if _separate(config) else [sides]
    links = tuple(_link(config, own, group, view, uplink, mtu) for group in groups)
    networks: dict[int, Network | None] = {4: config.network, 6: config.ipv6_network}
    routes = frozenset(
        Route(network, link.name)
        for link, group in zip(links, groups, strict=True)
        for side in group
        if (network := networks[side.version]) is not None
    )
    return DesiredState(tunnel=None, routes=routes, table=None, mtu_bytes=mtu, links=links)


def _link(config: NetworkConfig, own: Lease, group: tuple[Side, ...], view: View, uplink: Uplink, mtu: int) -> WireguardLink:
    versions = {side.version for side in group}
    name = DEVICE6 if _separate(config) and versions == {6} else DEVICE
    peers = []
    for peer in view.peers:
        sides = tuple(side for side in same_family(peer, own.subnets) if side.version in versions)
        if sides:
            peers.append(_peer(config, peer, sides, uplink))
    addresses = tuple(side.base_interface for side in group)
    return WireguardLink(name, _port(config, group[0].version), mtu, addresses, tuple(peers))


def _peer(config: NetworkConfig, peer: Peer, sides: tuple[Side, ...], uplink: Uplink) -> WireguardPeer:
    options = config.backend.options
    key, port = key_and_port(sides[0], config)
    keepalive_s, psk = options["PersistentKeepaliveInterval"], options["PSK"]
    assert isinstance(keepalive_s, int)
    assert isinstance(psk, str)
    address = _endpoint(config, peer, sides[0], uplink)
    return WireguardPeer(key, Hop(address, port), tuple(side.subnet for side in sides), keepalive_s, psk)


def _endpoint(config: NetworkConfig, peer: Peer, side: Side, uplink: Uplink | None) -> Address:
    """Where to send; raises CodecError when the lease names no such address."""
    ipv4, ipv6 = peer.attributes.public_ip, peer.attributes.public_ipv6
    match config.backend.options["Mode"]:
        case "separate":
            wanted: Address | None = side.address
        case "ipv4":
            wanted = ipv4
        case "ipv6":
            wanted = ipv6
        case _:
            public6 = uplink is not None and uplink.address6 is not None and not uplink.address6.is_private
            better6 = ipv6 is not None and not ipv6.is_private and public6 and ipv4 is not None and ipv4.is_private
            wanted = ipv6 if better6 or ipv4 is None else ipv4
    version = side.version if wanted is None else wanted.version
    if config.backend.options["Mode"] == "ipv6":
        version = 6
    reason = missing_address(replace(side, subnet=_subnet_of(peer, side, version), address=wanted))
    if wanted is None or reason is not None:
        raise CodecError(reason or "PublicIPv6: missing")
    return wanted


def _subnet_of(peer: Peer, side: Side, version: int) -> Network:
    subnet = peer.subnets.ipv4 if version == 4 else peer.subnets.ipv6
    return side.subnet if subnet is None else subnet
