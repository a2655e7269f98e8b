"""IPv6 in a lab whose network config has it: the scripts that add it to what ``topology`` builds. Pure: values in, text out.

host1 eth0 fd31:9::1/64        the underlay has both families; etcd stays at its IPv4 address
cni0 the subnet's ::1          pods have the numbers of their IPv4 addresses, and default routes of both families
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address, IPv6Network

from flanpy.lab.plan import UPLINK, Plan, PodPlan, Segment

UNDERLAY6 = IPv6Network("fd31:9::/64")
ON = "net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0"
"""Beside the addresses of these scripts, devices get link-local ones, and packets of the kernel's own appear: router solicitations,
multicast reports."""


def underlay_script(plan: Plan) -> str:
    """Each host with an address on the underlay, forwarding."""
    return "".join(
        f"ip netns exec {host.name} sysctl -qew {ON} net.ipv6.conf.all.forwarding=1\n"
        f"ip -n {host.name} address add {UNDERLAY6[number]}/64 dev {UPLINK} nodad\n"
        for number, host in enumerate(plan.hosts, 1)
    )


def pods_script(segment: Segment, subnets: Mapping[str, IPv6Network]) -> str:
    """The second family of a segment's bridges and pods."""
    lines = [
        f"ip -n {host} address add {subnet[1]}/{subnet.prefixlen} dev {segment.bridge} nodad" for host, subnet in subnets.items()
    ]
    for pod in segment.pods:
        subnet = subnets[pod.host]
        address = pod_address(pod, subnet)
        lines += [
            f"ip netns exec {pod.name} sysctl -qew {ON}",
            f"ip -n {pod.name} address add {address}/{subnet.prefixlen} dev eth0 nodad",
            f"ip -n {pod.name} -6 route add default via {subnet[1]}",
        ]
    return "\n".join([*lines, ""])


def pod_address(pod: PodPlan, subnet: IPv6Network) -> IPv6Address:
    """A pod's address in its host's subnet: the same number in it as in the IPv4 one."""
    return subnet[int(pod.address.ip) - int(pod.address.network.network_address)]
