"""The machine's own state is damaged by hand: the tunnel device. Real agents, probes both ways, each datapath."""

import json
import time
from collections.abc import Callable

import pytest

from tests.support.clusters import Cluster, eventually
from tests.support.probes import probes
from tests.support.processes import idle_share

pytestmark = pytest.mark.usefixtures("healed")


def device(two: Cluster, host: str) -> dict[str, object]:
    """The tunnel device of a host; LookupError when there is none."""
    found = json.loads(two.sandbox.run(host, ["ip", "-j", "link", "show", "flannel0"], check=False).stdout or "[]")
    if not found:
        raise LookupError("no flannel0")
    return dict(found[0])


def test_a_deleted_device_is_made_again_with_its_routes(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 16: the TUN device is deleted.

    The agent is told by the kernel, opens device and datapath anew, and sets addresses, routes and table; the peer does nothing.
    Passes when: noticed, rebuilt with its routes < 1 s, no CPU burnt.
    """
    before, said = device(two, "host1")["ifindex"], len(two.log("host1"))
    with probes(two) as stream:
        started = time.monotonic()
        two.sandbox.run("host1", ["ip", "link", "del", "flannel0"])
        eventually(lambda: device(two, "host1")["ifindex"] != before, 5, "there is another device")
        eventually(
            lambda: any(line.startswith("10.244.0.0/16 dev flannel0") for line in two.routes("host1")), 5, "the route is back"
        )
        rebuilt_s = time.monotonic() - started
        stream.flow()
    assert rebuilt_s < 1.5, "1 s is the goal; the rest is room for a busy machine"
    assert stream.total.longest_gap_s < 2.5
    assert "datapath_failed" in two.log("host1")[said:]
    share = idle_share(two, "host1")
    assert share < 0.1
    measured(f"rebuilt in {rebuilt_s:.2f} s, {stream.total.words}, then {share:.1%} CPU")
