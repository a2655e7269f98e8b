"""bpffs that somebody makes read-only under a running ebpf datapath: packets and tables go on, and what is wrong is said with its cure.

Host a's datapath runs in a process with a mount namespace and a bpffs of its own, so that the machine's is never touched; the
topology is drawn in tests/support/ebpf.py.
"""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.support.ebpf import EbpfOverlay, EbpfSide, ebpf_overlay, release, table
from tests.support.namespaces import inside

pytestmark = pytest.mark.root

PRIVATE_BPFFS = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", 'mount -t bpf bpf /sys/fs/bpf; exec "$@"', "sh"]
READ_ONLY = "bpffs is read-only: mount -o remount,rw /sys/fs/bpf"
CHILD = """
import json, pickle, subprocess, sys
from dataclasses import replace
from pathlib import Path
from flanpy.agent.datapaths import Home, open_datapath
from flanpy.agent.notify import DescriptorStore
from flanpy.datapath.ebpf import EbpfDatapath, cleanup
from flanpy.datapath.ebpf_pins import BPFFS, ROOT, Pins
from flanpy.datapath.ebpf_probe import probe_all
from flanpy.datapath.sockets import open_underlay
from flanpy.datapath.userspace import UserspaceDatapath
from flanpy.kernel.bpf_host import BpfHost
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.tun import open_tun
settings, options, table = pickle.loads(bytes.fromhex(sys.stdin.readline()))
tun = open_tun(settings.device, keep=True)
userspace = UserspaceDatapath(settings, tun, open_underlay(settings.underlay_address, settings.port))
kernel = Kernel()
datapath = EbpfDatapath(settings, replace(options, pin_root=ROOT), userspace, BpfHost(kernel))
datapath.publish(table)
generation = table.generation

def remount(how):
    subprocess.run(["mount", "-o", "remount," + how, str(BPFFS)], check=True)

def publish():
    global generation
    generation += 1
    datapath.publish(replace(table, generation=generation))

def unhook():
    BpfHost(kernel).clsact_hooks().detach(datapath._spots[0])

verbs = {
    "ro": lambda: remount("ro"), "rw": lambda: remount("rw"), "check": lambda: datapath.check(closely=False), "publish": publish,
    "unhook": unhook,
    "degraded": lambda: datapath.degraded, "repairs": lambda: datapath.stats().counters["bpf_repairs"],
    "reads": lambda: datapath.stats().counters["tun_reads"], "generation": lambda: datapath.stats().generation,
    "another": lambda: Pins.of(settings.device).hold(),
    "auto": lambda: open_datapath("auto", settings, kernel, Home(Path("/nonexistent"), lambda: None, DescriptorStore({}, 0))),
    "teardown": datapath.teardown,
    "cleanup": lambda: cleanup(settings.device, BpfHost(kernel)),
    "probe": lambda: next((each.reason, each.cure) for each in probe_all() if each.name == "bpffs"),
}
print(json.dumps(["ready"]), flush=True)
for line in sys.stdin:
    try:
        told = ["done", verbs[line.strip()]()]
    except Exception as error:
        told = [type(error).__name__, str(error)]
    print(json.dumps(told), flush=True)
"""

Ask = Callable[[str], Any]


@contextmanager
def datapath_of(side: EbpfSide, peer: EbpfSide) -> Iterator[Ask]:
    """This side's datapath in such a process; asked by a word, it answers ``["done", value]``, or an error's type and text."""
    with inside(side.host):
        child = subprocess.Popen(
            [*PRIVATE_BPFFS, sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    assert child.stdin is not None and child.stdout is not None
    stdin, stdout = child.stdin, child.stdout

    def ask(word: str) -> Any:
        stdin.write(word + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    try:
        assert ask(pickle.dumps((side.settings, side.options, table(side, peer))).hex()) == ["ready"]
        yield ask
        ask("rw")
        assert ask("teardown")[0] == "done"
    finally:
        child.kill()
        child.communicate()


@contextmanager
def overlay(hooks: str) -> Iterator[tuple[EbpfOverlay, Ask]]:
    if hooks == "tcx" and release() < (6, 6):
        pytest.skip("tcx came with Linux 6.6")
    with ebpf_overlay(published=False) as made:
        made.a.close()
        made.a.options = replace(made.a.options, hooks=hooks)
        made.b.publish(table(made.b, made.a))
        with datapath_of(made.a, made.b) as ask:
            made.a.host.script(
                f"ip link set flannel0 mtu {made.a.mtu_bytes} up; ip addr add {made.a.tunnel_address}/32 dev flannel0;"
                "ip route add 10.5.0.0/16 dev flannel0"
            )
            yield made, ask


def assert_carried_by_the_programs(made: EbpfOverlay, ask: Ask) -> None:
    before = ask("reads")
    assert " 2 received" in made.a.pod.run("ping", "-c2", "-i0.1", "-W1", str(made.b.pod_address))
    assert ask("reads") == before


@pytest.mark.parametrize("hooks", ["tcx", "clsact"])
def test_a_healthy_datapath_goes_on_where_bpffs_becomes_read_only_and_says_so(hooks: str) -> None:
    with overlay(hooks) as (made, ask):
        assert ask("degraded") == ["done", []]
        ask("ro")
        assert ask("check") == ask("publish") == ask("check") == ["done", None]
        assert (ask("generation"), ask("repairs")) == (["done", 2], ["done", 0])
        assert ask("degraded") == ["done", [f"{READ_ONLY}; until then nothing can be put back or replaced"]]
        assert ask("probe") == ["done", ["/sys/fs/bpf is read-only", "mount -o remount,rw /sys/fs/bpf"]]
        assert_carried_by_the_programs(made, ask)
        for word in ("another", "auto", "teardown", "cleanup"):
            name, text = ask(word)
            assert name == "DatapathWaits" and "can neither be adopted nor removed" in text and READ_ONLY in text
        assert_carried_by_the_programs(made, ask)
        ask("rw")
        assert ask("check") == ["done", None]
        assert ask("degraded") == ["done", []]


def test_what_cannot_be_put_back_while_bpffs_is_read_only_is_waited_for() -> None:
    with overlay("clsact") as (made, ask):
        ask("unhook")
        ask("ro")
        name, text = ask("check")
        assert name == "DatapathWaits" and "fp_encap" in text and READ_ONLY in text
        ask("rw")
        assert ask("check") == ["done", None]
        assert_carried_by_the_programs(made, ask)
