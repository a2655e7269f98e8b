"""The agent's figures on a lab of three hosts, at a scale that takes seconds."""

from __future__ import annotations

import pytest

from flanpy.bench.agents import FIGURES, Scale, run_agents
from flanpy.bench.runner import Recorder
from flanpy.bench.samples import Settings

pytestmark = [pytest.mark.root, pytest.mark.etcd]


class Silence:
    """Progress that nobody sees."""

    def step(self, doing: str) -> None: ...

    def note(self, text: str) -> None: ...


def test_every_figure_of_the_agent_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flanpy.bench.agents.SETTLE_S", 0.0)
    monkeypatch.setattr("flanpy.bench.agents.REST_S", 1.0)
    settings = Settings((), (), 1, 0.5, (), ("agent",))
    recorder = Recorder(settings, FIGURES)
    run_agents(settings, recorder, Silence(), Scale(known=20, convergences=5, many=300))
    result = recorder.result()
    medians = {figure.key: [s.value for s in result.samples if s.figure == figure.key] for figure in FIGURES}
    assert all(medians.values()), medians
    assert all(0 < value < 30 for value in medians["agent_ready"] + medians["agent_join"] + medians["agent_restart"])
    assert all(0 < value < 5_000 for value in medians["agent_convergence_p50"])
    assert all(10 < value < 500 for value in medians["agent_memory"])
    with_ebpf = {(s.figure, s.round) for s in result.samples if s.setup == "ebpf"}
    assert {("agent_idle_cpu", 0), *(("agent_memory", number) for number in range(3))} <= with_ebpf
    churn = next(s for s in result.samples if s.figure == "agent_churn_loss")
    assert churn.detail["changes"] >= 20
    restart = next(s for s in result.samples if s.figure == "agent_restart_loss")
    assert (restart.detail["sent"] > 5_000, restart.detail["lost"] <= 0.25 * restart.detail["sent"]) == (True, True)
