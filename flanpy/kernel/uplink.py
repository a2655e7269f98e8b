"""Chooses the underlay interface and its address: what peers reach this node by. Reads only.

flannel's order: ``iface`` (the first that fits), else ``iface_regex`` (likewise), else ``iface_can_reach``, else the default
route. Where flannel takes the first of several addresses, this asks the kernel which one it would send from, and refuses to
guess when that is open: a wrong address in the lease cuts the node off from all its peers.

IPv4 comes first: a device with such an address is chosen by it, and its IPv6 address goes along. A device without one is chosen by its
IPv6 address; so is any device that is named by its IPv6 address, and its IPv4 addresses are left aside then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import AF_INET, AF_INET6

from pyroute2.netlink.exceptions import NetlinkError

from flanpy.errors import InterfaceError, UsageError
from flanpy.kernel.devices import (
    IFA_F_DEPRECATED,
    IFA_F_SECONDARY,
    IFA_F_TENTATIVE,
    SCOPE_GLOBAL,
    Device,
    DeviceAddress,
    list_addresses,
    list_devices,
)
from flanpy.kernel.netlink import Kernel, explained_errno
from flanpy.kernel.routes import default_routes, on_link_routes
from flanpy.model import Address, Network, Route, Uplink

_OVERLAYS = re.compile(r"flannel|docker\d|cni\d|cali|cilium_|podman\d|virbr\d|br-[0-9a-f]{12}$|kube-")
"""Devices of container and pod networks: never what the default route is meant to name."""
_REGEX_CHARACTERS = 256
_UNICAST = 1
"""rtm_type of a route to another machine; 2 is local, 3 broadcast, 5 multicast."""


@dataclass(frozen=True, slots=True)
class UplinkSelection:
    """The operator's options, in flannel's order of precedence; all empty means the default route's interface.

    ``public_ip`` does not choose the interface; among its addresses it does.
    """

    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: str | None = None
    public_ip: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class _Host:
    """Devices and addresses at one moment; ``routes`` are those that put somebody on a device's link beside its addresses."""

    devices: tuple[Device, ...]
    addresses: tuple[DeviceAddress, ...]
    routes: tuple[Route, ...]

    def of(self, device: Device, version: int = 4) -> list[DeviceAddress]:
        """The addresses of a device, in the kernel's order."""
        return [address for address in self.addresses if address.index == device.index and address.ip.version == version]

    def inventory(self) -> str:
        """What is there, for messages."""
        return ", ".join(f"{device.name} ({self._told(device)})" for device in self.devices)

    def _told(self, device: Device) -> str:
        told = [str(address.ip) for address in self.of(device)]
        lasting = _address6(self, device)
        return ", ".join([*told, *([str(lasting)] if lasting else [])]) or "no address"


class _Unfit(InterfaceError):
    """This interface does not do, but another that was named may."""


def find_uplink(kernel: Kernel, selection: UplinkSelection) -> Uplink:
    """The underlay interface that the options choose. Raises InterfaceError, or UsageError for options that are wrong in themselves."""
    patterns = [_compiled(text) for text in selection.iface_regex]
    host = _Host(list_devices(kernel), list_addresses(kernel), on_link_routes(kernel))
    if selection.iface or patterns:
        return _named(host, selection, patterns)
    if selection.iface_can_reach is not None:
        return _reaching(kernel, host, selection, selection.iface_can_reach)
    return _default(kernel, host, selection)


def _compiled(text: str) -> re.Pattern[str]:
    if len(text) > _REGEX_CHARACTERS:
        raise UsageError(f"--iface-regex: the expression has {len(text)} characters, at most {_REGEX_CHARACTERS} are taken")
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--iface-regex: {text!r} is not a regular expression: {error}") from None


# ------------------------------------------------------------------------------------------------ by name, address, pattern


def _named(host: _Host, selection: UplinkSelection, patterns: list[re.Pattern[str]]) -> Uplink:
    """The first of the named interfaces that fits; those that do not are told together when none does."""
    unfit: list[str] = []
    for wanted in selection.iface:
        try:
            return _by_name(host, selection, wanted)
        except _Unfit as problem:
            unfit.append(str(problem))
    for pattern in patterns:
        try:
            return _by_pattern(host, selection, pattern)
        except _Unfit as problem:
            unfit.append(str(problem))
    raise InterfaceError(f"no underlay interface: {'; '.join(unfit)}. There are: {host.inventory()}")


def _by_name(host: _Host, selection: UplinkSelection, wanted: str) -> Uplink:
    device = next((device for device in host.devices if device.name == wanted), None)
    if device is not None:
        return _uplink(host, selection, device)
    try:
        ip = ip_address(wanted)
    except ValueError:
        raise _Unfit(f"--iface {wanted}: there is no interface of this name, and it is no address") from None
    owner = next((address for address in host.addresses if address.ip == ip), None)
    if owner is None:
        raise _Unfit(f"--iface {wanted}: no interface has this address")
    return _uplink(host, selection, _device(host, owner.index), ip)


def _by_pattern(host: _Host, selection: UplinkSelection, pattern: re.Pattern[str]) -> Uplink:
    """As flannel does: an address that matches goes before a name that matches; of several the first that fits is taken."""
    unfit: list[str] = []
    matches: list[tuple[Device, Address | None]] = [
        (device, address.ip)
        for version in (4, 6)
        for device in host.devices
        for address in host.of(device, version)
        if (version == 4 or address.scope == SCOPE_GLOBAL) and pattern.search(str(address.ip))
    ]
    matches += [(device, None) for device in host.devices if pattern.search(device.name)]
    for device, ip in matches:
        try:
            if device.is_loopback:
                raise _Unfit(f"{device.name} is the loopback device")
            return _uplink(host, selection, device, ip)
        except _Unfit as problem:
            unfit.append(str(problem))
    reason = "; ".join(unfit) or "no name or address of an interface matches it"
    raise _Unfit(f"--iface-regex {pattern.pattern}: {reason}")


# ------------------------------------------------------------------------------------------------ by route


def _reaching(kernel: Kernel, host: _Host, selection: UplinkSelection, target: str) -> Uplink:
    try:
        ip = ip_address(target)
    except ValueError:
        raise UsageError(f"--iface-can-reach: {target!r} is not an address such as 192.0.2.7") from None
    try:
        (found, *_) = kernel.ip.route("get", dst=str(ip), family=AF_INET if ip.version == 4 else AF_INET6)
    except NetlinkError as error:
        reason = explained_errno(error.code)
        raise InterfaceError(f"--iface-can-reach {ip}: no route leads there ({reason}). There are: {host.inventory()}") from error
    if found["type"] != _UNICAST:
        raise InterfaceError(
            f"--iface-can-reach {ip}: this leads to this machine itself or to many; give an address of another machine"
        )
    source = found.get_attr("RTA_PREFSRC")
    return _uplink(host, selection, _device(host, found.get_attr("RTA_OIF")), ip_address(source) if source else None)


def _default(kernel: Kernel, host: _Host, selection: UplinkSelection) -> Uplink:
    """The interface of the default route of the lowest metric that does not lead into a container network; IPv4's, else IPv6's."""
    every = sorted(default_routes(kernel) or default_routes(kernel, AF_INET6), key=lambda route: route.metric)
    routes = [route for route in every if not _OVERLAYS.match(route.device)]
    if not routes:
        passed_over = f" but by {', '.join(route.device for route in every)}, which is a container network" if every else ""
        raise InterfaceError(
            f"there is no default route{passed_over}: name the underlay by --iface. There are: {host.inventory()}"
        )
    names = sorted({name for route in routes if route.metric == routes[0].metric for name in route.device.split("/")})
    if len(names) > 1:
        raise InterfaceError(f"default routes of one metric lead by {' and '.join(names)}: choose by --iface")
    device = next((device for device in host.devices if device.name == names[0]), None)
    if device is None:
        raise InterfaceError(f"{names[0]}: the default route's interface has gone while it was looked at; try again")
    source = _source(host.of(device), routes[0]) if routes[0].destination.version == 4 else None
    return _uplink(host, selection, device, source)


def _source(addresses: list[DeviceAddress], route: Route) -> Address | None:
    """The address that packets by this route are sent from, if the route tells: its own, or the one in the gateway's subnet."""
    if route.source is not None:
        return route.source
    near = [address.ip for address in addresses if route.gateway is not None and route.gateway in address.interface.network]
    return near[0] if len(near) == 1 else None


# ------------------------------------------------------------------------------------------------ the address


def _uplink(host: _Host, selection: UplinkSelection, device: Device, ip: Address | None = None) -> Uplink:
    """The uplink on this device, by this address if one is given."""
    if device.name.startswith("flannel"):
        raise _Unfit(f"{device.name} belongs to an overlay and cannot carry one")
    if not device.is_up:
        raise _Unfit(f"{device.name} is down: ip link set {device.name} up")
    if isinstance(ip, IPv6Address):
        return Uplink(device.name, device.index, device.mtu_bytes, None, ip, _on_link(host, device))
    address6 = _address6(host, device)
    if ip is None and not host.of(device) and address6 is not None:
        return Uplink(device.name, device.index, device.mtu_bytes, None, address6, _on_link(host, device))
    address = ip or _choose(host.of(device), device, selection.public_ip)
    assert isinstance(address, IPv4Address)
    return Uplink(device.name, device.index, device.mtu_bytes, address, address6, _on_link(host, device))


def _on_link(host: _Host, device: Device) -> tuple[Network, ...]:
    """The networks of the device's addresses, and of routes without a gateway.

    Addresses without a network, and link-local networks, lead to nobody that a lease can name; a route may well lead to one host.
    """
    networks = {address.interface.network for address in host.addresses if address.index == device.index}
    wide = {each for each in networks if each.prefixlen < each.max_prefixlen and not each.is_link_local}
    wide |= {route.destination for route in host.routes if route.device == device.name and not route.destination.is_multicast}
    return tuple(sorted(wide, key=lambda network: (network.version, int(network.network_address), network.prefixlen)))


def _choose(addresses: list[DeviceAddress], device: Device, public_ip: IPv4Address | None) -> Address:
    """The one address that peers can mean: the public one if it is here, else the only primary global one."""
    if not addresses:
        raise _Unfit(
            f"{device.name} has no address (IPv6: none that is global and lasting): ip addr add ADDRESS/PREFIX dev {device.name}"
        )
    if public_ip is not None and any(address.ip == public_ip for address in addresses):
        return public_ip
    lasting = [address for address in addresses if not address.flags & (IFA_F_SECONDARY | IFA_F_DEPRECATED)] or addresses
    public = [address for address in lasting if address.scope == SCOPE_GLOBAL] or lasting
    own = [address for address in public if address.interface.network.prefixlen < 32] or public  # /32: a floating address
    if len(own) > 1:
        several = ", ".join(str(address.ip) for address in own)
        raise InterfaceError(
            f"{device.name} has several addresses: {several}; choose one by --iface ADDRESS (or --public-ip, if peers reach it by that one)"
        )
    return own[0].ip


def _address6(host: _Host, device: Device) -> IPv6Address | None:
    """The first lasting global IPv6 address of the device, if there is one."""
    passing = IFA_F_SECONDARY | IFA_F_DEPRECATED | IFA_F_TENTATIVE  # SECONDARY marks a temporary address in IPv6
    own = (address for address in host.addresses if address.index == device.index and address.scope == SCOPE_GLOBAL)
    lasting = (address.ip for address in own if not address.flags & passing)
    return next((ip for ip in lasting if isinstance(ip, IPv6Address)), None)


def _device(host: _Host, index: int) -> Device:
    device = next((device for device in host.devices if device.index == index), None)
    if device is None:
        raise InterfaceError(f"interface #{index} has gone while it was looked at; try again")
    return device
