"""The options of every backend of flannel, with its defaults and limits: one table, no code a backend."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flanpy.config.flags import did_you_mean
from flanpy.config.json_fields import (
    Field,
    boolean,
    choice,
    integer,
    integer_or_zero,
    read_fields,
    shown,
    text,
    wireguard_key,
)
from flanpy.model import BackendConfig
from flanpy.strict_json import JsonObject

_PORT = integer(1, 65535, "a UDP port")
_MTU = Field("MTU", 0, integer_or_zero(68, 65535, "an MTU in bytes", "the uplink's less the overhead"))

BACKEND_OPTIONS: Mapping[str, tuple[Field, ...]] = MappingProxyType(
    {
        "udp": (Field("Port", 8285, _PORT),),
        "vxlan": (
            Field("VNI", 1, integer(1, (1 << 24) - 1, "a VXLAN network identifier")),
            Field("Port", 0, integer_or_zero(1, 65535, "a UDP port", "the kernel's, 8472")),
            _MTU,
            Field("GBP", False, boolean),
            Field("Learning", False, boolean),
            Field("DirectRouting", False, boolean),
        ),
        "host-gw": (),
        "wireguard": (
            Field("ListenPort", 51820, _PORT),
            Field("ListenPortV6", 51821, _PORT),
            _MTU,
            Field("PSK", "", wireguard_key),
            Field("PersistentKeepaliveInterval", 0, integer(0, 65535, "a number of seconds")),
            Field("Mode", "separate", choice("separate", "auto", "ipv4", "ipv6")),
        ),
        "ipip": (Field("DirectRouting", False, boolean),),
        "alloc": (),
        "extension": (
            Field("PreStartupCommand", "", text),
            Field("PostStartupCommand", "", text),
            Field("SubnetAddCommand", "", text),
            Field("SubnetRemoveCommand", "", text),
        ),
    }
)
"""Options of each backend type, by flannel's names, in flannel's order."""

_TYPE = "Type"

_ANY_OPTION = tuple(
    Field(name, None, lambda value: value)
    for name in dict.fromkeys([_TYPE, *(field.name for fields in BACKEND_OPTIONS.values() for field in fields)])
)
"""Every option of any backend, unchecked: for an object whose type is missing or unknown."""


def read_backend(value: object, problems: list[str]) -> BackendConfig:
    """The ``Backend`` object; absent means udp. Adds a line to ``problems`` for each mistake."""
    if value is None:
        return BackendConfig("udp", _defaults("udp"))
    if not isinstance(value, JsonObject):
        problems.append(f'Backend: {shown(value)} is not an object such as {{"Type": "udp"}}')
        return BackendConfig("udp", _defaults("udp"))
    kind = _backend_type(value.get(_TYPE), problems)
    if kind is None:
        read_fields("Backend.", value, _ANY_OPTION, problems)
        return BackendConfig("udp", _defaults("udp"))
    fields = BACKEND_OPTIONS[kind]
    options = read_fields("Backend.", value, (Field(_TYPE, kind, text), *fields), problems)
    del options[_TYPE]
    return BackendConfig(kind, MappingProxyType(options))


def _backend_type(value: object, problems: list[str]) -> str | None:
    known = tuple(BACKEND_OPTIONS)
    if isinstance(value, str) and value.lower() in known:
        return value.lower()
    if value is None or value == "":
        problems.append(f"Backend.Type: missing (one of {', '.join(known)})")
        return None
    hint = did_you_mean(value.lower(), known) if isinstance(value, str) else ""
    problems.append(f"Backend.Type: {shown(value)} is not one of {', '.join(known)}{hint}")
    return None


def _defaults(kind: str) -> Mapping[str, object]:
    return MappingProxyType({field.name: field.default for field in BACKEND_OPTIONS[kind]})
