"""The ebpf datapath over time: tables change, processes die and come back, filters vanish. Packets are counted all the while.

The topology is drawn in tests/support/ebpf.py; a probe is a numbered datagram from pod a to pod b, 1,000 to 2,000 a second.
"""

import hashlib
import json
import pickle
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flanpy.agent.datapaths import Home, open_datapath
from flanpy.agent.notify import DescriptorStore
from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.ebpf import EbpfDatapath, cleanup
from flanpy.datapath.ebpf_attach import Spot, TcxHooks
from flanpy.datapath.ebpf_pins import Pins, find_dead, sweep, sweep_dead
from flanpy.datapath.ebpf_places import put_in_place
from flanpy.datapath.ebpf_probe import probe_all
from flanpy.datapath.ebpf_programs import load, map_pin, read_object
from flanpy.errors import DatapathError, PlatformError, ResourceBusy
from flanpy.kernel.bpf_host import BpfHost, merging_names
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.tun import open_tun
from tests.netns.test_datapath_traffic import send_and_digest
from tests.support.ebpf import EbpfOverlay, EbpfSide, ebpf_overlay, pin_root, table
from tests.support.namespaces import inside, namespace
from tests.support.netns import counters, udp_socket
from tests.support.polling import soon

pytestmark = pytest.mark.root

PROBES_PER_S = 2000
HOOKS = ["tcx", "clsact"]


class Probes:
    """What a running stream of probes has sent, and what of it has not come yet."""

    def __init__(self) -> None:
        self.sent = 0
        self.received: set[int] = set()

    @property
    def missing(self) -> set[int]:
        return set(range(self.sent)) - self.received


@contextmanager
def probes(made: EbpfOverlay) -> Iterator[Probes]:
    """Probes run for the length of the block; afterwards all that were sent have had two seconds to arrive."""
    counted, ended = Probes(), threading.Event()
    with udp_socket(made.b.pod, made.b.pod_address) as receiver, udp_socket(made.a.pod) as sender:
        receiver.settimeout(0.05)
        to = receiver.getsockname()

        def send() -> None:
            """Never a burst to catch up on a busy machine: that would overflow the kernel's backlog, whatever carries it."""
            while not ended.is_set():
                sender.sendto(struct.pack("!Q", counted.sent), to)
                counted.sent += 1
                select.select([], [], [], 1 / PROBES_PER_S)

        def receive() -> None:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not (
                ended.is_set() and (not counted.missing or time.monotonic() > last[0] + 2)
            ):
                try:
                    counted.received.add(struct.unpack("!Q", receiver.recv(100))[0])
                    last[0] = time.monotonic()
                except TimeoutError:
                    pass

        last = [time.monotonic()]
        threads = [threading.Thread(target=send), threading.Thread(target=receive)]
        for thread in threads:
            thread.start()
        try:
            assert soon(lambda: len(counted.received) > 10)
            yield counted
        finally:
            ended.set()
            for thread in threads:
                thread.join()


def wait_for(counted: Probes, more: int) -> None:
    """Until so many more probes have been sent."""
    goal = counted.sent + more
    assert soon(lambda: counted.sent >= goal, within_s=20)


def test_the_probes_notice_a_loss() -> None:
    """Shows that the assertions below can fail."""
    with ebpf_overlay() as made:
        with probes(made) as counted:
            made.b.host.script("ip link set uplink down")
            wait_for(counted, 20)
            made.b.host.script("ip link set uplink up")
        assert counted.missing


def test_a_table_that_changes_under_load_loses_nothing() -> None:
    with ebpf_overlay() as made:
        with probes(made) as counted:
            for generation in range(2, 60):
                made.publish(generation)
        assert counted.missing == set()
        assert counted.sent > 100
        assert made.a.stats.generation == 59


def leave(side: EbpfSide) -> None:
    """The process that owns this datapath is gone, as far as the kernel can tell: descriptors closed, nothing torn down."""
    assert isinstance(side.datapath, EbpfDatapath)
    side.datapath.close()
    side.datapath = None


@pytest.mark.parametrize("hooks", HOOKS)
def test_a_closed_datapath_carries_on_and_the_next_one_adopts_it(hooks: str) -> None:
    with ebpf_overlay(hooks=hooks) as made:
        with probes(made) as counted:
            before = made.b.packets("decapsulated")
            leave(made.b)
            wait_for(counted, 500)
            made.b.open()
            assert isinstance(made.b.datapath, EbpfDatapath) and made.b.datapath.adopted
            made.b.publish(table(made.b, made.a, generation=7))
            wait_for(counted, 200)
        assert counted.missing == set()
        assert made.b.packets("decapsulated") >= before + 700
        assert made.b.stats.counters["bpf_repairs"] == 0


CHILD = """
import pickle, sys
from pathlib import Path
from flanpy.datapath.ebpf import EbpfDatapath
from flanpy.datapath.sockets import open_underlay
from flanpy.datapath.userspace import UserspaceDatapath
from flanpy.kernel.bpf_host import BpfHost
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.tun import open_tun
settings, options, table = pickle.loads(bytes.fromhex(sys.stdin.readline()))
tun = open_tun(settings.device, keep=True)
userspace = UserspaceDatapath(settings, tun, open_underlay(settings.underlay_address, settings.port))
datapath = EbpfDatapath(settings, options, userspace, BpfHost(Kernel()))
datapath.publish(table)
print("ready", datapath.adopted, *datapath.degraded, flush=True)
sys.stdin.readline()
"""


@contextmanager
def in_a_process(side: EbpfSide, generation: int, peer: EbpfSide) -> Iterator[subprocess.Popen[str]]:
    """This side's datapath in a process of its own, as an agent has it."""
    with inside(side.host):
        child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(pickle.dumps((side.settings, side.options, table(side, peer, generation=generation))).hex() + "\n")
        child.stdin.flush()
        assert child.stdout.readline().startswith("ready")
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


@pytest.mark.parametrize("hooks", HOOKS)
def test_a_killed_process_loses_nothing_and_its_successor_neither(hooks: str) -> None:
    with ebpf_overlay(hooks=hooks) as made:
        leave(made.b)
        with in_a_process(made.b, 2, made.a) as first:
            with probes(made) as counted:
                first.send_signal(signal.SIGKILL)
                first.wait()
                wait_for(counted, 1000)
                with in_a_process(made.b, 3, made.a):
                    wait_for(counted, 300)
            assert counted.missing == set()
        made.b.open()


def older_version(side: EbpfSide) -> None:
    """Put a program of another version in the place of fp_decap: it has one instruction more, and works the same."""
    parsed = read_object()
    pins = pins_of(side)
    loaded = load(pins)
    spec = parsed.programs["fp_decap"]
    nothing = struct.pack("=BBhi", 0xB7, 0, 0, 0)  # r0 = 0, before anything reads it
    other = replace(spec, instructions=nothing + spec.instructions, maps=tuple((at + 8, name) for at, name in spec.maps))
    with (
        inside(side.host),
        bpf.load_program("fp_decap", other.linked({n: fd.number for n, fd in loaded.maps.items()}), b"GPL") as fd,
    ):
        TcxHooks(pins).attach(Spot("fp_decap", socket.if_nametoindex("uplink")), fd)
        pins.put("prog_fp_decap", fd)
    loaded.close()


def pins_of(side: EbpfSide) -> Pins:
    with inside(side.host):
        return Pins.of("flannel0", side.options.pin_root)


def attached_id(side: EbpfSide) -> int:
    pins = pins_of(side)
    link = pins.open("link_fp_decap")
    assert link is not None
    with link:
        return bpf.link_target(link)[0]


def test_programs_of_another_version_are_replaced_without_a_gap() -> None:
    with ebpf_overlay() as made:
        older_version(made.b)
        before = attached_id(made.b)
        with probes(made) as counted:
            leave(made.b)
            made.b.open()
            made.b.publish(table(made.b, made.a, generation=2))
            wait_for(counted, 200)
        assert counted.missing == set()
        assert attached_id(made.b) != before
        made.b.check()
        assert made.b.stats.counters["bpf_repairs"] == 0


def attached_filters(side: EbpfSide, device: str) -> str:
    """What hangs at a device's ingress, in tc's words."""
    return side.host.run("tc", "filter", "show", "dev", device, "ingress")


def test_maps_of_another_layout_are_replaced_without_a_gap_and_go() -> None:
    with ebpf_overlay() as made:
        pins = pins_of(made.b)
        for name in [name for name in pins.names() if name.startswith("map")]:
            (pins.directory / name).rename(pins.directory / f"map0_{name.partition('_')[2]}")
        with probes(made) as counted:
            leave(made.b)
            made.b.open()
            assert isinstance(made.b.datapath, EbpfDatapath) and not made.b.datapath.adopted
            made.b.publish(table(made.b, made.a, generation=2))
            wait_for(counted, 200)
        assert counted.missing == set()
        assert not [name for name in pins.names() if name.startswith("map0")]


def remove_by_hand(side: EbpfSide, hooks: str, program: str, device: str) -> None:
    if hooks == "tcx":
        (pins_of(side).directory / f"link_{program}").unlink()
    else:
        side.host.script(f"tc qdisc del dev {device} clsact")


@pytest.mark.parametrize(("program", "device"), [("fp_encap", "flannel0"), ("fp_decap", "uplink")])
@pytest.mark.parametrize("hooks", HOOKS)
def test_a_filter_that_was_removed_by_hand_is_put_back(hooks: str, program: str, device: str) -> None:
    with ebpf_overlay(hooks=hooks) as made:
        made.a.check()
        assert made.a.stats.counters["bpf_repairs"] == 0
        remove_by_hand(made.a, hooks, program, device)
        made.a.check(closely=False)
        assert made.a.stats.counters["bpf_repairs"] == 1
        assert " 2 received" in made.a.pod.run("ping", "-c2", "-i0.1", "-W1", str(made.b.pod_address))
        assert made.a.stats.counters["tun_reads"] == 0


def test_figures_are_told_when_descriptors_have_run_out() -> None:
    with ebpf_overlay() as made:
        datapath, peers = made.a.datapath, [made.b.underlay_address]
        assert datapath is not None
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                Path("/dev/null").read_bytes()
            stats, of_peers = datapath.stats(), datapath.peer_counts(peers)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert stats.verdicts.keys() == datapath.stats().verdicts.keys()
        assert list(of_peers) == peers


def test_filters_of_others_stay() -> None:
    go_on = struct.pack("=BBhi", 0xB7, 0, 0, -1) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = -1, exit
    with ebpf_overlay(hooks="clsact") as made:
        pinned = made.b.options.pin_root / "others" / "program"
        pinned.parent.mkdir()
        with bpf.load_program("others", go_on, b"GPL") as program:
            bpf.pin(program, pinned)
        made.b.host.script(f"tc filter add dev uplink ingress prio 7 bpf object-pinned {pinned} direct-action")
        made.b.check()
        made.b.close()
        left = attached_filters(made.b, "uplink")
        assert "pref 7 bpf" in left and "fp_decap" not in left


@pytest.mark.parametrize("hooks", HOOKS)
def test_teardown_leaves_nothing(hooks: str) -> None:
    with ebpf_overlay(hooks=hooks) as made:
        made.a.close()
        assert list(made.a.options.pin_root.iterdir()) == [pins_of(made.b).directory]
        devices = made.a.host.run("ip", "-o", "link")
        assert not any(name in devices for name in ("flannel0", *merging_names("flannel0")))
        assert "fp_" not in attached_filters(made.a, "uplink")


def test_cleanup_removes_what_a_dead_process_has_left() -> None:
    with ebpf_overlay() as made:
        leave(made.b)
        with inside(made.b.host), Kernel() as kernel:
            assert cleanup("flannel0", BpfHost(kernel), made.b.options.pin_root)
            assert not cleanup("flannel0", BpfHost(kernel), made.b.options.pin_root)
        assert "flannel0" not in made.b.host.run("ip", "-o", "link")


@pytest.mark.parametrize("hooks", HOOKS)
def test_what_a_dead_namespace_has_left_is_swept_and_nothing_else(hooks: str) -> None:
    with ebpf_overlay(hooks=hooks) as made, namespace() as doomed:
        root = made.a.options.pin_root
        with inside(doomed):
            left = Pins.of("flannel0", root)
        left.hold()
        doomed.script("ip link add gone type veth peer name gone2")
        kept = {pins_of(side).directory for side in (made.a, made.b)}
        with closing(load(left)) as loaded, inside(doomed), Kernel() as kernel:
            spot = Spot("fp_decap", socket.if_nametoindex("gone"))
            ways = TcxHooks(left) if hooks == "tcx" else BpfHost(kernel).clsact_hooks()
            put_in_place(loaded, (spot,), left, ways)
        leave(made.b)
        assert find_dead(root) == [], "all three hang at devices that live"
        doomed.script("ip link del gone")
        assert find_dead(root) == [left.directory]
        assert sweep_dead(root) == 0, "a process holds it"
        left.release()
        assert sweep_dead(root) == 1
        assert set(root.iterdir()) == kept
        made.b.open()


def test_a_directory_that_knows_no_device_is_left_alone() -> None:
    with pin_root() as root:
        pins = Pins(root / "flannel0@7")
        pins.make()
        with closing(load(pins)) as loaded:
            pins.put("prog_fp_decap", loaded.programs["fp_decap"])
        assert find_dead(root) == []
        assert not sweep(pins.directory)
        assert pins.names() == ["prog_fp_decap"]


@pytest.mark.parametrize("hooks", HOOKS)
def test_userspace_gets_every_packet_after_ebpf(hooks: str) -> None:
    with ebpf_overlay(hooks=hooks) as made:
        leave(made.b)
        with inside(made.b.host), Kernel() as kernel:
            assert cleanup("flannel0", BpfHost(kernel), made.b.options.pin_root)
        assert "fp_" not in attached_filters(made.b, "uplink")
        made.b.kind = "userspace"
        made.b.open()
        give_address(made.b)
        made.b.publish(table(made.b, made.a, generation=2))
        assert " 2 received" in made.a.pod.run("ping", "-c2", "-i0.1", "-W1", str(made.b.pod_address))


def test_cleanup_finds_filters_without_pins() -> None:
    with ebpf_overlay(hooks="clsact") as made:
        leave(made.b)
        with inside(made.b.host), Kernel() as kernel:
            Pins.of("flannel0", made.b.options.pin_root).clear()
            assert cleanup("flannel0", BpfHost(kernel), made.b.options.pin_root)
        assert "fp_" not in attached_filters(made.b, "uplink")


def test_teardown_removes_what_an_earlier_process_attached_before_anything_is_published() -> None:
    with ebpf_overlay(hooks="clsact") as made:
        leave(made.b)
        made.b.open()
        made.b.close()
        assert "fp_" not in attached_filters(made.b, "uplink")


@pytest.mark.parametrize("hooks", HOOKS)
def test_the_bypass_is_gone_once_it_is_switched_off(hooks: str) -> None:
    with ebpf_overlay(hooks=hooks, bridge=True, bypass=True) as made:
        with inside(made.a.host):
            pins = Pins.of("flannel0", made.a.options.pin_root)
        assert "prog_fp_bypass" in pins.names()
        leave(made.a)
        made.a.options = replace(made.a.options, bypass=False, inner_gro=False)
        made.a.open()
        made.a.publish(table(made.a, made.b, generation=2))
        assert not [name for name in pins.names() if name.endswith(("fp_bypass", "fp_merged"))]
        assert "fp_bypass" not in made.a.host.run("tc", "filter", "show", "dev", "cni0", "ingress")
        before = made.a.stats.counters["bpf_bypassed"]
        assert " 2 received" in made.a.pod.run("ping", "-c2", "-i0.1", "-W1", str(made.b.pod_address))
        assert made.a.stats.counters["bpf_bypassed"] == before


def test_an_underlay_that_moves_leaves_no_filter_behind() -> None:
    with ebpf_overlay(hooks="clsact") as made:
        leave(made.a)
        made.a.options = replace(made.a.options, underlay="pod0")
        made.a.open()
        made.a.publish(table(made.a, made.b, generation=2))
        assert "fp_decap" in made.a.host.run("tc", "filter", "show", "dev", "pod0", "ingress")
        assert "fp_decap" not in attached_filters(made.a, "uplink")


def test_a_device_with_a_living_holder_is_not_taken_over() -> None:
    with ebpf_overlay(("userspace", "userspace")) as made, inside(made.a.host):
        with pytest.raises(ResourceBusy, match="flannel0 exists already"):
            open_tun("flannel0", keep=True)


def test_clsact_carries_the_same() -> None:
    with ebpf_overlay(hooks="clsact") as made:
        assert " 3 received" in made.a.pod.run("ping", "-c3", "-i0.05", "-W1", str(made.b.pod_address))
        assert soon(lambda: counters(made.a.stats) == counters(made.b.stats) == {"encapsulated": 3, "decapsulated": 3})
        assert made.a.stats.counters["tun_reads"] == 0


def test_every_probe_passes_here() -> None:
    found = probe_all()
    assert [probe.name for probe in found if not probe.ok] == []
    assert [probe.name for probe in found][-4:] == ["hook", "self-test", "ipv6", "ipv6-underlay"]


def test_three_capabilities_are_enough() -> None:
    bounds = "-all,+bpf,+net_admin,+perfmon"
    command = ["setpriv", f"--bounding-set={bounds}", f"--inh-caps={bounds}", sys.executable, "-m", "flanpy", "datapath", "probe"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr


BARE = """
import pathlib
from flanpy.datapath.ebpf_pins import BPFFS, Pins, is_bpffs
from flanpy.datapath.ebpf_probe import first_problem, probe_all
assert not is_bpffs(BPFFS)
print(first_problem(probe_all()), is_bpffs(BPFFS), flush=True)
pins = Pins.of("flannel0")
pins.make()
print(is_bpffs(BPFFS), pins.clear())
"""


def test_the_probe_only_looks_for_bpffs_and_the_agent_mounts_it() -> None:
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'umount -l /sys/fs/bpf; while umount -l /sys/fs/bpf; do :; done 2>&-; exec "$@"',
        "sh",
    ]
    done = subprocess.run([*command, sys.executable, "-c", BARE], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.splitlines() == ["None False", "True True"], done.stdout + done.stderr


def test_with_three_capabilities_a_node_carries_packets_and_says_what_it_lacks() -> None:
    bounds = "-all,+bpf,+net_admin,+perfmon"
    with ebpf_overlay(published=False) as made:
        made.a.close()
        made.b.publish(table(made.b, made.a))
        with inside(made.a.host):
            child = subprocess.Popen(
                ["setpriv", f"--bounding-set={bounds}", f"--inh-caps={bounds}", sys.executable, "-c", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(pickle.dumps((made.a.settings, made.a.options, table(made.a, made.b))).hex() + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
            assert answer.startswith("ready"), answer
            assert "CAP_NET_RAW is not held" in answer
            give_address(made.a)
            assert " 3 received" in made.a.pod.run("ping", "-c3", "-i0.05", "-W1", str(made.b.pod_address))
            assert soon(lambda: counters(made.b.stats) == {"encapsulated": 3, "decapsulated": 3})
            assert made.b.stats.counters["bpf_up_socket"] == 0, "sent by a's programs, not by its socket"
        finally:
            child.communicate("\n", timeout=30)


def give_address(side: EbpfSide) -> None:
    """What the agent does with a device that has just been made."""
    side.host.script(
        f"ip link set flannel0 mtu 1472 up; ip addr add {side.tunnel_address}/32 dev flannel0; ip route add 10.5.0.0/16 dev flannel0"
    )


def test_an_underlay_that_has_its_forwarding_switched_off_is_left_to_userspace() -> None:
    with ebpf_overlay() as made:
        made.a.host.script("sysctl -qw net.ipv4.conf.uplink.forwarding=0")
        assert " 2 received" in made.a.pod.run("ping", "-c2", "-i0.1", "-W1", str(made.b.pod_address))
        assert made.a.stats.counters["bpf_up_neighbour"] >= 2
        leave(made.a)
        made.a.open()
        assert isinstance(made.a.datapath, EbpfDatapath)
        assert any("sysctl -w net.ipv4.conf.uplink.forwarding=1" in line for line in made.a.datapath.degraded)


def test_an_underlay_without_link_headers_is_refused() -> None:
    with ebpf_overlay(("userspace", "userspace")) as made:
        made.a.close()
        made.a.host.script("ip link add l3 type wireguard 2>/dev/null || ip tuntap add l3 mode tun; ip link set l3 up")
        made.a.kind, made.a.options = "ebpf", replace(made.a.options, underlay="l3")
        with pytest.raises(PlatformError, match="l3: ebpf needs an underlay interface with Ethernet headers"):
            made.a.open()
        assert cleanup_in(made.a)


def test_the_probe_names_an_underlay_without_link_headers_and_auto_takes_userspace(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flanpy", "datapath", "probe", "--output", "json"]
    with ebpf_overlay(("userspace", "userspace")) as made:
        made.a.close()
        host = made.a.host
        assert json.loads(host.run(*command, "--iface", "uplink"))["ebpf"]
        host.script("ip tuntap add l3 mode tun; ip addr add 192.0.2.1/32 dev l3; ip link set l3 up; ip route add default dev l3")
        told = {probe["name"]: probe for probe in json.loads(host.run(*command, check=False))["probes"]}["underlay"]
        assert not told["ok"] and "l3: ebpf needs" in told["reason"] and "--datapath userspace" in told["cure"]
        with inside(host), Kernel() as kernel:
            settings = replace(made.a.settings, underlay_address=IPv4Address("192.0.2.1"))
            choice, datapath = open_datapath("auto", settings, kernel, home_in(tmp_path))
            datapath.teardown()
        assert choice.kind == "userspace" and "l3: ebpf needs an underlay interface with Ethernet headers" in choice.reason


def cleanup_in(side: EbpfSide) -> bool:
    with inside(side.host), Kernel() as kernel:
        return cleanup("flannel0", BpfHost(kernel), side.options.pin_root)


def home_in(run_dir: Path) -> Home:
    return Home(run_dir, lambda: None, DescriptorStore({}, 0))


def test_a_second_agent_leaves_the_programs_of_the_first_alone(tmp_path: Path) -> None:
    with ebpf_overlay() as made:
        with inside(made.a.host), Kernel() as kernel, pytest.raises(ResourceBusy, match="8285"):
            pins = Pins.of("flannel0")
            pins.make()  # as an agent's of this namespace, in its usual place
            try:
                open_datapath("userspace", made.a.settings, kernel, home_in(tmp_path))
            finally:
                assert pins.clear(), "swept away"
        assert " 2 received" in made.a.pod.run("ping", "-c2", "-i0.1", "-W1", str(made.b.pod_address))


def test_a_missing_capability_is_named_with_its_cure() -> None:
    bounds = "-all,+net_admin"
    command = ["setpriv", f"--bounding-set={bounds}", f"--inh-caps={bounds}", sys.executable, "-m", "flanpy", "datapath", "probe"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    assert "CAP_BPF, CAP_PERFMON not held" in done.stdout and "AmbientCapabilities=" in done.stdout


def test_maps_that_cannot_be_opened_are_a_reason_and_no_crash(tmp_path: Path) -> None:
    """As for a process without CAP_BPF before Linux 5.19; what is no BPF object, nobody can open."""
    for name in read_object().maps:
        (tmp_path / map_pin(name)).touch()
    with pytest.raises(DatapathError, match="does not open the maps: Permission denied"):
        load(Pins(tmp_path))


def test_offloads_that_are_switched_off_stop_whole_superpackets_at_once() -> None:
    """Flat superpackets cannot be cut, so one that the uplink has to cut is lost: that must not last."""
    content = bytes(range(256)) * 65536
    expected = hashlib.sha256(content).hexdigest()
    with ebpf_overlay() as made:
        assert send_and_digest(made.a, made.b, content) == expected
        for side in (made.a, made.b):
            side.host.script("ethtool -K uplink tso off gso off tx-udp-segmentation off >/dev/null")
        before = made.b.stats.counters["bpf_superpackets_in"]
        assert soon(lambda: not made.a.datapath._header.whole, within_s=2)  # type: ignore[union-attr]
        assert send_and_digest(made.a, made.b, content) == expected
        assert made.b.stats.counters["bpf_superpackets_in"] <= before + 50
