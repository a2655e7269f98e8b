"""``/metrics``: the agent's status as Prometheus text (exposition format 0.0.4). Pure: an answer to ``status`` in, text out.

Written here rather than with prometheus_client: every figure is a snapshot that the loop or the C workers keep already, so a registry
would only hold copies of them, and the format is three kinds of lines. Names and units follow Prometheus's conventions (base
units, ``_total`` on counters); ``process_…`` has no prefix, for dashboards expect those names of every process.

``METRICS`` is the one list: what is exported, the reference, and the check of alerts and dashboard follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PATH_STATES = ("ok", "lossy", "unknown", "no agent", "path down", "node down")
PEER_LABELS = ("peer", "subnets")
PEERS_MAX = 1000
"""Peers with figures of their own: in a larger cluster the first ones, for a scrape must end."""

Status = Mapping[str, Any]
"""The answer to ``status``; with the list ``peers`` of the answer to ``peers`` it has figures of each."""
Sample = tuple[str, Mapping[str, str], float]
"""Suffix of the name (``_bucket``, …), labels, value."""


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """What the process has used; read at the edge."""

    cpu_seconds: float
    resident_bytes: int
    open_fds: int
    start_time_s: float
    now_s: float


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: ``samples`` takes them from the status; none means that there is nothing to say now."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Callable[[Status, ProcessFigures], Iterable[Sample]]
    labels: tuple[str, ...] = ()


def render(status: Status, process: ProcessFigures) -> str:
    """The whole text."""
    return "".join(line for metric in METRICS for line in _lines(metric, status, process))


def _lines(metric: Metric, status: Status, process: ProcessFigures) -> Iterator[str]:
    samples = list(metric.samples(status, process))
    if samples:
        yield f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"
    for suffix, labels, value in samples:
        shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
        yield f"{metric.name}{suffix}{'{' + shown + '}' if shown else ''} {_number(value)}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))


# ------------------------------------------------------------------------------------------------ where samples come from


def _one(value: float | None) -> list[Sample]:
    return [] if value is None else [("", {}, value)]


def _gauge(name: str, text: str, read: Callable[[Status], float | None]) -> Metric:
    return Metric(name, "gauge", text, lambda status, _: _one(read(status)))


def _process(name: str, kind: Literal["counter", "gauge"], text: str, read: Callable[[ProcessFigures], float]) -> Metric:
    return Metric(name, kind, text, lambda _, process: _one(read(process)))


def _build(status: Status, _: ProcessFigures) -> list[Sample]:
    return [("", {"version": str(status["version"])}, 1)]


def _kind(status: Status, _: ProcessFigures) -> list[Sample]:
    datapath = status["datapath"]
    return [("", {"kind": datapath["kind"], "backend": str(status["backend"])}, 1)] if datapath else []


def _verdicts(unit: str) -> Callable[[Status, ProcessFigures], list[Sample]]:
    def read(status: Status, _: ProcessFigures) -> list[Sample]:
        counts = (status["datapath"] or {}).get("verdicts", {})
        return [("", {"verdict": name}, count[unit]) for name, count in counts.items()]

    return read


def _work(status: Status, _: ProcessFigures) -> list[Sample]:
    return [("", {"work": name}, value) for name, value in (status["datapath"] or {}).get("counters", {}).items()]


def _paths(status: Status, _: ProcessFigures) -> list[Sample]:
    paths = status["paths"]
    return [("", {"state": word}, (paths["states"]).get(word, 0)) for word in PATH_STATES] if paths else []


def _peer_path(
    read: Callable[[Mapping[str, Any], ProcessFigures], float | None],
) -> Callable[[Status, ProcessFigures], list[Sample]]:
    """A figure of each path that is probed, by its peer."""

    def samples(status: Status, process: ProcessFigures) -> list[Sample]:
        probed = [peer for peer in status.get("peers", ()) if peer.get("path")][:PEERS_MAX]
        found = [(_peer_labels(peer), read(peer["path"], process)) for peer in probed]
        return [("", labels, value) for labels, value in found if value is not None]

    return samples


def _peer_labels(peer: Mapping[str, Any]) -> dict[str, str]:
    return {"peer": str(peer["public_ip"]), "subnets": str(peer["subnets"])}


def _peer_traffic(**ways: str) -> Callable[[Status, ProcessFigures], list[Sample]]:
    """A counter of each peer, for each label of ``direction`` that field of its traffic; a peer that goes takes its series with it."""

    def samples(status: Status, _: ProcessFigures) -> list[Sample]:
        counted = [peer for peer in status.get("peers", ()) if peer.get("traffic")][:PEERS_MAX]
        return [
            ("", {**_peer_labels(peer), "direction": direction}, peer["traffic"][name])
            for peer in counted
            for direction, name in ways.items()
            if peer["traffic"][name] is not None
        ]

    return samples


def _seen(path: Mapping[str, Any], process: ProcessFigures) -> float | None:
    ago = path["last_seen_s_ago"]
    return None if ago is None else round(process.now_s - ago, 3)


def _lease_left(status: Status) -> float | None:
    lease = status["lease"]
    if lease is None:
        return None
    return math.inf if lease["seconds_left"] is None else float(lease["seconds_left"])


def _last_answer(status: Status, process: ProcessFigures) -> list[Sample]:
    ago = status["etcd"]["last_word_s_ago"]
    return [] if ago is None else [("", {}, round(process.now_s - ago, 3))]


def _durations(status: Status, _: ProcessFigures) -> list[Sample]:
    passes = status["reconcile"]
    buckets: list[Sample] = [("_bucket", {"le": bound}, count) for bound, count in passes["buckets"].items()]
    ends: list[Sample] = [("_bucket", {"le": "+Inf"}, passes["passes"]), ("_sum", {}, passes["seconds"])]
    return [*buckets, *ends, ("_count", {}, passes["passes"])]


def _pods(status: Status, process: ProcessFigures) -> list[Sample]:
    counts = status.get("pods") or {}
    return [("", {"kind": kind}, counts[kind]) for kind in ("known", "here", "own_entries") if kind in counts]


METRICS: tuple[Metric, ...] = (
    Metric("flanpy_build_info", "gauge", "Always 1; the version is in the label.", _build, ("version",)),
    _gauge("flanpy_ready", "1 when lease, datapath and first sync are there (/readyz).", lambda s: s["ready"]),
    _gauge("flanpy_problems", "Things that are wrong now, refused leases among them.", lambda s: len(s["problems"])),
    Metric(
        "flanpy_datapath_info", "gauge", "Always 1; which datapath carries packets for which backend.", _kind, ("kind", "backend")
    ),
    _gauge(
        "flanpy_datapath_degradations",
        "Things that the datapath has to do without on this machine.",
        lambda s: len(s["datapath"]["degraded"]) if s["datapath"] else None,
    ),
    Metric(
        "flanpy_datapath_packets_total",
        "counter",
        "Inner packets of real size by what became of them.",
        _verdicts("packets"),
        ("verdict",),
    ),
    Metric("flanpy_datapath_bytes_total", "counter", "Bytes of those packets.", _verdicts("bytes"), ("verdict",)),
    Metric("flanpy_datapath_work_total", "counter", "What the workers do besides: system calls, sleeps.", _work, ("work",)),
    Metric(
        "flanpy_datapath_restarts_total",
        "counter",
        "Datapath processes that ended and were replaced by this agent.",
        lambda s, _: _one(s["datapath"]["process"]["restarts"]) if s["datapath"] and s["datapath"]["process"] else [],
    ),
    _gauge(
        "flanpy_table_generation",
        "Number of the route table that every worker has.",
        lambda s: s["datapath"]["table_generation"] if s["datapath"] else None,
    ),
    _gauge("flanpy_peers", "Nodes that packets are sent to.", lambda s: s["counts"]["peers"]),
    _gauge("flanpy_peers_kept", "Of these, kept though their leases have vanished from etcd.", lambda s: s["counts"]["kept"]),
    _gauge(
        "flanpy_foreign_leases", "Leases of nodes with another backend, which are left alone.", lambda s: s["counts"]["foreign"]
    ),
    _gauge("flanpy_refused_leases", "Keys in etcd that were refused.", lambda s: s["counts"]["refused"]),
    Metric(
        "flanpy_peer_packets_total",
        "counter",
        f"Inner packets to (out) and from (in) each peer, of {PEERS_MAX} at most; none where the kernel carries.",
        _peer_traffic(out="sent_packets", **{"in": "received_packets"}),
        (*PEER_LABELS, "direction"),
    ),
    Metric(
        "flanpy_peer_bytes_total",
        "counter",
        "Bytes of those packets; with backend wireguard bytes on the underlay.",
        _peer_traffic(out="sent_bytes", **{"in": "received_bytes"}),
        (*PEER_LABELS, "direction"),
    ),
    Metric(
        "flanpy_peer_drops_total",
        "counter",
        "Packets to a peer that the kernel would not send (out), and of a peer that were refused (in).",
        _peer_traffic(out="dropped_out", **{"in": "dropped_in"}),
        (*PEER_LABELS, "direction"),
    ),
    Metric("flanpy_paths", "gauge", "Paths to peers that are probed, by state.", _paths, ("state",)),
    Metric(
        "flanpy_peer_path_up",
        "gauge",
        "1 while the peer's agent answers over the overlay, or has lately.",
        _peer_path(lambda path, _: path["state"] in ("ok", "lossy")),
        PEER_LABELS,
    ),
    Metric(
        "flanpy_peer_rtt_seconds",
        "gauge",
        "Round trip of the last probe that was answered.",
        _peer_path(lambda path, _: None if path["rtt_ms"] is None else path["rtt_ms"] / 1e3),
        PEER_LABELS,
    ),
    Metric(
        "flanpy_peer_last_seen_timestamp_seconds",
        "gauge",
        "When the peer was last heard of over the overlay (Unix time).",
        _peer_path(_seen),
        PEER_LABELS,
    ),
    Metric(
        "flanpy_peer_probes_total", "counter", "Probes sent to the peer.", _peer_path(lambda path, _: path["sent"]), PEER_LABELS
    ),
    Metric(
        "flanpy_peer_probes_lost_total",
        "counter",
        "Probes that had no answer.",
        _peer_path(lambda path, _: path["lost"]),
        PEER_LABELS,
    ),
    Metric(
        "flanpy_pods", "gauge", "Pods of the registry: here, and with an entry of their own beside the subnets.", _pods, ("kind",)
    ),
    _gauge("flanpy_refused_pods", "Pods and registry entries that are not used.", lambda s: (s.get("pods") or {}).get("refused")),
    _gauge("flanpy_lease_held", "1 while this node has a subnet.", lambda s: s["lease"] is not None),
    _gauge("flanpy_lease_remaining_seconds", "Time until the own lease ends unless renewed; +Inf: a reservation.", _lease_left),
    _gauge("flanpy_mtu_bytes", "Largest packet of a pod.", lambda s: s["mtu_bytes"]),
    _gauge("flanpy_uplink_mtu_bytes", "MTU of the underlay interface.", lambda s: s["uplink"]["mtu_bytes"]),
    _gauge("flanpy_etcd_up", "1 while etcd answers.", lambda s: s["etcd"]["state"] == "ok"),
    Metric("flanpy_etcd_last_answer_timestamp_seconds", "gauge", "When etcd was last heard of (Unix time).", _last_answer),
    Metric("flanpy_reconcile_duration_seconds", "histogram", "Passes from the desired to the actual state.", _durations),
    Metric(
        "flanpy_reconcile_failures_total", "counter", "Passes that had problems.", lambda s, _: _one(s["reconcile"]["failed"])
    ),
    _process(
        "process_cpu_seconds_total",
        "counter",
        "CPU time of the agent; the datapath process has its own.",
        lambda p: p.cpu_seconds,
    ),
    _process("process_resident_memory_bytes", "gauge", "Resident memory of the agent.", lambda p: p.resident_bytes),
    _process("process_open_fds", "gauge", "Open file descriptors of the agent.", lambda p: p.open_fds),
    _process("process_start_time_seconds", "gauge", "When the agent was started (Unix time).", lambda p: p.start_time_s),
)
"""Everything that is exported, in this order."""
