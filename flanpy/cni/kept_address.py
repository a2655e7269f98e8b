"""A pod that brings its addresses along: the delegate's config for addresses of another node's subnet. Pure: values in, values out.

A runtime asks for addresses by the capability ``ips``, by ``args.cni.ips``, or by IP= in CNI_ARGS. Those of this node's subnet are
host-local's business. Those of another node's subnet, inside of the network, are what a pod keeps when it moves: host-local could
not give them, so the ``static`` plugin does. In the pod all stays as it was on the old node:

    address   in a subnet as long as ours           gateway   the first address of that subnet, for which the agent lets our bridge answer
    routes    by the gateway: the old subnet in two halves (they win over the connected route, for it is not on this bridge), the network,
              and everything where the delegate is told to be the default gateway

The bridge gets no address by it (isGateway off): it has one of our own subnet, or will have one with the first pod of ours.
That packets come here is the agent's doing (``--pod-registry``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_interface, ip_network

from flanpy.cni.protocol import INVALID_CONFIG, OUTSIDE_SUBNET, JsonDict
from flanpy.core.subnet_env import SubnetEnv
from flanpy.errors import CniError
from flanpy.model import Address, Network

MARK = "flanpyKeptAddress"
"""In the delegate's config: it was made here."""
ASKED_BY_ENVIRONMENT = ("IP", "GATEWAY")


def kept_addresses(config: JsonDict, arguments: Mapping[str, str], node: SubnetEnv) -> tuple[Address, ...]:
    """The addresses of other nodes' subnets that the runtime asks for. Raises CniError when they cannot be had here."""
    asked = tuple(_asked(config, arguments))
    kept = tuple(address for address in asked if _is_elsewhere(address, node))
    if kept and len(kept) < len(asked):
        shown = ", ".join(map(str, asked))
        raise CniError(
            INVALID_CONFIG, f"ips: {shown}: a pod keeps all its addresses or none; some of these are of this node's subnet"
        )
    for address in kept:
        block = _block(address, node)
        if address in (block[0], block[1], block[-1]):
            raise CniError(OUTSIDE_SUBNET, f"ips: {address} belongs to its subnet itself; no pod can have it")
    return kept


def with_kept_addresses(delegate: JsonDict, addresses: tuple[Address, ...], node: SubnetEnv) -> JsonDict:
    """The rendered delegate's config, with these addresses in the place of host-local's choice."""
    given: list[JsonDict] = []
    routes: list[JsonDict] = []
    for address in addresses:
        block = _block(address, node)
        gateway = str(block[1])
        given.append({"address": f"{address}/{block.prefixlen}", "gateway": gateway})
        routes += [
            {"gw": gateway, **route} for route in delegate["ipam"].get("routes") or () if _version(route) == address.version
        ]
        if delegate.get("isDefaultGateway"):
            routes.append({"dst": "0.0.0.0/0" if address.version == 4 else "::/0", "gw": gateway})
        # last the half that holds the gateway: IPv6 takes no gateway that is itself behind one
        routes += [{"dst": str(half), "gw": gateway} for half in reversed(list(block.subnets()))]
    rest = {key: value for key, value in delegate.items() if key not in ("args", "runtimeConfig")}
    ipam = {"type": "static", "addresses": given, "routes": routes}
    return {**rest, **_without_ips(delegate), "isGateway": False, "isDefaultGateway": False, MARK: True, "ipam": ipam}


def plain_arguments(text: str) -> str:
    """CNI_ARGS without what asks for an address, which the delegate's config says already."""
    return ";".join(item for item in text.split(";") if item.partition("=")[0] not in ASKED_BY_ENVIRONMENT)


def _without_ips(delegate: JsonDict) -> JsonDict:
    kept: JsonDict = {}
    if isinstance(runtime := delegate.get("runtimeConfig"), dict):
        kept["runtimeConfig"] = {key: value for key, value in runtime.items() if key != "ips"}
    if isinstance(args := delegate.get("args"), dict):
        cni = args.get("cni")
        plain = {key: value for key, value in cni.items() if key != "ips"} if isinstance(cni, dict) else cni
        kept["args"] = {**args, "cni": plain}
    return kept


def _asked(config: JsonDict, arguments: Mapping[str, str]) -> Iterator[Address]:
    """The first of the three ways that is used."""
    args, runtime = config.get("args"), config.get("runtimeConfig")
    cni = args.get("cni") if isinstance(args, dict) else None
    for source in (
        runtime.get("ips") if isinstance(runtime, dict) else None,
        cni.get("ips") if isinstance(cni, dict) else None,
        arguments.get("IP", "").split(","),
    ):
        found = list(_addresses(source))
        if found:
            yield from found
            return


def _addresses(values: object) -> Iterator[Address]:
    """What can be read; the rest is for the IPAM plugin to refuse."""
    for value in values if isinstance(values, list) else ():
        with suppress(ValueError):
            yield ip_interface(value if isinstance(value, str) else "").ip


def _is_elsewhere(address: Address, node: SubnetEnv) -> bool:
    networks = (node.network, node.ipv6_network, *node.more_networks)
    return _in_any(address, networks) and not _in_any(address, (node.subnets.ipv4, node.subnets.ipv6))


def _in_any(address: Address, networks: tuple[Network | None, ...]) -> bool:
    return any(each is not None and each.version == address.version and address in each for each in networks)


def _block(address: Address, node: SubnetEnv) -> Network:
    """The subnet that an address is of, taken to be as long as ours."""
    own = node.subnets.ipv4 if address.version == 4 else node.subnets.ipv6
    if own is None or own.max_prefixlen - own.prefixlen < 2:
        raise CniError(
            OUTSIDE_SUBNET, f"ips: this node has no IPv{address.version} subnet that could hold a pod: it cannot take {address}"
        )
    return ip_network((address, own.prefixlen), strict=False)


def _version(route: object) -> int:
    """The family of a route of the config; 0 when it cannot be told."""
    with suppress(ValueError):
        return ip_network(route.get("dst", "") if isinstance(route, dict) else "", strict=False).version
    return 0
