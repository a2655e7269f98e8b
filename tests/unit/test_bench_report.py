"""Report, goals and JSON of a recorded result; the order of a plan; the command's options."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from flanpy.bench.goals import Goal, Point, judge
from flanpy.bench.output import new_directory, write
from flanpy.bench.report import figure_table, goals_table, markdown, number, ratio_table, spread, work_table
from flanpy.bench.runner import SETTLE_S, Recorder, Step, plan
from flanpy.bench.samples import Figure, Result, Sample, Settings, from_json, to_json
from flanpy.bench.statistics import summarize
from flanpy.bench.suite import estimate_s
from flanpy.bench.tasks import Task, Value
from flanpy.cli import bench
from flanpy.errors import UsageError

SETTINGS = Settings(("vxlan", "userspace"), ("superpacket", "wire"), 3, 2.0, (1,), ("tcp",))
TCP = Figure("tcp_1", "TCP, 1 stream", "Gbit/s", task="TCP, 1 stream")


def samples(setup: str, mode: str, values: list[float], figure: str = "tcp_1") -> list[Sample]:
    return [Sample(figure, setup, mode, number, value) for number, value in enumerate(values)]


def recorded() -> Result:
    return Result(
        started="2026-11-21T03:00:00+00:00",
        finished="2026-11-21T03:01:00+00:00",
        settings=SETTINGS,
        machine={"kernel": "6.18", "cpus": 2, "cpu_model": "Some CPU", "iperf3": "iperf 3.12", "flanpy": "0"},
        figures=(TCP,),
        samples=tuple(
            samples("vxlan", "wire", [5.0, 4.0, 6.0])
            + samples("userspace", "wire", [10.0, 4.0, 9.0])
            + samples("vxlan", "superpacket", [20.0, 20.0, 20.0])
        ),
        warnings=("the machine was not idle",),
        losses=("proxy wire TCP: a flannel0 tx_dropped 7",),
        distributions={"latency_idle_p50/vxlan/wire": [[100, 3], [200, 1]]},
    )


def test_a_result_comes_back_from_json_as_it_was() -> None:
    assert from_json(to_json(recorded())) == recorded()


def test_a_figure_has_setups_down_and_modes_across() -> None:
    table = figure_table(recorded(), TCP)
    assert table.header == ("setup", "superpacket", "wire")
    assert table.rows == (("vxlan", "20 (20 .. 20)", "5 (4 .. 6)"), ("userspace", "–", "9 (4 .. 10)"))


def test_ratios_are_of_rounds_not_of_medians() -> None:
    table = ratio_table(recorded(), TCP)
    assert table is not None
    assert table.rows == (("userspace / vxlan", "–", "1.5 (1 .. 2)"),)


def test_figures_that_say_nothing_by_comparison_have_no_ratios() -> None:
    assert ratio_table(recorded(), dataclasses.replace(TCP, compared=False)) is None


def test_a_goal_is_reached_by_its_median() -> None:
    point = Point("tcp_1", "userspace", "wire")
    reference = Point("tcp_1", "vxlan", "wire")
    verdicts = judge(
        recorded(), (Goal("ratio", point, 1.5, reference), Goal("ratio", point, 1.6, reference), Goal("fixed", point, 8.0))
    )
    assert [verdict.reached for verdict in verdicts] == [True, False, True]


@pytest.mark.parametrize(("rounds", "seconds"), [(2, 2.0), (3, 0.9)])
def test_a_run_that_is_too_short_is_not_judged(rounds: int, seconds: float) -> None:
    short = dataclasses.replace(recorded(), settings=dataclasses.replace(SETTINGS, rounds=rounds, seconds=seconds))
    for result, words in ((recorded(), {"reached"}), (short, {"too short to judge"})):
        assert {row[-1] for row in goals_table(judge(result)).rows} == words


def test_what_an_interrupted_run_has_fewer_than_three_rounds_of_is_not_judged() -> None:
    goal = Goal("fixed", Point("tcp_1", "userspace", "wire"), 8.0)
    cut = dataclasses.replace(recorded(), interrupted=True)
    assert [verdict.judged for verdict in judge(cut, (goal,))] == [True]
    assert [verdict.judged for verdict in judge(dataclasses.replace(cut, samples=cut.samples[:-4]), (goal,))] == [False]


def test_an_upper_bound_is_reached_from_below() -> None:
    goal = Goal("latency", Point("tcp_1", "vxlan", "wire"), 5.0, at_least=False)
    assert [verdict.reached for verdict in judge(recorded(), (goal, dataclasses.replace(goal, bound=4.9)))] == [True, False]


def test_goals_without_samples_are_left_out() -> None:
    assert judge(recorded(), (Goal("none", Point("tcp_9", "userspace", "wire"), 1.0),)) == ()


def test_the_report_names_conditions_goals_warnings_and_losses() -> None:
    text = markdown(recorded(), ["throughput.svg"])
    for part in (
        "Kernel 6.18, 2 x Some CPU",
        "## Goals",
        "not idle",
        "tx_dropped 7",
        "![throughput.svg](throughput.svg)",
        "3 rounds",
    ):
        assert part in text


def slow(**measured: list[float]) -> Result:
    """A run of three rounds in which vxlan has 10 Gbit/s, and the setups those that are given, at 1.6 s/GB."""
    figures = (TCP, Figure("tcp_1_cpu", "TCP, 1 stream: CPU time of the whole machine", "s/GB", higher_is_better=False))
    taken = [sample for setup, values in {"vxlan": [10.0] * 3, **measured}.items() for sample in samples(setup, "wire", values)]
    costs = samples("userspace", "wire", [1.6] * 3, "tcp_1_cpu")
    done = {"encapsulated": 500, "decapsulated": 500, "udp_receives": 500, "udp_received_segments": 500, "polls": 10}
    return dataclasses.replace(
        recorded(), figures=figures, samples=tuple(taken + costs), work={"userspace, wire, TCP, 1 stream": done}
    )


def test_a_missed_goal_is_explained_by_the_limit_the_cpus_and_the_calls() -> None:
    text = markdown(slow(userspace=[10.0] * 3, routed=[11.0] * 3))
    assert "- **userspace: TCP, 1 stream, wire, against vxlan**: 1, wanted >= 1.2 x." in text
    for part in (
        "Plain routing itself, which adds nothing to a packet, has 1.10 × vxlan here and misses the goal too. We have 0.91 × plain",
        "All 2 CPUs were busy, both ends' TCP included: 1.60 s for a GB where the goal leaves 1.33 s.",
        "The datapath needed 0.510 system calls a packet (359 a MB) and slept once in 100 packets; each datagram took a receive",
    ):
        assert part in text


def test_cpus_that_are_idle_are_not_what_bounds_a_goal() -> None:
    text = markdown(slow(userspace=[6.0] * 3, routed=[20.0] * 3))
    assert "The CPUs were busy for 60% of the time: waiting" in text
    assert "misses the goal too" not in text


def test_a_run_that_reaches_its_goals_explains_nothing() -> None:
    assert "What bounds" not in markdown(slow(userspace=[13.0] * 3))


def test_what_a_datapath_did_is_shown_by_packet_and_call() -> None:
    done = {"encapsulated": 400, "decapsulated": 400, "tun_reads": 10, "tun_writes": 20, "udp_sends": 10, "udp_receives": 40}
    done |= {"udp_sent_segments": 400, "udp_received_segments": 400}
    table = work_table(dataclasses.replace(recorded(), work={"userspace, wire, TCP": done, "vxlan, wire, TCP": {}}))
    assert table is not None
    assert table.rows == (("userspace, wire, TCP", "40", "40", "10", "20", "0.1", "0"),)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (4.567, "4.57"), (123.4, "123"), (1234567, "1,235,000")]
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_single_sample_has_no_spread() -> None:
    assert (spread(summarize([2.0])), spread(None)) == ("2", "–")


def test_files_and_plots_are_written(tmp_path: Path) -> None:
    names = write(recorded(), new_directory(tmp_path, recorded().started))
    assert {"result.json", "report.md", "throughput.svg", "throughput.png"} <= set(names)
    assert (tmp_path / "2026-11-21-030000" / "throughput.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_of_one_second_have_directories_of_their_own(tmp_path: Path) -> None:
    first, second = (new_directory(tmp_path, "2026-11-21T03:00:00+00:00") for _ in range(2))
    assert first != second


def nothing(bed: object) -> list[Value]:
    return []


def test_setups_take_turns_and_the_first_of_a_round_rotates() -> None:
    task = Task("t", (), 1.0, nothing)
    settings = dataclasses.replace(SETTINGS, modes=("wire",), rounds=2)
    assert list(plan(settings, [task])) == [
        Step(0, "wire", task, "vxlan"),
        Step(0, "wire", task, "userspace"),
        Step(1, "wire", task, "userspace"),
        Step(1, "wire", task, "vxlan"),
    ]


def test_a_run_is_estimated_by_its_samples() -> None:
    tasks = [Task("t", (), 1.5, nothing), Task("u", (), 6.0, nothing)]
    assert estimate_s(SETTINGS, tasks) == 2 * 2 * 3 * 7.5 + 2 + 2 * 3 * SETTLE_S
    assert estimate_s(dataclasses.replace(SETTINGS, modes=("wire",)), tasks) == 2 * 3 * 7.5 + 2 + SETTLE_S
    core_alone = dataclasses.replace(SETTINGS, groups=("core",))
    assert 0 < estimate_s(core_alone, []) < 60 < estimate_s(dataclasses.replace(core_alone, groups=("agent",)), [])


def test_a_recorder_adds_up_distributions_and_losses_over_rounds() -> None:
    recorder = Recorder(SETTINGS, [TCP])
    step = Step(0, "wire", Task("TCP", (TCP,), 1.0, nothing), "vxlan")
    for turn in range(2):
        recorder.add(Value("tcp_1", 1.0, {}, ((10, 1), (20, 2))), "vxlan", "wire", turn)
        recorder.add_losses(step, {"a UdpRcvbufErrors": 2})
        recorder.add_work(step, {"udp_sends": 3})
    result = recorder.result()
    assert result.work == {"vxlan, wire, TCP": {"udp_sends": 6}}
    assert result.distributions == {"tcp_1/vxlan/wire": [(10, 2), (20, 4)]}
    assert result.losses == ("vxlan, wire, TCP: a UdpRcvbufErrors 4",)


def settings(*argv: str, missing: dict[str, str] | None = None) -> Settings:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    reasons = missing or {}
    return bench.settings_of(parser.parse_args(list(argv)), lambda names: {n: reasons[n] for n in names if n in reasons})


def test_quick_is_one_stream_in_two_modes() -> None:
    chosen = settings("quick", missing={"flanneld": "no"})
    assert (chosen.modes, chosen.streams, chosen.groups) == (("superpacket", "wire"), (1,), ("tcp",))
    assert settings("--quick") == settings("quick")


def test_quick_measures_what_auto_takes_where_it_works() -> None:
    assert settings("quick").setups == ("routed", "vxlan", "proxy", "userspace", "ebpf")
    assert settings("quick", missing={"ebpf": "needs root"}).setups == ("routed", "vxlan", "proxy", "userspace")


def test_setups_that_do_not_work_here_are_left_out_but_refused_when_named() -> None:
    assert "ebpf" not in settings(missing={"ebpf": "no root"}).setups
    with pytest.raises(UsageError, match="ebpf does not work here: no root"):
        settings("--setups", "ebpf", missing={"ebpf": "no root"})


def test_a_flanneld_by_path_is_a_setup() -> None:
    assert "flanneld" in settings("quick", "--flanneld", "/bin/flanneld", missing={"flanneld": "no"}).setups


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--setups", "vxlna"], "did you mean vxlan"),
        (["--modes", "wires"], "did you mean wire"),
        (["--groups", ","], "empty"),
        (["--rounds", "0"], "out of range"),
        (["--seconds", "0"], "out of range"),
        (["--streams", "1,x"], "list of numbers"),
        (["--streams", "0"], "out of range"),
    ],
)
def test_wrong_options_say_what_would_be_right(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(*argv)


def test_the_list_names_what_is_missing_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    bench.show_list({"ebpf": "clang was missing"})
    assert "clang was missing" in capsys.readouterr().out
