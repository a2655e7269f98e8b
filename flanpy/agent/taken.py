"""Addresses of our subnet that somebody else on this machine has: said with the lease's key, and left to the operator. Reads only.

the first address   our device's; where another device has it already it stays there, and ours goes without (kernel.links)
the subnet itself   one device can be the pods' bridge: of two that are on its link the kernel takes either, and pods behind the other
                    one are not reached
"""

from __future__ import annotations

from collections.abc import Iterable

from flanpy.core.codec import key_of
from flanpy.errors import FlanpyError
from flanpy.kernel.devices import list_addresses, list_devices
from flanpy.kernel.links import is_overlay
from flanpy.kernel.netlink import Kernel
from flanpy.model import DesiredState, Interface


def taken_addresses(kernel: Kernel, desired: DesiredState) -> tuple[str, ...]:
    """What stands in the way of the subnet's addresses, one line each; nothing while the kernel cannot be asked (no descriptor left)."""
    if desired.own is None:
        return ()
    try:
        names = {device.index: device.name for device in list_devices(kernel)}
        found = [(names.get(address.index, ""), address.interface) for address in list_addresses(kernel)]
    except FlanpyError:
        return ()
    return tuple(f"{key_of(desired.own)}: {line}" for line in judge(desired, [each for each in found if not is_overlay(each[0])]))


def judge(desired: DesiredState, others: Iterable[tuple[str, Interface]]) -> list[str]:
    """The same from the (device, address) pairs of devices that are no overlay's."""
    others = sorted(others, key=lambda pair: pair[0])
    lines = [
        f"{wanted.ip}, the address of {link.name}, is taken by {name}: ip addr del {interface} dev {name}"
        for link in (desired.tunnel, *desired.links)
        if link is not None
        for wanted in link.addresses
        for name, interface in others
        if interface.ip == wanted.ip
    ]
    own = () if desired.own is None else (desired.own.ipv4, desired.own.ipv6)
    for subnet in (each for each in own if each is not None):
        bridges = {name: interface for name, interface in others if interface.network == subnet and interface.ip != subnet[0]}
        if len(bridges) > 1:
            told = " and ".join(f"{name} ({interface})" for name, interface in bridges.items())
            lines.append(f"{told} are both on the link of {subnet}: keep the one that is the pods' bridge")
    return lines
