"""etcd keys and values to model values and back, byte for byte as flannel writes them; no I/O.

    key    subnets/10.5.52.0-24            subnets/10.12.13.0-24&fd00:12:13::-56        subnets/0.0.0.0-0&fd00:12:13::-56
           IPv4                            dual stack                                   IPv6 only (flannel's empty IPv4)
           A flanneld of an IPv4 network reads the last one as a lease of 0.0.0.0/0, which is not in its network, and passes it over.
    value  {"PublicIP":"172.31.9.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{...},"BackendV6Data":{...}}
           A node without an IPv4 address has "PublicIP":"0.0.0.0", flannel's empty address, and "PublicIPv6":"fd31:9::1".
           BackendType, BackendData and BackendV6Data are absent when empty; what a flanpy node adds about itself is the
           member ``flanpy`` of BackendData: {"flanpy":{"node":"...","features":["ecn"]}}, which flanneld ignores; where the
           data is no object (extension: a string) it stands beside it

A key has exactly one spelling here; any other spelling of the same subnet is refused, so that one subnet is one key.
Values come from anybody who can write to etcd: whatever is not exactly understood raises CodecError.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from flanpy.errors import CodecError
from flanpy.model import FlanpyInfo, Lease, NodeAttributes, Record, Subnets
from flanpy.strict_json import JsonError, JsonObject, parse_json, render_json

SUBNETS = "subnets/"
"""The directory of the leases below the prefix."""

MAX_VALUE_BYTES = 64 * 1024
"""Largest lease value that is looked at; flannel's own are below 300 bytes."""

NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)
_FEATURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)
_BACKEND_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", re.ASCII)
_KEY = re.compile(r"subnets/([0-9.]{7,15})-([0-9]{1,2})(?:&([0-9a-f:]{2,39})-([0-9]{1,3}))?", re.ASCII)
_NUMBER = "(0|[1-9][0-9]{0,2})"
_PLAIN_KEY = re.compile(rf"subnets/{_NUMBER}\.{_NUMBER}\.{_NUMBER}\.{_NUMBER}-{_NUMBER}", re.ASCII)
_WORD = '"[a-z0-9][a-z0-9_-]{0,31}"'
_FLANPY = rf'\{{"node":"([A-Za-z0-9][A-Za-z0-9._:-]{{0,127}})","features":\[((?:{_WORD}(?:,{_WORD}){{0,31}})?)\]\}}'
_PLAIN_VALUE = re.compile(
    rf'\{{"PublicIP":"{_NUMBER}\.{_NUMBER}\.{_NUMBER}\.{_NUMBER}","PublicIPv6":null(?:,"BackendData":\{{"flanpy":{_FLANPY}\}})?\}}'.encode()
)
"""What a udp node writes, ours and flanneld's: read without a JSON parser, which matters when 65,536 nodes are listed."""
_NO_IPV4 = ("0.0.0.0", "0")
_NO_ADDRESS = IPv4Address(0)
_MAX_FEATURES = 32


# ------------------------------------------------------------------------------------------------ keys


def key_of(subnets: Subnets) -> str:
    """The etcd key of a lease, relative to the prefix."""
    ipv4 = f"{subnets.ipv4.network_address}-{subnets.ipv4.prefixlen}" if subnets.ipv4 else "-".join(_NO_IPV4)
    ipv6 = f"&{subnets.ipv6.network_address}-{subnets.ipv6.prefixlen}" if subnets.ipv6 else ""
    return f"{SUBNETS}{ipv4}{ipv6}"


@lru_cache(maxsize=1 << 17)
def subnets_of(key: str) -> Subnets:
    """The subnets that a key names; raises CodecError. Remembers: the same keys come again with every listing and renewal."""
    plain = _PLAIN_KEY.fullmatch(key)
    return _general_subnets(key) if plain is None else Subnets(_plain_network(key, *plain.groups()))


def _plain_network(key: str, a: str, b: str, c: str, d: str, length: str) -> IPv4Network:
    """The network of an IPv4 key that the pattern has found to be spelled the one right way, but for its numbers."""
    first, prefixlen = _number_of(a, b, c, d), int(length)
    if first < 0 or prefixlen > 32 or first & ((1 << (32 - prefixlen)) - 1):
        raise CodecError(f"key {_shown(key)}: not the first address of a network with its length")
    return IPv4Network((first, prefixlen))


def _general_subnets(key: str) -> Subnets:
    matched = _KEY.fullmatch(key)
    if matched is None:
        raise CodecError(f"key {_shown(key)}: not of the form subnets/10.5.52.0-24")
    address, length, address6, length6 = matched.groups()
    try:
        ipv6 = IPv6Network(f"{address6}/{length6}") if address6 else None
        ipv4 = None if ipv6 and (address, length) == _NO_IPV4 else IPv4Network(f"{address}/{length}")
    except ValueError as exc:
        raise CodecError(f"key {_shown(key)}: {exc}") from exc
    subnets = Subnets(ipv4, ipv6)
    if key_of(subnets) != key:
        raise CodecError(f"key {_shown(key)}: spelled differently from {key_of(subnets)}")
    return subnets


# ------------------------------------------------------------------------------------------------ values


def encode_attributes(attributes: NodeAttributes) -> bytes:
    """The value of a lease; raises CodecError when the backend's data is not JSON."""
    members: list[tuple[str, object]] = [
        ("PublicIP", str(attributes.public_ip or _NO_ADDRESS)),
        ("PublicIPv6", None if attributes.public_ipv6 is None else str(attributes.public_ipv6)),
    ]
    if attributes.backend_type:
        members.append(("BackendType", attributes.backend_type))
    data = None if attributes.backend_data is None else _parsed("BackendData", attributes.backend_data)
    info = None if attributes.flanpy is None else _info_object(attributes.flanpy)
    inside = info is not None and (data is None or isinstance(data, JsonObject))
    if inside:
        data = JsonObject((*(data.members if isinstance(data, JsonObject) else ()), ("flanpy", info)))
    if data is not None:
        members.append(("BackendData", data))
    if attributes.backend_v6_data is not None:
        members.append(("BackendV6Data", _parsed("BackendV6Data", attributes.backend_v6_data)))
    if info is not None and not inside:
        members.append(("flanpy", info))
    return render_json(JsonObject(tuple(members))).encode()


def decode_attributes(value: bytes) -> NodeAttributes:
    """What a lease's value says; raises CodecError that names the field."""
    if len(value) > MAX_VALUE_BYTES:
        raise CodecError(f"value: {len(value)} bytes (at most {MAX_VALUE_BYTES})")
    plain = _PLAIN_VALUE.fullmatch(value)
    first = -1 if plain is None else _number_of(plain[1], plain[2], plain[3], plain[4])
    if plain is None or first <= 0:
        return _general_attributes(value)
    info = None if plain[5] is None else FlanpyInfo(plain[5].decode(), _plain_features(plain[6]))
    return NodeAttributes(IPv4Address(first), flanpy=info)


def _number_of(*octets: str | bytes) -> int:
    """The IPv4 address of four octets as a number; -1 when one of them is above 255."""
    numbers = [int(octet) for octet in octets]
    return int.from_bytes(numbers, "big") if max(numbers) < 256 else -1


@lru_cache(maxsize=64)
def _plain_features(words: bytes) -> frozenset[str]:
    return frozenset(words.decode().replace('"', "").split(",")) if words else frozenset()


def _general_attributes(value: bytes) -> NodeAttributes:
    root = _parsed("value", value)
    if not isinstance(root, JsonObject):
        raise CodecError('value: not a JSON object such as {"PublicIP":"192.0.2.1","PublicIPv6":null}')
    data, flanpy = _split_flanpy(root.get("BackendData"))
    if flanpy is None and (info := root.get("flanpy")) is not None:
        flanpy = _flanpy_info(info)
    data6 = root.get("BackendV6Data")
    public_ip, public_ipv6 = _public_ip(root.get("PublicIP")), _public_ipv6(root.get("PublicIPv6"))
    if public_ip is None and public_ipv6 is None:
        raise CodecError("PublicIP: 0.0.0.0 is no address, and there is no PublicIPv6: no node can be reached there")
    return NodeAttributes(
        public_ip=public_ip,
        public_ipv6=public_ipv6,
        backend_type=_backend_type(root.get("BackendType")),
        backend_data=None if data is None else render_json(data),
        backend_v6_data=None if data6 is None else render_json(data6),
        flanpy=flanpy,
    )


def decode_lease(record: Record) -> Lease:
    """The lease that a record holds; raises CodecError that names the key and the field."""
    subnets = subnets_of(record.key)
    try:
        attributes = decode_attributes(record.value)
    except CodecError as exc:
        raise CodecError(f"{record.key}: {exc}") from exc
    return Lease(subnets, attributes, record.create_revision, record.mod_revision, record.etcd_lease_id)


def _parsed(where: str, text: str | bytes) -> object:
    try:
        return parse_json(text)
    except JsonError as exc:
        raise CodecError(f"{where}: {exc}") from exc


def _public_ip(value: object) -> IPv4Address | None:
    """None for 0.0.0.0, which flannel writes for a node without an IPv4 address."""
    if not isinstance(value, str):
        raise CodecError(f"PublicIP: {_shown(value)} is not an IPv4 address in a string")
    try:
        address = IPv4Address(value)
    except ValueError as exc:
        raise CodecError(f"PublicIP: {_shown(value)} is not an IPv4 address") from exc
    return None if address == _NO_ADDRESS else address


def _public_ipv6(value: object) -> IPv6Address | None:
    if value is None:
        return None
    try:
        if not isinstance(value, str) or "%" in value:
            raise ValueError("not a plain IPv6 address in a string")
        return IPv6Address(value)
    except ValueError as exc:
        raise CodecError(f"PublicIPv6: {_shown(value)} is not an IPv6 address") from exc


def _backend_type(value: object) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not _BACKEND_TYPE.fullmatch(value):
        raise CodecError(f"BackendType: {_shown(value)} is not a backend's name")
    return value


# ------------------------------------------------------------------------------------------------ the flanpy object


def _info_object(info: FlanpyInfo) -> JsonObject:
    return JsonObject((("node", info.node), ("features", tuple(sorted(info.features)))))


def _split_flanpy(data: object) -> tuple[object, FlanpyInfo | None]:
    """BackendData without the flanpy object (None when nothing is left), and that object."""
    if not isinstance(data, JsonObject):
        return data, None
    info = next((value for key, value in data.members if key == "flanpy"), None)
    if info is None:
        return data, None
    rest = tuple(member for member in data.members if member[0] != "flanpy")
    return (JsonObject(rest) if rest else None), _flanpy_info(info)


def _flanpy_info(value: object) -> FlanpyInfo:
    if not isinstance(value, JsonObject):
        raise CodecError(f"BackendData.flanpy: {_shown(value)} is not an object")
    node, features = value.get("node"), value.get("features")
    if not isinstance(node, str) or not NODE_ID.fullmatch(node):
        raise CodecError(
            f"BackendData.flanpy.node: {_shown(node)} is not a node id (letters, digits, '.', '_', ':', '-'; at most 128)"
        )
    features = () if features is None else features
    if not isinstance(features, tuple) or len(features) > _MAX_FEATURES:
        raise CodecError(f"BackendData.flanpy.features: not a list of at most {_MAX_FEATURES} names")
    return FlanpyInfo(node, frozenset(_feature(name) for name in features))


def _feature(value: object) -> str:
    if not isinstance(value, str) or not _FEATURE.fullmatch(value):
        raise CodecError(f"BackendData.flanpy.features: {_shown(value)} is not a feature's name")
    return value


def _shown(value: object) -> str:
    """A hostile value in a message: one line, printable, short."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
