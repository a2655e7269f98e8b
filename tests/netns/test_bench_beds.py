"""Beds of the benchmark suite, for real: exact counting under loss, the proxy's packets, and a whole quick run.

pod a 10.244.1.2 -- 10.244.1.1 host a 192.168.77.1 ==== uplink ==== 192.168.77.2 host b 10.244.2.1 -- 10.244.2.2 pod b
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from flanpy.bench import health
from flanpy.bench.backend_agents import BACKENDS
from flanpy.bench.beds import Bed, make_bed
from flanpy.bench.content import content_task
from flanpy.bench.runner import Recorder, run_beds
from flanpy.bench.samples import Figure, Settings, from_json
from flanpy.bench.stations import ask, send_and_count
from flanpy.bench.suite import missing
from flanpy.bench.tasks import Task, Value
from flanpy.bench.tcp import run_tcp
from flanpy.cli.bench import QUICK_SETUPS
from flanpy.cli.main import main
from flanpy.errors import LabError
from flanpy.lab.sandbox import Sandbox

pytestmark = pytest.mark.root


@contextmanager
def bed(setup: str) -> Iterator[Bed]:
    """The bed of one setup in a sandbox of its own."""
    with Sandbox.create() as sandbox:
        yield make_bed(sandbox, setup, 1500)


def drop_in_host_a(living: Bed, match: str) -> None:
    """Drop forwarded probes that match; the rule counts them."""
    rules = f"table ip test {{ chain forward {{ type filter hook forward priority 0; udp dport 9009 {match} counter drop; }}; }}"
    living.sandbox.run(living.a.host, ["nft", "-f", "-"], input=rules)


def dropped_in_host_a(living: Bed) -> int:
    """How many packets the rule has dropped."""
    text = living.sandbox.run(living.a.host, ["nft", "list", "ruleset"]).stdout
    found = re.search(r"counter packets (\d+)", text)
    assert found
    return int(found[1])


@pytest.mark.parametrize("trains", [True, False], ids=["trains", "alone"])
def test_nothing_is_lost_between_two_pods_without_a_reason(trains: bool) -> None:
    with bed("routed") as living:
        living.set_trains(trains)
        sent, received = send_and_count(living, payload_bytes=64, rate_pps=20_000, seconds=2.0, train=20, flows=4, packets=10_000)
    assert (sent.packets, received.packets, received.duplicates, received.reordered) == (10_000, 10_000, 0, 0)


def test_loss_is_counted_to_the_packet() -> None:
    with bed("routed") as living:
        living.set_trains(False)
        drop_in_host_a(living, "numgen inc mod 10 0")
        sent, received = send_and_count(living, payload_bytes=64, rate_pps=20_000, seconds=2.0, train=20, flows=4, packets=10_000)
        lost = dropped_in_host_a(living)
    assert lost == 1_000
    assert (sent.packets - received.packets, received.duplicates) == (lost, 0)


def test_a_bed_whose_process_has_ended_says_which() -> None:
    with bed("proxy") as living:
        living.carriers[0].send_signal(15)
        living.carriers[0].wait(10)
        with pytest.raises(LabError, match="proxy: a process of the bed has ended"):
            living.check()


class Silence:
    """Progress that nobody sees."""

    def step(self, doing: str) -> None: ...

    def note(self, text: str) -> None: ...


def test_a_sample_that_fails_is_recorded_and_the_others_are_taken() -> None:
    calls: list[str] = []

    def measure(living: Bed) -> list[Value]:
        calls.append(living.setup)
        if len(calls) == 1:
            raise LabError("the first one fails")
        if living.setup == "proxy":
            living.carriers[0].kill()
            living.carriers[0].wait()
            raise LabError("its proxy has died")
        return [Value("answer", 42.0)]

    figure = Figure("answer", "the answer", "")
    settings = Settings(("routed", "proxy"), ("wire",), 3, 1.0, (), ())
    recorder = Recorder(settings, [figure])
    run_beds(settings, [Task("asking", (figure,), 0.1, measure)], recorder, Silence())
    result = recorder.result()
    assert result.failures == (
        "round 1, routed, wire, asking: the first one fails",
        "round 1, proxy, wire, asking: its proxy has died",
    )
    assert result.values("answer", "routed", "wire") == {1: 42.0, 2: 42.0}
    assert calls == ["routed", "proxy", "routed", "routed"]


def test_the_userspace_bed_tells_what_its_datapath_has_done() -> None:
    with bed("userspace") as living:
        before = living.counters()
        sent, received = send_and_count(living, payload_bytes=64, rate_pps=5_000, seconds=2.0, train=20, flows=4, packets=2_000)
        done = living.counters() - before
    assert (sent.packets, received.packets) == (2_000, 2_000)
    assert done["encapsulated"] >= 2_000
    assert done["decapsulated"] >= 2_000
    assert 0 < done["tun_reads"] <= 2_000 + 50


def capture(living: Bed, place: str, device: str) -> socket.socket:
    """A packet socket on a device of a place; it sees what comes in."""
    with living.sandbox.enter(place):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    opened.bind((device, 0x0800))
    opened.settimeout(5)
    return opened


def first_with(payload: bytes, packets: socket.socket) -> bytes:
    """The first captured IP packet that holds this payload."""
    while True:
        frame = packets.recv(65536)
        if payload in frame:
            return frame[14:]


def test_the_proxy_sends_the_bare_inner_packet_with_its_ttl_lowered_as_flannel_does() -> None:
    payload = os.urandom(700)
    with bed("proxy") as living:
        with (
            capture(living, living.b.host, "uplink") as wire,
            capture(living, living.b.pod, "eth0") as arrived,
            living.sandbox.enter(living.a.pod),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            sender.bind(("10.244.1.2", 4000))
            sender.sendto(payload, ("10.244.2.2", 5000))
            outer, inner = IP(first_with(payload, wire)), IP(first_with(payload, arrived))
    # One hop in host a, one by the proxy.
    expected = (
        IP(src="10.244.1.2", dst="10.244.2.2", ttl=62, id=inner.id, flags="DF") / UDP(sport=4000, dport=5000) / Raw(payload)
    )
    assert (outer.src, outer.dst, outer[UDP].sport, outer[UDP].dport) == ("192.168.77.1", "192.168.77.2", 8285, 8285)
    assert bytes(outer[UDP].payload) == bytes(expected)
    # And two more on the way to the pod: checksums are right after each change.
    expected.ttl = 60
    assert bytes(inner) == bytes(expected)


def test_requests_are_answered_across_a_bed() -> None:
    with bed("vxlan") as living:
        answers = ask(living, payload_bytes=64, interval_s=0.0, seconds=0.2)
    assert answers.requests > 100
    assert answers.lost == 0


def test_a_wire_carries_no_packet_beyond_the_mtu() -> None:
    with bed("vxlan") as living:
        living.set_mode("wire")
        with capture(living, living.b.host, "uplink") as wire:
            run_tcp(living, streams=1, seconds=1)
            wire.setblocking(False)
            sizes = []
            try:
                while len(sizes) < 5000:
                    sizes.append(len(wire.recv(65536)))
            except BlockingIOError:
                pass
    assert sizes
    assert max(sizes) <= 1514


def test_what_the_kernel_drops_is_found() -> None:
    with bed("proxy") as living:
        before = health.read_losses(living)
        send_and_count(living, payload_bytes=64, rate_pps=0, seconds=0.3, train=63, flows=4)
        lost = health.increase(before, health.read_losses(living))
    assert any("flannel0" in name or "UdpRcvbufErrors" in name for name in lost)


def test_a_quick_run_measures_all_setups_and_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["bench", "quick", "--rounds", "1", "--seconds", "1", "--directory", str(tmp_path), "--output", "json"])
    assert status == 0
    (directory,) = tmp_path.iterdir()
    assert {path.name for path in directory.iterdir()} >= {"result.json", "report.md", "throughput.svg", "throughput.png"}
    result = from_json((directory / "result.json").read_text())
    assert json.loads(capsys.readouterr().out)["started"] == result.started
    measured = {(sample.setup, sample.mode) for sample in result.samples if sample.figure == "tcp_1" and sample.value > 0}
    assert measured == {(s, m) for s in QUICK_SETUPS for m in ("superpacket", "wire")}


def test_an_interrupted_run_keeps_its_complete_samples_and_exits_as_interrupted(tmp_path: Path) -> None:
    words = ["--groups", "tcp", "--setups", "routed", "--modes", "wire", "--rounds", "50", "--seconds", "1", "--streams", "1"]
    argv = [sys.executable, "-m", "flanpy", "bench", "quick", *words, "--directory", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        assert any("round 2/50" in line for line in process.stderr)
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130, said
    result = from_json(next(tmp_path.glob("*/result.json")).read_text())
    assert result.interrupted
    assert set(result.values("tcp_1", "routed", "wire")) == {0}


@pytest.mark.parametrize("mode", ["superpacket", "wire", "wire-uso"])
def test_random_content_crosses_the_userspace_datapath_unchanged(mode: str) -> None:
    with bed("userspace") as living:
        living.set_mode(mode)

        (value,) = content_task(0.05).measure(living)

    assert (value.detail["bytes"], value.detail["differs_at"]) == (50_000_000, None)


@pytest.mark.parametrize("setup", BACKENDS)
def test_a_backend_s_bed_is_set_up_by_agents_or_what_the_kernel_lacks_is_named(setup: str) -> None:
    reason = missing([setup]).get(setup)
    if reason is not None:
        assert re.fullmatch(r"this kernel has no (IP-in-IP tunnels|WireGuard) \(option CONFIG_\w+, module \w+\)", reason)
        return
    with bed(setup) as living:
        (route,) = living.sandbox.run(living.a.host, ["ip", "route", "show", "proto", "102"]).stdout.splitlines()
        devices = {"vxlan-agent": "flannel.1", "host-gw": "uplink", "ipip": "flannel.ipip", "wireguard": "flannel-wg"}
        assert f"dev {devices[setup]}" in route
        whole = ["ping", "-c1", "-W2", "-Mdo", f"-s{living.mtu_bytes - 28}", str(living.b.pod_address)]
        assert living.sandbox.run(living.a.pod, whole, check=False).returncode == 0
