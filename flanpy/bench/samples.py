"""The values of a benchmark run: settings, figures, samples, the whole result, and its JSON. Pure.

figure   one thing that is measured (``tcp 1``), with unit and direction of better
setup    what carries the packets (``vxlan``, ``userspace``)      mode   how the underlay treats them (``wire``)
sample   one value: figure, setup, mode, round
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

SETUPS = MappingProxyType(
    {
        "routed": "plain routing, no tunnel: the limit",
        "vxlan": "kernel VXLAN, set up as flannel's vxlan backend does",
        "proxy": "a proxy of one packet a system call, stands for flannel's udp backend",
        "userspace": "flanpy's userspace datapath",
        "ebpf": "flanpy's eBPF datapath",
        "ebpf-bypass": "the same with --ebpf-bypass, past the host's forwarding",
        "vxlan-agent": "kernel VXLAN, set up by flanpy's agents and its vxlan backend",
        "host-gw": "plain routes, set up by flanpy's agents and its host-gw backend",
        "ipip": "the kernel's IP-in-IP tunnel, set up by flanpy's agents (CONFIG_NET_IPIP)",
        "wireguard": "the kernel's WireGuard, set up by flanpy's agents (CONFIG_WIREGUARD)",
        "flanneld": "a real flanneld with its udp backend (--flanneld PATH)",
    }
)
MODES = MappingProxyType(
    {
        "superpacket": "the underlay veth as it is: carries whole superpackets",
        "wire": "every packet on the underlay <= MTU (tso, gso off), receiver GRO off",
        "wire-gro": "the same with receiver GRO on",
        "wire-uso": "tso and gso off, UDP superpackets whole: `ethtool -K … tso off gso off` alone; a card that cuts UDP",
    }
)
NO_MODE = "-"
"""Mode of a figure that does not depend on the underlay."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that is measured; ``key`` is its name in result.json and orders the report."""

    key: str
    title: str
    unit: str
    higher_is_better: bool = True
    compared: bool = True
    """Whether ratios between setups mean something (those of retransmits do not)."""
    task: str = ""
    """Title of the task that measures it, as ``Result.work`` names it; "" for what no task on a bed measures."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured value; ``detail`` holds what explains it (retransmits, drops, sent and received counts)."""

    figure: str
    setup: str
    mode: str
    round: int
    value: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run was asked to do."""

    setups: tuple[str, ...]
    modes: tuple[str, ...]
    rounds: int
    seconds: float
    streams: tuple[int, ...]
    groups: tuple[str, ...]
    mtu_bytes: int = 1500
    flanneld: str | None = None
    gigabytes: float = 1.0
    """Of random content in each sample of the group ``content``."""


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run: everything that the report, the plots and a later comparison need."""

    started: str
    finished: str
    settings: Settings
    machine: Mapping[str, Any]
    figures: tuple[Figure, ...]
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    """What the kernel's counters say was lost, by setup, mode and task, all rounds together."""
    failures: tuple[str, ...] = ()
    """Samples that could not be taken, and why."""
    work: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What the datapaths did, by setup, mode and task, all rounds together: verdicts and counters."""
    distributions: Mapping[str, Any] = field(default_factory=dict)
    """Latency buckets by ``figure/setup/mode``: [[least ns of the bucket, count], ...], over all rounds."""
    interrupted: bool = False
    """Whether the run was ended early; its samples are complete, later ones are missing."""

    def values(self, figure: str, setup: str, mode: str) -> dict[int, float]:
        """Samples of one figure by round."""
        return {s.round: s.value for s in self.samples if (s.figure, s.setup, s.mode) == (figure, setup, mode)}

    def setups_with(self, figure: str) -> tuple[str, ...]:
        """Setups that have a sample of this figure, in the usual order."""
        present = {sample.setup for sample in self.samples if sample.figure == figure}
        return tuple(name for name in (*SETUPS, *sorted(present - set(SETUPS))) if name in present)

    def modes_with(self, figure: str) -> tuple[str, ...]:
        """Modes that have a sample of this figure, in the usual order."""
        present = {sample.mode for sample in self.samples if sample.figure == figure}
        return tuple(name for name in (*MODES, *sorted(present - set(MODES))) if name in present)


def to_json(result: Result) -> str:
    """The result as JSON text, one sample a line's worth of nesting, stable order."""
    return json.dumps(dataclasses.asdict(result), indent=1, default=dict) + "\n"


def from_json(text: str) -> Result:
    """A result that ``to_json`` wrote."""
    raw = json.loads(text)
    settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in raw["settings"].items()}
    return Result(
        started=raw["started"],
        finished=raw["finished"],
        settings=Settings(**settings),
        machine=raw["machine"],
        figures=tuple(Figure(**figure) for figure in raw["figures"]),
        samples=tuple(Sample(**sample) for sample in raw["samples"]),
        warnings=tuple(raw["warnings"]),
        losses=tuple(raw["losses"]),
        failures=tuple(raw["failures"]),
        work=raw["work"],
        distributions=raw["distributions"],
        interrupted=raw.get("interrupted", False),
    )
