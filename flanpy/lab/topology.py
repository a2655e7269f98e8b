"""The shell scripts that build what ``flanpy.lab.plan`` describes. Pure: values in, text out; ``Sandbox.script`` runs them.

One script builds a whole lab: devices are made in batches (`ip -batch`) and right in the namespaces where they belong, so three
hosts with their pods take a fraction of a second. Names come from plans, never from a user's free text.
"""

from __future__ import annotations

from collections.abc import Sequence

from flanpy.lab.plan import BRIDGE, UPLINK, HostPlan, Plan, PodPlan, Segment

VXLAN_DEVICE = "flannel.1"
GSO_KINDS = "tso {0} gso {0} tx-udp-segmentation {0} tx-udp_tnl-segmentation {0} tx-udp_tnl-csum-segmentation {0}"
MODE_FEATURES = {
    "superpacket": GSO_KINDS.format("on") + " gro off",
    "wire": GSO_KINDS.format("off") + " gro off",
    "wire-gro": GSO_KINDS.format("off") + " gro on",
    "wire-uso": GSO_KINDS.format("off") + " tx-udp-segmentation on gro off",
}
"""ethtool -K of the uplinks. ``gso off`` alone leaves the UDP kinds of superpackets on; a veth's GRO is off unless asked for."""

QUIET_IPV6 = (
    "net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 "
    "net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0"
)
"""No router solicitations and multicast reports: every packet that a counter shows was sent by somebody.

Where ``topology6`` switches IPv6 on, link-local addresses too are good at once: nobody is asked for a second or two whether he has
them (RFC 4862), for which a bridge's answers would wait.
"""


def _batch(lines: Sequence[str], place: str | None = None) -> str:
    namespace = "" if place is None else f"-n {place} "
    return f"ip {namespace}-batch - <<'END'\n" + "\n".join(lines) + "\nEND\n"


def _sysctl(place: str, *settings: str) -> str:
    return f"ip netns exec {place} sysctl -qew {' '.join(settings)}\n"


def underlay_script(plan: Plan) -> str:
    """The underlay bridge and every host with its uplink."""
    prefix = plan.underlay.prefixlen
    script = f"sysctl -qew {QUIET_IPV6}\n" + _batch([f"netns add {host.name}" for host in plan.hosts])
    script += "".join(_sysctl(host.name, QUIET_IPV6, "net.ipv4.ip_forward=1") for host in plan.hosts)
    lines = [
        f"link add {BRIDGE} mtu {plan.mtu_bytes} type bridge",
        f"link set {BRIDGE} up",
        f"address add {plan.services_address}/{prefix} dev {BRIDGE}",
    ]
    for host in plan.hosts:
        peer = f"peer name {UPLINK} netns {host.name} mtu {plan.mtu_bytes}"
        lines.append(f"link add {host.port} mtu {plan.mtu_bytes} type veth {peer}")
        lines.append(f"link set {host.port} master {BRIDGE} up")
    script += _batch(lines)
    for host in plan.hosts:
        lines = ["link set lo up", f"address add {host.address}/{prefix} dev {UPLINK}", f"link set {UPLINK} up"]
        script += _batch([*lines, f"route add default via {plan.services_address}"], host.name)
    return script + mode_script(plan, plan.mode)


def mode_script(plan: Plan, mode: str) -> str:
    """Switch all uplinks to a mode of ``plan.MODES``; can be done at any time."""
    return "".join(f"ip netns exec {host.name} ethtool -K {UPLINK} {MODE_FEATURES[mode]} >/dev/null\n" for host in plan.hosts)


def pods_script(segment: Segment) -> str:
    """The bridge of a segment on each host, and its pods."""
    script = _batch([f"netns add {pod.name}" for pod in segment.pods])
    script += "".join(_sysctl(pod.name, QUIET_IPV6) for pod in segment.pods)
    for host, subnet in segment.subnets.items():
        lines = [
            f"link add {segment.bridge} mtu {segment.mtu_bytes} type bridge",
            f"address add {subnet[1]}/{subnet.prefixlen} dev {segment.bridge}",
            f"link set {segment.bridge} up",
        ]
        for pod in segment.pods_of(host):
            peer = f"peer name eth0 netns {pod.name} mtu {segment.mtu_bytes}"
            lines.append(f"link add {pod.port} mtu {segment.mtu_bytes} type veth {peer}")
            lines.append(f"link set {pod.port} master {segment.bridge} up")
        script += _batch(lines, host)
    return script + "".join(_pod_lines(pod) for pod in segment.pods)


def _pod_lines(pod: PodPlan) -> str:
    lines = ["link set lo up", f"address add {pod.address} dev eth0", "link set eth0 up"]
    return _batch([*lines, f"route add default via {pod.gateway}"], pod.name)


def routed_script(plan: Plan, segment: Segment) -> str:
    """Plain routes between the subnets of a segment: no tunnel, the limit of what the underlay carries."""
    script = ""
    for host in plan.hosts:
        others = [other for other in plan.hosts if other != host]
        script += _batch([f"route add {segment.subnets[other.name]} via {other.address}" for other in others], host.name)
    return script


def vxlan_script(plan: Plan, segment: Segment) -> str:
    """The kernel's VXLAN between the subnets of a segment, set up as flannel's vxlan backend does."""
    return "".join(_vxlan_host(plan, segment, host) for host in plan.hosts)


def _vxlan_host(plan: Plan, segment: Segment, host: HostPlan) -> str:
    tunnel = f"type vxlan id 1 local {host.address} dev {UPLINK} dstport 8472 nolearning"
    lines = [
        f"link add {VXLAN_DEVICE} mtu {plan.mtu_bytes - 50} address {_mac(host)} {tunnel}",
        f"address add {segment.subnets[host.name][0]}/32 dev {VXLAN_DEVICE}",
        f"link set {VXLAN_DEVICE} up",
    ]
    forwarding = []
    for other in plan.hosts:
        if other != host:
            subnet = segment.subnets[other.name]
            lines.append(f"neighbour add {subnet[0]} lladdr {_mac(other)} dev {VXLAN_DEVICE} nud permanent")
            lines.append(f"route add {subnet} via {subnet[0]} dev {VXLAN_DEVICE} onlink")
            forwarding.append(f"fdb add {_mac(other)} dev {VXLAN_DEVICE} dst {other.address} self permanent")
    return _batch(lines, host.name) + f"bridge -n {host.name} -batch - <<'END'\n" + "\n".join(forwarding) + "\nEND\n"


def _mac(host: HostPlan) -> str:
    return "02:00:" + ":".join(f"{byte:02x}" for byte in host.address.packed)


def cut_script(host: HostPlan) -> str:
    """Pull the host's cable: its uplink loses the carrier and keeps its addresses."""
    return f"ip link set {host.port} down\n"


def join_script(host: HostPlan) -> str:
    """Plug the host's cable in again."""
    return f"ip link set {host.port} up\n"


def loss_script(host: HostPlan, percent: float) -> str:
    """Drop this share of the host's packets at random, in each direction; 0 ends it.

    Done at the bridge's end of the cable, where the host's own hooks (eBPF at tc ingress) cannot overtake it.
    """
    table = f"lab_{host.name.replace('-', '_')}"
    script = f"table netdev {table}\ndelete table netdev {table}\n"
    if round(percent * 100) > 0:
        drop = f"numgen random mod 10000 <= {round(percent * 100) - 1} counter drop"
        script += f"table netdev {table} {{\n"
        for hook in ("ingress", "egress"):
            script += f'  chain {hook} {{ type filter hook {hook} device "{host.port}" priority 0; {drop}; }}\n'
        script += "}\n"
    return f"nft -f - <<'END'\n{script}END\n"


COUNT_TABLE = "lab_count"
"""The nftables table (family netdev) of ``count_script``; it has a counter for each host, of the host's name."""


def count_script(plan: Plan, udp_port: int) -> str:
    """Count what every host sends to this UDP port, at the bridge's end of its cable: no datapath has a say in it."""
    lines = [f"table netdev {COUNT_TABLE} {{"]
    for host in plan.hosts:
        rule = f"ip protocol udp udp dport {udp_port} counter name {host.name}"
        lines.append(f"  counter {host.name} {{ }}")
        lines.append(f'  chain {host.name} {{ type filter hook ingress device "{host.port}" priority -10; {rule}; }}')
    return "nft -f - <<'END'\n" + "\n".join([*lines, "}"]) + "\nEND\n"


def rate_script(host: HostPlan, rate_mbit: float) -> str:
    """Limit the host's uplink to this rate in each direction; 0 ends it. The queue holds 50 ms, the burst 10 ms."""
    script = ""
    for device, tc in ((host.port, "tc"), (UPLINK, f"tc -n {host.name}")):
        if rate_mbit > 0:
            burst_bytes = max(20_000, int(rate_mbit * 1e6 / 8 * 0.010))
            script += f"{tc} qdisc replace dev {device} root tbf rate {rate_mbit:g}mbit burst {burst_bytes} latency 50ms\n"
        else:
            script += f"{tc} qdisc delete dev {device} root 2>/dev/null || true\n"
    return script
