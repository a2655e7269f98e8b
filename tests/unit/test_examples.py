"""The commented examples in config/ are what they say: each is loaded by the code that would load it for real."""

import argparse
import configparser
from pathlib import Path

from flanpy.config.agent_flags import AGENT_FLAGS
from flanpy.config.options import add_agent_flags, load_agent_options
from flanpy.datapath import process_user

CONFIG = Path(__file__).resolve().parents[2] / "config"


def test_the_options_example_loads_and_shows_the_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_agent_flags(parser)
    shown = load_agent_options(parser.parse_args(["--config", str(CONFIG / "agent.toml")]), {})
    for flag in AGENT_FLAGS:
        if flag.key != "etcd_endpoints":
            assert getattr(shown, flag.key) == flag.default, flag.name


def test_the_options_example_names_every_flag() -> None:
    text = (CONFIG / "agent.toml").read_text(encoding="utf-8")
    assert [flag.name for flag in AGENT_FLAGS if flag.name not in text and flag.name != "etcd-password"] == []


def test_no_figure_in_the_documents_waits_to_be_measured() -> None:
    for path in [*CONFIG.parent.glob("*.md"), *CONFIG.parent.glob("docs/*.md")]:
        assert "MEASURED_" not in path.read_text(encoding="utf-8"), path


def test_the_unit_runs_the_agent_with_the_options_file() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(CONFIG / "flanpy.service")
    words = unit["Service"]["ExecStart"].split()
    assert words[1:3] == ["agent", "--config"]
    assert unit["Service"]["Type"] == "notify"


def test_the_user_that_packaging_makes_is_the_one_that_is_looked_for() -> None:
    lines = [
        line.split() for line in (CONFIG / "flanpy-sysusers.conf").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert [line[:3] for line in lines] == [["u", process_user.NAME, "-"]]
    image = (CONFIG.parent / "Dockerfile").read_text()
    assert f"useradd --uid {process_user.FREE_NUMBERS[0]} " in image
    assert f" {process_user.NAME}\n" in image
