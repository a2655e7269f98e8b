"""The kernel state of a host as iproute2 shows it, in the model's values: the slow oracle beside what the agent says it did."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from flanpy.model import FdbEntry, Neighbour, Route, VxlanLink
from tests.support.clusters import Cluster


def _json(cluster: Cluster, host: str, *command: str) -> list[dict[str, Any]]:
    text = cluster.sandbox.run(host, list(command)).stdout
    found: list[dict[str, Any]] = json.loads(text or "[]")
    return [item for item in found if item]


def routes(cluster: Cluster, host: str) -> frozenset[Route]:
    """The routes of our protocol, of both families."""
    found = [
        item for family in ("-4", "-6") for item in _json(cluster, host, "ip", "-j", family, "route", "show", "proto", "102")
    ]
    return frozenset(
        Route(
            destination=ip_network(item["dst"]),
            device=item["dev"],
            gateway=ip_address(item["gateway"]) if "gateway" in item else None,
            metric=0 if item.get("metric") == 1024 else item.get("metric", 0),
            onlink="onlink" in item["flags"],
        )
        for item in found
    )


def neighbours(cluster: Cluster, host: str, device: str) -> frozenset[Neighbour]:
    """The permanent neighbours of a device."""
    found = _json(cluster, host, "ip", "-j", "neigh", "show", "dev", device, "nud", "permanent")
    return frozenset(Neighbour(device, ip_address(item["dst"]), item["lladdr"]) for item in found)


def fdb(cluster: Cluster, host: str, device: str) -> frozenset[FdbEntry]:
    """All forwarding entries of a VXLAN device."""
    found = _json(cluster, host, "bridge", "-j", "fdb", "show", "dev", device)
    return frozenset(FdbEntry(device, item["mac"], ip_address(item["dst"])) for item in found)


def vxlan(cluster: Cluster, host: str, device: str) -> VxlanLink:
    """A VXLAN device with all that we care for."""
    (found,) = _json(cluster, host, "ip", "-j", "-d", "addr", "show", "dev", device)
    data = found["linkinfo"]["info_data"]
    return VxlanLink(
        name=found["ifname"],
        vni=data["id"],
        port=data["port"],
        mac=found["address"],
        local=ip_address(data["local"] if "local" in data else data["local6"]),
        uplink=data["link"],
        mtu_bytes=found["mtu"],
        addresses=tuple(ip_interface(f"{a['local']}/{a['prefixlen']}") for a in found["addr_info"] if a["scope"] == "global"),
        learning=data["learning"],
        gbp=data.get("gbp", False),
    )


def index(cluster: Cluster, host: str, device: str) -> int:
    """The index of a device: another one means that it was made anew."""
    (found,) = _json(cluster, host, "ip", "-j", "link", "show", "dev", device)
    number: int = found["ifindex"]
    return number
