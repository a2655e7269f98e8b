"""Whether the port and the device that a backend needs are free or ours: asked before anything is leased or written. Changes nothing.

udp         the port can be bound; nobody has flannel0 open          (or our datapath process has them, which outlived its agent)
vxlan       its device's name is not another kind's; the port can be bound, or a VXLAN device has it (they share one)
wireguard   its device's name is not another kind's; the port can be bound, or our device is there and has it
ipip        its device's name is not another kind's
others      have neither port nor device
"""

from __future__ import annotations

from flanpy.backends import ipip, udp, vxlan, wireguard
from flanpy.kernel.ipip import KIND as IPIP_KIND
from flanpy.kernel.links import own_device, refuse_open
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.vxlan import list_vxlan
from flanpy.kernel.wireguard import KIND
from flanpy.model import NetworkConfig, Uplink


def check_free(kernel: Kernel, config: NetworkConfig, uplink: Uplink, *, ours: bool = False) -> None:
    """Raises ResourceBusy naming who holds what, InterfaceError when the underlay's address has gone, PlatformError.

    ``ours``: a datapath process of ours runs, so what a datapath needs is held and will be adopted.
    """
    match config.backend.type:
        case "udp":
            own_device(kernel, udp.DEVICE, "tun")
            if not ours:
                _check_port(config, "Port", uplink)
                refuse_open(kernel, udp.DEVICE)
        case vxlan.TYPE:
            _check_vxlan(kernel, config, uplink)
        case ipip.TYPE:
            own_device(kernel, ipip.DEVICE, IPIP_KIND)
        case wireguard.TYPE:
            names = (wireguard.DEVICE, wireguard.DEVICE6)
            there = [own_device(kernel, name, KIND) for name in names]
            if not any(there):
                _check_port(config, "ListenPort", uplink)


def _check_vxlan(kernel: Kernel, config: NetworkConfig, uplink: Uplink) -> None:
    for version, enabled in ((4, config.enable_ipv4), (6, config.enable_ipv6)):
        if enabled:
            own_device(kernel, vxlan.device_name(config, version), "vxlan")
    port = config.backend.options["Port"] or vxlan.KERNEL_PORT
    if all(there.fixed[1] != port for there in list_vxlan(kernel).values()):
        _check_port(config, "Port", uplink, vxlan.KERNEL_PORT)


def _check_port(config: NetworkConfig, option: str, uplink: Uplink, default: int = 0) -> None:
    from flanpy.datapath.sockets import check_port

    port = config.backend.options[option] or default
    address = uplink.address or uplink.address6
    if address is not None and isinstance(port, int) and port:
        check_port(address, port)
