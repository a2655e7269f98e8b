"""The `flanpy` command line as a whole: whose usage an error shows, and how wide help is."""

import os
import subprocess
import sys

import pytest

from flanpy.cli.main import COMMANDS, Texts, main


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "usage", "message"),
    [
        (("agent", "--ifcae", "eth0"), "usage: flanpy agent ", "--ifcae eth0; did you mean --iface?"),
        (("agent", "--ifcae=eth0"), "usage: flanpy agent ", "--ifcae=eth0; did you mean --iface?"),
        (("lab", "up", "--hsots=2"), "usage: flanpy lab up ", "--hsots=2; did you mean --hosts?"),
        (("network", "get", "--outptu", "json"), "usage: flanpy network get ", "did you mean --output?"),
        (("status", "here"), "usage: flanpy status ", "unrecognized arguments: here\n"),
        (("statsu",), "usage: flanpy ", "no such command: statsu; did you mean status?\n"),
        (("frobnicate",), "usage: flanpy ", "no such command: frobnicate; `flanpy --help` lists them\n"),
        (("lab", "strat"), "usage: flanpy lab ", "no such action: strat; did you mean start?\n"),
        (("cni", "instal"), "usage: flanpy cni ", "no such command: instal; did you mean install?\n"),
        (("ping", "x", "--count", "few"), "usage: flanpy ping ", "argument --count: 'few' is not a whole number such as 5\n"),
        (("top", "--interval", "often"), "usage: flanpy top ", "argument --interval: 'often' is not a number such as 2 or 0.5\n"),
        (("peers", "--output", "yaml"), "usage: flanpy peers ", "argument --output: 'yaml' is not one of table, json\n"),
        (("--versoin", "status"), "usage: flanpy ", "did you mean --version?"),
    ],
)
def test_what_a_command_does_not_know_is_refused_with_its_own_usage(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], usage: str, message: str
) -> None:
    said = refusal(capsys, *words)
    assert said.startswith(usage)
    assert message in said


def test_without_a_command_there_is_the_help_and_an_error_status(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys)
    assert said.startswith("usage: flanpy ")
    assert "\n    docker-opts  write dockerd's options for this node's subnet\n" in said


def test_prose_is_wrapped_and_what_is_indented_stays() -> None:
    text = "one two three\nfour --five-six\n\nexamples:\n  a  long example as it is written\n  b\nseven eight nine ten\n"
    assert Texts("flanpy", width=20)._fill_text(text, 15, "").splitlines() == [
        "one two three",
        "four --five-six",
        "",
        "examples:",
        "  a  long example as it is written",
        "  b",
        "seven eight",
        "nine ten",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_prose_of_help_fits_the_terminal(command: str) -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "flanpy", command, "--help"], env=environment, capture_output=True, text=True, check=True
    )
    assert [
        line for line in done.stdout.splitlines() if len(line) > 80 and not line.startswith(" ") and not line.endswith(":")
    ] == []


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [(">/dev/full", 5, "flanpy: cannot write: No space left on device\n"), (">&-", 0, "")],
)
def test_an_output_that_takes_nothing_brings_no_traceback(where: str, status: int, said: str) -> None:
    command = f"exec {sys.executable} -m flanpy completion bash {where}"
    ended = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (status, said)
