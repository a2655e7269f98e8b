"""What flanpy has left on this host, and how it goes: routes, firewall rules, BPF programs, devices, files. Touches nothing else.

    process   the datapath's, found by its socket in the run directory
    routes    those with our protocol number                      rules     our table in nft, our chains in iptables
    bpf       pins of the ebpf datapath, filters, its devices     links     devices by the name and kind that our backends give them
    files     lock and control socket; node id and keys on demand

Works without an agent and without etcd; while an agent runs here it removes nothing. Looking and removing are two steps, so that a dry
run shows exactly what would go.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flanpy.agent import files, kept_leases
from flanpy.agent.client import SOCKET_NAME
from flanpy.agent.datapaths import end_process, running_process
from flanpy.backends import ipip as ipip_backend
from flanpy.backends import udp, wireguard
from flanpy.core.reconcile import Difference
from flanpy.datapath import ebpf
from flanpy.datapath.ebpf_attach import Spot
from flanpy.datapath.ebpf_pins import Pins, find_dead, sweep
from flanpy.errors import PlatformError
from flanpy.kernel import firewall, ipip, routes, vxlan
from flanpy.kernel import wireguard as wireguard_devices
from flanpy.kernel.bpf_host import BpfHost, merging_names
from flanpy.kernel.devices import list_devices
from flanpy.kernel.links import refuse_open, remove_link
from flanpy.kernel.netlink import Kernel
from flanpy.model import Route

VXLAN_NAME = re.compile(r"flannel(?:-v6)?\.(\d+)")
FIXED_NAMES = {
    ipip_backend.DEVICE: ipip.KIND,
    wireguard.DEVICE: wireguard_devices.KIND,
    wireguard.DEVICE6: wireguard_devices.KIND,
}
PROGRAMS = (("fp_encap", True), ("fp_decap", False), ("fp_merged", False), ("fp_bypass", False))
"""The datapath's programs, and whether they hang where packets leave."""
DATAPATH_SOCKETS = ("datapath.sock", "datapath.sock.new", "datapath.pid")
STATE_FILES = (files.NODE_ID_FILE, files.WIREGUARD_KEY_FILE)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is ours: its sort (``process``, ``route``, ``rules``, ``bpf``, ``device``, ``file``), its name, and how it goes."""

    sort: str
    name: str
    remove: Callable[[], object] = field(compare=False, repr=False)


@contextlib.contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """No agent runs in this run directory, nor starts there in the meantime. Raises ResourceBusy; changes nothing."""
    with files.unused(run_dir):
        yield


def find(
    kernel: Kernel,
    run_dir: Path,
    state_dir: Path | None,
    subnet_file: Path | None = None,
    *,
    for_flanneld: bool = False,
    only_look: bool = False,
) -> list[Item]:
    """All that is there, in the order in which it goes: what carries packets last.

    Raises ResourceBusy when somebody has the tunnel open who is not our datapath process, PlatformError.
    ``state_dir``, ``subnet_file``: what the node knows itself by goes too.
    ``only_look``: whoever has the tunnel open, for nothing is to be removed.
    ``for_flanneld``: not the devices and routes that a flanneld on this host takes over as they are, so that packets go on.
    """
    process = running_process(run_dir)
    if process is None and not only_look and (not for_flanneld or Pins.of(udp.DEVICE).directory.is_dir()):
        refuse_open(kernel, udp.DEVICE)
    found = [*_rules(), *_routes(kernel, for_flanneld), *_bpf(kernel), *_process(run_dir, process)]
    found += [] if for_flanneld else _links(kernel)
    sockets = () if process is not None else DATAPATH_SOCKETS  # they go with it
    paths = [run_dir / name for name in (SOCKET_NAME, *sockets, kept_leases.FILE)]
    paths += [state_dir / name for name in STATE_FILES] if state_dir is not None else []
    paths += [subnet_file] if subnet_file is not None else []
    paths.append(run_dir / files.LOCK_FILE)  # last, for an agent may start from then on
    return found + [Item("file", str(path), path.unlink) for path in paths if path.exists()]


def _process(run_dir: Path, pid: int | None) -> Iterator[Item]:
    """It holds the tunnel device, which goes with it unless it is kept."""
    if pid is not None:
        yield Item("process", f"flanpy-datapath (pid {pid})", lambda: end_process(run_dir))


def _routes(kernel: Kernel, for_flanneld: bool) -> Iterator[Item]:
    for route in sorted(routes.list_routes(kernel), key=str):
        if for_flanneld and route.kind == "unicast" and route.device != udp.DEVICE:
            continue
        via = f" via {route.gateway}" if route.gateway else ""
        device = f" dev {route.device}" if route.device else ""
        kind = "" if route.kind == "unicast" else f"{route.kind} "
        yield Item("route", f"{kind}{route.destination}{via}{device}", lambda route=route: _remove_route(kernel, route))  # type: ignore[misc]


def _remove_route(kernel: Kernel, route: Route) -> None:
    for _, reason in routes.apply(kernel, Difference(remove=frozenset((route,)))).failed:
        raise PlatformError(f"route {route.destination} dev {route.device}: {reason}")


def _rules() -> Iterator[Item]:
    for number, name in enumerate(firewall.find_rules()):
        yield Item("rules", name, firewall.remove_rules if number == 0 else lambda: None)


def _bpf(kernel: Kernel) -> Iterator[Item]:
    """Filters first: what is left of them would find no maps to fill. Pins say that the tunnel device is ours."""
    host, pins = BpfHost(kernel), Pins.of(udp.DEVICE)
    hooks = host.clsact_hooks()
    for device in list_devices(kernel):
        for program, egress in PROGRAMS:
            spot = Spot(program, device.index, egress)
            if hooks.attached(spot) is not None:
                yield Item("bpf", f"filter {program} of {device.name}", lambda spot=spot: hooks.detach(spot))  # type: ignore[misc]
    names = {device.name for device in list_devices(kernel) if device.kind in ("tun", "veth")}
    if pins.directory.is_dir():
        yield Item("bpf", str(pins.directory), lambda: ebpf.cleanup(udp.DEVICE, host))
        if udp.DEVICE in names:
            yield Item("device", udp.DEVICE, lambda: remove_link(kernel, udp.DEVICE))
    for directory in find_dead():
        if directory != pins.directory:
            yield Item("bpf", f"{directory}, of a namespace that is gone", lambda directory=directory: sweep(directory))  # type: ignore[misc]
    for name in merging_names(udp.DEVICE):
        if name in names:
            yield Item("device", name, lambda: host.remove_merging_device(udp.DEVICE))


def _links(kernel: Kernel) -> Iterator[Item]:
    kinds = {name: "vxlan" for name, there in vxlan.list_vxlan(kernel).items() if _is_ours(name, there.fixed[0])}
    kinds |= {each.name: each.kind for each in list_devices(kernel) if FIXED_NAMES.get(each.name) == each.kind}
    for name, kind in sorted(kinds.items()):
        yield Item("device", name, lambda name=name, kind=kind: remove_link(kernel, name, kind))  # type: ignore[misc]


def _is_ours(name: str, vni: int) -> bool:
    """Whether our backend gives a VXLAN device with this VNI this name."""
    found = VXLAN_NAME.fullmatch(name)
    return found is not None and int(found[1]) == vni
