"""``/metrics``: the text, and that alerts, dashboard and reference speak of what is exported, and of nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path

from flanpy.agent.metrics import METRICS, ProcessFigures, render
from flanpy.agent.passes import BUCKETS_S, Passes
from flanpy.agent.peer_traffic import Traffic, as_json
from flanpy.datapath.core import VERDICTS
from tests.support.answers import STATUS

ROOT = Path(__file__).resolve().parents[2]
PROCESS = ProcessFigures(cpu_seconds=1.25, resident_bytes=4096, open_fds=9, start_time_s=1000.5, now_s=1100.5)
TEXT = """\
# HELP flanpy_build_info Always 1; the version is in the label.
# TYPE flanpy_build_info gauge
flanpy_build_info{version="0.1.0"} 1
# HELP flanpy_ready 1 when lease, datapath and first sync are there (/readyz).
# TYPE flanpy_ready gauge
flanpy_ready 1
# HELP flanpy_problems Things that are wrong now, refused leases among them.
# TYPE flanpy_problems gauge
flanpy_problems 1
# HELP flanpy_datapath_info Always 1; which datapath carries packets for which backend.
# TYPE flanpy_datapath_info gauge
flanpy_datapath_info{kind="userspace",backend="udp"} 1
# HELP flanpy_datapath_degradations Things that the datapath has to do without on this machine.
# TYPE flanpy_datapath_degradations gauge
flanpy_datapath_degradations 1
# HELP flanpy_datapath_packets_total Inner packets of real size by what became of them.
# TYPE flanpy_datapath_packets_total counter
flanpy_datapath_packets_total{verdict="encapsulated"} 1204
flanpy_datapath_packets_total{verdict="decapsulated"} 1100
flanpy_datapath_packets_total{verdict="drop_no_route"} 3
flanpy_datapath_packets_total{verdict="drop_spoofed"} 7
flanpy_datapath_packets_total{verdict="drop_ttl"} 0
# HELP flanpy_datapath_bytes_total Bytes of those packets.
# TYPE flanpy_datapath_bytes_total counter
flanpy_datapath_bytes_total{verdict="encapsulated"} 1500000
flanpy_datapath_bytes_total{verdict="decapsulated"} 1400000
flanpy_datapath_bytes_total{verdict="drop_no_route"} 252
flanpy_datapath_bytes_total{verdict="drop_spoofed"} 700
flanpy_datapath_bytes_total{verdict="drop_ttl"} 0
# HELP flanpy_datapath_work_total What the workers do besides: system calls, sleeps.
# TYPE flanpy_datapath_work_total counter
flanpy_datapath_work_total{work="tun_reads"} 300
flanpy_datapath_work_total{work="polls"} 12
# HELP flanpy_datapath_restarts_total Datapath processes that ended and were replaced by this agent.
# TYPE flanpy_datapath_restarts_total counter
flanpy_datapath_restarts_total 2
# HELP flanpy_table_generation Number of the route table that every worker has.
# TYPE flanpy_table_generation gauge
flanpy_table_generation 12
# HELP flanpy_peers Nodes that packets are sent to.
# TYPE flanpy_peers gauge
flanpy_peers 3
# HELP flanpy_peers_kept Of these, kept though their leases have vanished from etcd.
# TYPE flanpy_peers_kept gauge
flanpy_peers_kept 1
# HELP flanpy_foreign_leases Leases of nodes with another backend, which are left alone.
# TYPE flanpy_foreign_leases gauge
flanpy_foreign_leases 1
# HELP flanpy_refused_leases Keys in etcd that were refused.
# TYPE flanpy_refused_leases gauge
flanpy_refused_leases 1
# HELP flanpy_paths Paths to peers that are probed, by state.
# TYPE flanpy_paths gauge
flanpy_paths{state="ok"} 1
flanpy_paths{state="lossy"} 0
flanpy_paths{state="unknown"} 0
flanpy_paths{state="no agent"} 0
flanpy_paths{state="path down"} 0
flanpy_paths{state="node down"} 1
# HELP flanpy_lease_held 1 while this node has a subnet.
# TYPE flanpy_lease_held gauge
flanpy_lease_held 1
# HELP flanpy_lease_remaining_seconds Time until the own lease ends unless renewed; +Inf: a reservation.
# TYPE flanpy_lease_remaining_seconds gauge
flanpy_lease_remaining_seconds 83520
# HELP flanpy_mtu_bytes Largest packet of a pod.
# TYPE flanpy_mtu_bytes gauge
flanpy_mtu_bytes 1472
# HELP flanpy_uplink_mtu_bytes MTU of the underlay interface.
# TYPE flanpy_uplink_mtu_bytes gauge
flanpy_uplink_mtu_bytes 1500
# HELP flanpy_etcd_up 1 while etcd answers.
# TYPE flanpy_etcd_up gauge
flanpy_etcd_up 1
# HELP flanpy_etcd_last_answer_timestamp_seconds When etcd was last heard of (Unix time).
# TYPE flanpy_etcd_last_answer_timestamp_seconds gauge
flanpy_etcd_last_answer_timestamp_seconds 1100
# HELP flanpy_reconcile_duration_seconds Passes from the desired to the actual state.
# TYPE flanpy_reconcile_duration_seconds histogram
flanpy_reconcile_duration_seconds_bucket{le="0.01"} 4
flanpy_reconcile_duration_seconds_bucket{le="1"} 5
flanpy_reconcile_duration_seconds_bucket{le="+Inf"} 5
flanpy_reconcile_duration_seconds_sum 0.25
flanpy_reconcile_duration_seconds_count 5
# HELP flanpy_reconcile_failures_total Passes that had problems.
# TYPE flanpy_reconcile_failures_total counter
flanpy_reconcile_failures_total 1
# HELP process_cpu_seconds_total CPU time of the agent; the datapath process has its own.
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1.25
# HELP process_resident_memory_bytes Resident memory of the agent.
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 4096
# HELP process_open_fds Open file descriptors of the agent.
# TYPE process_open_fds gauge
process_open_fds 9
# HELP process_start_time_seconds When the agent was started (Unix time).
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1000.5
"""


def test_the_whole_text() -> None:
    assert render(STATUS, PROCESS) == TEXT


TRAFFIC_TEXT = """\
# HELP flanpy_peer_packets_total Inner packets to (out) and from (in) each peer, of 1000 at most; none where the kernel carries.
# TYPE flanpy_peer_packets_total counter
flanpy_peer_packets_total{peer="172.31.9.2",subnets="10.244.8.0/24",direction="out"} 12
flanpy_peer_packets_total{peer="172.31.9.2",subnets="10.244.8.0/24",direction="in"} 0
# HELP flanpy_peer_bytes_total Bytes of those packets; with backend wireguard bytes on the underlay.
# TYPE flanpy_peer_bytes_total counter
flanpy_peer_bytes_total{peer="172.31.9.2",subnets="10.244.8.0/24",direction="out"} 15000
flanpy_peer_bytes_total{peer="172.31.9.2",subnets="10.244.8.0/24",direction="in"} 0
flanpy_peer_bytes_total{peer="172.31.9.3",subnets="10.244.9.0/24",direction="out"} 148
flanpy_peer_bytes_total{peer="172.31.9.3",subnets="10.244.9.0/24",direction="in"} 92
# HELP flanpy_peer_drops_total Packets to a peer that the kernel would not send (out), and of a peer that were refused (in).
# TYPE flanpy_peer_drops_total counter
flanpy_peer_drops_total{peer="172.31.9.2",subnets="10.244.8.0/24",direction="out"} 1
flanpy_peer_drops_total{peer="172.31.9.2",subnets="10.244.8.0/24",direction="in"} 2
"""


def test_peers_that_are_counted_have_their_traffic_and_others_have_no_line() -> None:
    whole = as_json(Traffic(12, 15000, 0, 0, 1, 2))
    bytes_alone = as_json(Traffic(sent_bytes=148, received_bytes=92))
    rows = [
        ("172.31.9.2", "10.244.8.0/24", whole),
        ("172.31.9.3", "10.244.9.0/24", bytes_alone),
        ("172.31.9.4", "10.244.10.0/24", None),
    ]
    peers = [{"public_ip": address, "subnets": subnets, "traffic": traffic} for address, subnets, traffic in rows]
    text = render({**STATUS, "peers": peers}, PROCESS)
    assert TRAFFIC_TEXT in text
    assert text.replace(TRAFFIC_TEXT, "") == render(STATUS, PROCESS)


PEER_TEXT = """\
# HELP flanpy_peer_path_up 1 while the peer's agent answers over the overlay, or has lately.
# TYPE flanpy_peer_path_up gauge
flanpy_peer_path_up{peer="172.31.9.2",subnets="10.244.8.0/24"} 1
flanpy_peer_path_up{peer="172.31.9.3",subnets="10.244.9.0/24"} 0
# HELP flanpy_peer_rtt_seconds Round trip of the last probe that was answered.
# TYPE flanpy_peer_rtt_seconds gauge
flanpy_peer_rtt_seconds{peer="172.31.9.2",subnets="10.244.8.0/24"} 0.0005
# HELP flanpy_peer_last_seen_timestamp_seconds When the peer was last heard of over the overlay (Unix time).
# TYPE flanpy_peer_last_seen_timestamp_seconds gauge
flanpy_peer_last_seen_timestamp_seconds{peer="172.31.9.2",subnets="10.244.8.0/24"} 1099
# HELP flanpy_peer_probes_total Probes sent to the peer.
# TYPE flanpy_peer_probes_total counter
flanpy_peer_probes_total{peer="172.31.9.2",subnets="10.244.8.0/24"} 40
flanpy_peer_probes_total{peer="172.31.9.3",subnets="10.244.9.0/24"} 9
# HELP flanpy_peer_probes_lost_total Probes that had no answer.
# TYPE flanpy_peer_probes_lost_total counter
flanpy_peer_probes_lost_total{peer="172.31.9.2",subnets="10.244.8.0/24"} 2
flanpy_peer_probes_lost_total{peer="172.31.9.3",subnets="10.244.9.0/24"} 9
"""


def test_peers_that_are_probed_have_figures_of_their_own() -> None:
    sound = {"state": "lossy", "rtt_ms": 0.5, "last_seen_s_ago": 1.5, "loss": 0.05, "sent": 40, "lost": 2}
    down = {"state": "node down", "rtt_ms": None, "last_seen_s_ago": None, "loss": 0.0, "sent": 9, "lost": 9}
    rows = [("172.31.9.2", "10.244.8.0/24", sound), ("172.31.9.3", "10.244.9.0/24", down), ("172.31.9.4", "10.244.10.0/24", None)]
    peers = [{"public_ip": address, "subnets": subnets, "path": path} for address, subnets, path in rows]
    text = render({**STATUS, "peers": peers}, PROCESS)
    assert PEER_TEXT in text
    assert text.replace(PEER_TEXT, "") == render(STATUS, PROCESS)


def test_an_agent_that_has_nothing_yet_exports_what_it_knows() -> None:
    bare = {**STATUS, "lease": None, "datapath": None, "mtu_bytes": None, "etcd": {"state": "degraded", "last_word_s_ago": None}}
    text = render(bare, PROCESS)
    assert "flanpy_lease_held 0\n" in text
    assert "flanpy_etcd_up 0\n" in text
    for absent in ("flanpy_lease_remaining", "flanpy_datapath_packets", "flanpy_mtu_bytes", "flanpy_etcd_last"):
        assert absent not in text.replace("uplink", "")


def test_a_reservation_never_ends() -> None:
    text = render({**STATUS, "lease": {**STATUS["lease"], "seconds_left": None}}, PROCESS)
    assert "flanpy_lease_remaining_seconds +Inf\n" in text


def test_what_a_stranger_wrote_cannot_break_a_line() -> None:
    text = render({**STATUS, "backend": 'a"b\\c\nd'}, PROCESS)
    assert r'backend="a\"b\\c\nd"} 1' in text


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"(flanpy|process)_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".") or metric.help.endswith(")")


def test_a_histogram_counts_each_pass_in_every_bucket_that_holds_it() -> None:
    passes = Passes().plus(0.002, failed=False).plus(5.0, failed=True)
    assert (passes.count, passes.failed, passes.seconds) == (2, 1, 5.002)
    assert dict(zip(BUCKETS_S, passes.buckets, strict=True)) == {
        0.001: 0, 0.003: 1, 0.01: 1, 0.03: 1, 0.1: 1, 0.3: 1, 1.0: 1, 3.0: 1, 10.0: 2,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ what is built on the names


def exported() -> set[str]:
    names = {metric.name for metric in METRICS if metric.kind != "histogram"}
    return names | {
        f"{metric.name}_{end}" for metric in METRICS if metric.kind == "histogram" for end in ("bucket", "sum", "count")
    }


def used(text: str) -> set[str]:
    return set(re.findall(r"\b(?:flanpy|process)_[a-z_]+[a-z]\b(?!\")", text))


def expressions() -> dict[str, str]:
    dashboard = json.loads((ROOT / "config/grafana-dashboard.json").read_text(encoding="utf-8"))
    alerts = (ROOT / "config/prometheus-alerts.yaml").read_text(encoding="utf-8")
    found = {panel["title"]: target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    return found | dict(re.findall(r"- alert: (\w+)\n.*?expr: (.*?)\n        (?:for|labels):", alerts, re.DOTALL))


def test_alerts_and_dashboard_use_only_what_is_exported() -> None:
    texts = expressions()
    assert len(texts) > 15
    for where, text in texts.items():
        assert used(text) <= exported(), where
        assert used(text) or "up{" in text, where


def test_alerts_and_dashboard_name_only_verdicts_that_there_are() -> None:
    patterns = [pattern for text in expressions().values() for pattern in re.findall(r'verdict=~?"([^"]+)"', text)]
    assert len(patterns) > 5
    for pattern in patterns:
        for choice in re.sub(r"(\w+)\(([^)]*)\)", lambda m: "|".join(m[1] + end for end in m[2].split("|")), pattern).split("|"):
            assert any(re.fullmatch(choice, verdict) for verdict in VERDICTS), choice


def test_the_reference_is_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
