"""flannel's vxlan backend: the kernel's VXLAN device, told where each peer is; no I/O.

    device      flannel.<VNI> (IPv6: flannel-v6.<VNI>), VXLAN on the uplink, nolearning unless Learning, MTU = underlay - 50 (IPv6: - 70)
    per peer    neighbour   first address of its subnet -> VtepMAC               permanent
                FDB entry   VtepMAC -> PublicIP                                  permanent
                route       its subnet via its first address on the device       onlink
    DirectRouting: a peer in a network of the uplink gets a plain route via its PublicIP and nothing else

    BackendData {"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}; BackendV6Data the same for flannel-v6.<VNI>

Our MAC comes from the node id, so that it is the same after a reboot and peers have nothing to change; a device that is there already
(ours of an earlier run, or flanneld's) keeps the MAC that it has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace

from flanpy.backends.families import (
    Side,
    enabled_versions,
    families,
    is_on_link,
    local_address,
    missing_address,
    mtu_below,
    same_family,
    screened,
)
from flanpy.core.membership import View
from flanpy.errors import CodecError, ConfigError
from flanpy.model import (
    DesiredState,
    FdbEntry,
    FlanpyInfo,
    Lease,
    LocalFacts,
    Neighbour,
    NetworkConfig,
    NodeAttributes,
    Peer,
    Route,
    Uplink,
    VxlanLink,
)
from flanpy.strict_json import JsonError, JsonObject, parse_json, render_json

TYPE = "vxlan"
OVERHEAD_BYTES = {4: 50, 6: 70}
"""Outer IP (20 or 40), UDP (8) and VXLAN (8) header, and the inner Ethernet header (14)."""
KERNEL_PORT = 8472
"""What flannel's Port 0 stands for: Linux's own default, older than IANA's 4789."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


def device_name(config: NetworkConfig, version: int) -> str:
    """flannel's name for the device of a family."""
    return f"{'flannel' if version == 4 else 'flannel-v6'}.{_number(config, 'VNI')}"


def attributes(base: NodeAttributes, config: NetworkConfig, facts: LocalFacts) -> NodeAttributes:
    """What our lease says: the MAC of our device, for each family."""
    return replace(
        base,
        backend_type=TYPE,
        backend_data=_own_data(config, facts, 4) if config.enable_ipv4 else None,
        backend_v6_data=_own_data(config, facts, 6) if config.enable_ipv6 else None,
        flanpy=FlanpyInfo(facts.node_id),
    )


def _own_data(config: NetworkConfig, facts: LocalFacts, version: int) -> str:
    name = device_name(config, version)
    mac = facts.macs.get(name) or made_mac(facts.node_id, name)
    # flannel keeps the VNI in 16 bits here, and its decoder refuses a lease with a bigger number
    return render_json(JsonObject((("VNI", _number(config, "VNI") & 0xFFFF), ("VtepMAC", mac))))


def made_mac(node_id: str, device: str) -> str:
    """A MAC for a device of this node: locally administered, unicast, always the same."""
    digest = hashlib.sha256(f"{node_id} {device}".encode()).digest()
    return bytes([digest[0] & 0xFC | 0x02, *digest[1:6]]).hex(":")


def reached_by(config: NetworkConfig) -> tuple[int, ...]:
    """Each family goes over itself."""
    return enabled_versions(config)


def screen(config: NetworkConfig, own: Lease, view: View, uplink: Uplink) -> View:
    """The view without the peers whose data we cannot forward by; each is refused on its own, the first key path in the reason."""
    return screened(view, _judge(config, own))


def _judge(config: NetworkConfig, own: Lease) -> Callable[[Peer], str | None]:
    taken = {(side.version, vtep_mac(side, config)): "our own" for side in families(own.subnets, own.attributes)}

    def judge(peer: Peer) -> str | None:
        macs: list[tuple[int, str]] = []
        for side in same_family(peer, own.subnets):
            try:
                key = (side.version, vtep_mac(side, config))
            except CodecError as exc:
                return str(exc)
            reason = missing_address(side)
            if reason is None and key in taken:
                reason = f"{side.data_name}.VtepMAC: {key[1]} is {taken[key]}; two nodes cannot have one MAC"
            if reason is not None:
                return reason
            macs.append(key)
        taken.update(dict.fromkeys(macs, f"that of {peer.subnets}"))
        return None

    return judge


def vtep_mac(side: Side, config: NetworkConfig) -> str:
    """The MAC in a node's data, lower case; raises CodecError with the key path."""
    name = side.data_name
    data = _object(name, side.data)
    vni, wanted = data.get("VNI"), _number(config, "VNI")
    if vni is not None and (not isinstance(vni, int) or isinstance(vni, bool) or vni not in (wanted, wanted & 0xFFFF)):
        raise CodecError(f"{name}.VNI: {_shown(vni)} is not the network config's {wanted}")
    mac = data.get("VtepMAC")
    lower = mac.lower().replace("-", ":") if isinstance(mac, str) else ""
    if not _MAC.fullmatch(lower):
        raise CodecError(f"{name}.VtepMAC: {_shown(mac)} is not a MAC such as 02:42:ac:11:00:02")
    if int(lower[:2], 16) & 1 or lower == "00:00:00:00:00:00":
        raise CodecError(f"{name}.VtepMAC: {lower} is not the MAC of one device")
    return lower


def _object(name: str, text: str | None) -> JsonObject:
    example = '{"VNI":1,"VtepMAC":"02:42:ac:11:00:02"}'
    if text is None:
        raise CodecError(f"{name}: missing; vxlan needs {example}")
    try:
        value = parse_json(text)
    except JsonError as exc:
        raise CodecError(f"{name}: {exc}") from exc
    if not isinstance(value, JsonObject):
        raise CodecError(f"{name}: {_shown(value)} is not an object such as {example}")
    return value


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(config: NetworkConfig, name: str) -> int:
    value = config.backend.options[name]
    assert isinstance(value, int)
    return value


# ------------------------------------------------------------------------------------------------ the plan


def plan(config: NetworkConfig, own: Lease, view: View, uplink: Uplink, generation: int) -> DesiredState:
    """The desired state of this machine; ``view`` has passed ``screen``."""
    try:
        links = tuple(_link(config, side, uplink) for side in families(own.subnets, own.attributes))
    except CodecError as exc:
        raise ConfigError(f"our own lease {own.subnets} is not a vxlan lease yet: {exc}") from exc
    routes: list[Route] = []
    neighbours: list[Neighbour] = []
    fdb: list[FdbEntry] = []
    direct = bool(config.backend.options["DirectRouting"])
    for side in (side for peer in view.peers for side in same_family(peer, own.subnets)):
        assert side.address is not None
        device = device_name(config, side.version)
        if direct and is_on_link(uplink, side.address):
            routes.append(Route(side.subnet, uplink.name, gateway=side.address))
            continue
        mac = vtep_mac(side, config)
        neighbours.append(Neighbour(device, side.base, mac))
        fdb.append(FdbEntry(device, mac, side.address))
        routes.append(Route(side.subnet, device, gateway=side.base, onlink=True))
    return DesiredState(
        tunnel=None,
        routes=frozenset(routes),
        table=None,
        mtu_bytes=min(link.mtu_bytes for link in links),
        links=links,
        neighbours=frozenset(neighbours),
        fdb=frozenset(fdb),
    )


def _link(config: NetworkConfig, side: Side, uplink: Uplink) -> VxlanLink:
    options = config.backend.options
    return VxlanLink(
        name=device_name(config, side.version),
        vni=_number(config, "VNI"),
        port=_number(config, "Port") or KERNEL_PORT,
        mac=vtep_mac(side, config),
        local=local_address(uplink, side.version),
        uplink=uplink.name,
        mtu_bytes=mtu_below(uplink, options["MTU"], OVERHEAD_BYTES[side.version], side.version, TYPE),
        addresses=(side.base_interface,),
        learning=bool(options["Learning"]),
        gbp=bool(options["GBP"]),
    )
