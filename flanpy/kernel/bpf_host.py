"""What the ebpf datapath needs to know of this host, and the one pair of devices that it may need made.

The merging device is a veth pair whose near end does not take superpackets, so that packets sent into it come out of the far
end through NAPI, merged by GRO. Both ends have no address, no IPv6 and no part in the host's routing.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from flanpy.kernel import offloads
from flanpy.kernel.devices import RTM_GETLINK, list_addresses, list_devices
from flanpy.kernel.links import remove_link
from flanpy.kernel.messages import attributes
from flanpy.kernel.netlink import Kernel, explained, settled
from flanpy.kernel.tc import ClsactHooks
from flanpy.model import Address, Network

_IFINFOMSG = struct.Struct("=BxHiII")
_IFNAME, _LINK, _MASTER, _LINKINFO, _INFO_KIND = 3, 5, 10, 18, 1
_STACKED = frozenset({"vlan", "bond", "team"})
"""Devices that send through others and hand nothing on between these."""
MERGING_MTU_BYTES = 65535
"""A veth drops what is larger, and any inner packet of real size may pass, whatever the underlay's MTU is or becomes."""
TUNNEL_GSO = "tx-udp_tnl-segmentation"


class BpfHost:
    """One network namespace, through its ``Kernel``; belongs to the same thread."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def clsact_hooks(self) -> ClsactHooks:
        """Filters of a clsact qdisc."""
        return ClsactHooks(self._kernel)

    def device_of(self, address: Address) -> str | None:
        """The name of the interface that has this address."""
        index = next((found.index for found in list_addresses(self._kernel) if found.ip == address), None)
        return socket.if_indextoname(index) if index is not None else None

    def carries_superpackets(self, device: str) -> bool:
        """Whether what is sent there can reach a receiver as it is, uncut and unfinished: veth, bridge, TAP, a guest's network.

        A network card finishes and cuts everything, as do those stacked on one. What is unknown is taken for virtual.
        """
        links = settled(
            "list the network devices", lambda: map(_link, (body for _, body in self._kernel.dump(RTM_GETLINK, _ALL)))
        )
        return _carries(device, links, self._cuts_tunnels)

    def offloads(self, device: str) -> tuple[bool, bool]:
        """Whether an interface hands superpackets of TCP and UDP to its driver uncut, and whether it merges what arrives (GRO).

        From any thread of the namespace."""
        on, whole = offloads.active(device), offloads.bits(device, "tx-tcp-segmentation", "tx-udp-segmentation")
        return on & whole == whole, bool(on & offloads.bits(device, "rx-gro"))

    def _cuts_tunnels(self, device: str) -> bool:
        """Whether a device without a kind offers to cut tunnels; a virtual one hands that work to the receiver."""
        with contextlib.suppress(OSError):
            return bool(offloads.active(device) & offloads.bits(device, TUNNEL_GSO))
        return False

    def pod_bridge(self, subnets: Iterable[Network], device: str) -> int:
        """The interface that has an address within these subnets, but for the tunnel's own; 0 when there is none."""
        tunnel = _index(device)
        for found in list_addresses(self._kernel):
            if found.index != tunnel and any(found.ip in subnet for subnet in subnets):
                return found.index
        return 0

    def merging_device(self, device: str) -> tuple[int, int]:
        """Indices of the ends where packets go in and come out; made, or set up again, if need be."""
        near, far = names = merging_names(device)
        there = {found.name: found for found in list_devices(self._kernel) if found.name in names}
        if len(there) < 2 or not all(found.is_up and found.mtu_bytes == MERGING_MTU_BYTES for found in there.values()):
            self._make_merging_device(near, far, set(there))
        return _index(near), _index(far)

    def _make_merging_device(self, near: str, far: str, there: set[str]) -> None:
        with explained(f"make {near} and {far}"):
            if not there:
                self._kernel.ip.link("add", ifname=near, kind="veth", peer={"ifname": far})
            _without_ipv6(near)
            _without_ipv6(far)
            offloads.switch(near, lambda name: name.startswith("tx-tcp") and name.endswith("-segmentation"), on=False)
            offloads.switch(far, lambda name: name == "rx-gro", on=True)
            for name in (near, far):
                self._kernel.ip.link("set", index=_index(name), mtu=MERGING_MTU_BYTES, state="up")

    def remove_tunnel(self, device: str) -> None:
        """The TUN device is gone, and with it every filter on it."""
        remove_link(self._kernel, device)

    def remove_merging_device(self, device: str) -> None:
        """Both ends are gone."""
        near, _ = merging_names(device)
        if index := _index(near):
            with explained(f"remove {near}"):
                try:
                    self._kernel.ip.link("del", index=index)
                except NetlinkError as error:
                    if error.code != errno.ENODEV:
                        raise


_ALL = _IFINFOMSG.pack(0, 0, 0, 0, 0)


def merging_names(device: str) -> tuple[str, str]:
    """Names of the near and the far end, within the 15 characters of a device name."""
    return f"{device[:12]}-mi", f"{device[:12]}-mo"


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _link(body: memoryview) -> tuple[int, str, str, int, int]:
    """(index, name, kind, index of the device below, index of the master) of a link message."""
    index = _IFINFOMSG.unpack_from(body)[2]
    found = attributes(body, _IFINFOMSG.size)
    kind = attributes(memoryview(found.get(_LINKINFO, b"")), 0).get(_INFO_KIND, b"")
    below, master = (int.from_bytes(found.get(key, b"")[:4], "little") for key in (_LINK, _MASTER))
    return (
        index,
        found.get(_IFNAME, b"").rstrip(b"\0").decode(errors="surrogateescape"),
        kind.rstrip(b"\0").decode(),
        below,
        master,
    )


def _carries(device: str, links: list[tuple[int, str, str, int, int]], cuts_tunnels: Callable[[str], bool]) -> bool:
    this = next((link for link in links if link[1] == device), None)
    if this is None:
        return True
    index, _, kind, below, _ = this
    if not kind:
        return _is_paravirtual(device) and cuts_tunnels(device)
    if kind not in _STACKED:
        return True
    lower = [link[1] for link in links if link[4] == index or (kind == "vlan" and link[0] == below)]
    return not lower or any(_carries(name, links, cuts_tunnels) for name in lower)


def _is_paravirtual(device: str) -> bool:
    driver = Path(f"/sys/class/net/{device}/device/driver")
    return driver.exists() and driver.resolve().name.startswith(("virtio", "xen", "vmxnet", "hv_netvsc"))


def _without_ipv6(name: str) -> None:
    with contextlib.suppress(OSError):  # a kernel without IPv6, or /proc/sys read-only: then it has a link-local address
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1", encoding="ascii")
