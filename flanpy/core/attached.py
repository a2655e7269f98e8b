"""What the CNI plugin keeps about an attached pod, as far as the agent wants to know it: one kept file in, pods out. Pure.

A kept file (``cni.saved`` writes it) is the delegate's config with a note under the key ``flanpy``:

    {"ifname": "eth0", "netns": "…", "boot": "<boot id>", "pod": {"namespace": "…", "name": "…"}, "result": <result of ADD>}

``result`` is there once ADD has come to its end. What another boot has left is nobody's: pods do not outlive a reboot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface

from flanpy.core.pods import NAME
from flanpy.errors import CodecError
from flanpy.model import Address
from flanpy.strict_json import JsonError, JsonObject, parse_json

NOTE = "flanpy"
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
DEFAULT_BRIDGE = "cni0"
"""The bridge plugin's own default."""


@dataclass(frozen=True, slots=True)
class AttachedPod:
    """One address of a pod on this node. ``attachment`` is container@ifname; ``bridge`` and ``mac`` are "" where there is none."""

    address: Address
    attachment: str
    container: str
    namespace: str
    name: str
    bridge: str
    mac: str = ""

    @property
    def place(self) -> tuple[int, bytes, str]:
        """By which pods are ordered: addresses of two families have no order of their own."""
        return self.address.version, self.address.packed, self.attachment


def parse_kept(file_name: str, text: bytes, boot: str) -> tuple[AttachedPod, ...]:
    """The addresses of the attachment in a kept file; () while its ADD is not done, and of another boot. Raises CodecError."""
    container = file_name.partition("@")[0]
    if not NAME.fullmatch(container):
        raise CodecError(f"{ascii(file_name)[:80]}: not named by a container's id")
    try:
        config = parse_json(text)
    except JsonError as exc:
        raise CodecError(f"{file_name}: {exc}") from exc
    note = config.get(NOTE) if isinstance(config, JsonObject) else None
    if not isinstance(config, JsonObject) or not isinstance(note, JsonObject):
        return ()  # flannel's plugin keeps no note
    result = note.get("result")
    if note.get("boot") != boot or not isinstance(result, JsonObject):
        return ()
    ifname, pod = note.get("ifname"), note.get("pod")
    named = pod if isinstance(pod, JsonObject) else JsonObject()
    bridge = (config.get("bridge") or DEFAULT_BRIDGE) if config.get("type") == "bridge" else ""
    return tuple(
        AttachedPod(
            address,
            f"{container}@{ifname}",
            container,
            _name(named.get("namespace")),
            _name(named.get("name")),
            bridge if isinstance(bridge, str) else "",
            mac,
        )
        for address, mac in _addresses(file_name, result)
    )


def _addresses(file_name: str, result: JsonObject) -> Iterator[tuple[Address, str]]:
    """Each address, with the MAC of the interface that has it."""
    for item in _objects(result.get("ips")):
        text = item.get("address")
        try:
            yield ip_interface(text if isinstance(text, str) else "").ip, _mac(result, item.get("interface"))
        except ValueError as exc:
            raise CodecError(f"{file_name}: result.ips: {ascii(text)[:60]} is not an address") from exc


def _mac(result: JsonObject, number: object) -> str:
    interfaces = _objects(result.get("interfaces"))
    mac = interfaces[number].get("mac") if isinstance(number, int) and 0 <= number < len(interfaces) else None
    return mac.lower() if isinstance(mac, str) and _MAC.fullmatch(mac.lower()) else ""


def _objects(value: object) -> tuple[JsonObject, ...]:
    return tuple(item for item in value if isinstance(item, JsonObject)) if isinstance(value, tuple) else ()


def _name(value: object) -> str:
    """A name as a runtime gives it; one that the registry could not hold counts as none."""
    return value if isinstance(value, str) and NAME.fullmatch(value) else ""
