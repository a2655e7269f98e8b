"""The documentation site builds without a warning, and what it says of flags, commands and files is what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flanpy.agent.metrics import METRICS
from flanpy.cli.main import COMMANDS, parse
from flanpy.config.agent_flags import AGENT_FLAGS
from flanpy.datapath.core import VERDICTS
from tests.support.flannel import FLANNELD_FLAGS, FLANNELD_ONLY

TOP = Path(__file__).resolve().parents[2]
PAGES = sorted((TOP / "docs").glob("*.md"))


def text_of(name: str) -> str:
    return (TOP / "docs" / name).read_text(encoding="utf-8")


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """mkdocs, strict: a warning is a failure."""
    argv = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(source / "mkdocs.yml"),
        "--site-dir",
        str(target),
    ]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(TOP, tmp_path / "site")

    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert {path.stem for path in PAGES} <= {path.stem for path in (tmp_path / "site").glob("*.html")}


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# One\n\n[nowhere](nowhere.md)\n")
    settings = (TOP / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(settings[: settings.index("nav:\n  -")] + "nav:\n  - One: index.md\n")

    assert build(tmp_path, tmp_path / "site").returncode != 0


def test_every_flag_of_flanneld_is_in_the_table_and_those_that_are_the_same_exist() -> None:
    rows = [row.split("|")[1:4] for row in text_of("upgrade-from-flannel.md").splitlines() if row.startswith("| `--")]
    named = {flag: here.strip() for flags, here, _ in rows for flag in re.findall(r"--([\w-]+)", flags)}

    assert [flag for flag in FLANNELD_FLAGS + FLANNELD_ONLY if flag not in named] == []
    ours = {flag.name for flag in AGENT_FLAGS}
    assert [flag for flag, here in named.items() if here == "the same" and flag not in ours] == []


@pytest.mark.parametrize("page", [*PAGES, TOP / "README.md"], ids=lambda path: path.name)
def test_commands_in_the_pages_exist(page: Path) -> None:
    """``flanpy NAME …`` in code: the command is one of ours."""
    code = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")) + re.findall(
        r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    named = {word for piece in code for word in re.findall(r"(?:^|[\n;(] *|/bin/|exec )flanpy ([a-z][a-z-]+)", piece)}
    assert sorted(named - set(COMMANDS)) == []


@pytest.mark.parametrize("page", [*PAGES, TOP / "README.md"], ids=lambda path: path.name)
def test_files_that_the_pages_name_exist(page: Path) -> None:
    named = set(re.findall(r"`((?:config|csrc|scripts|flanpy|tests)/[\w./-]+\.\w+)", page.read_text(encoding="utf-8")))
    assert sorted(name for name in named if not (TOP / name).exists()) == []


@pytest.mark.parametrize("page", [text for text in PAGES if text.name != "reference.md"], ids=lambda path: path.name)
def test_verdicts_and_metrics_that_the_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    metrics = {metric.name for metric in METRICS}
    assert set(re.findall(r"`(drop_\w+)`", text)) <= set(VERDICTS)
    assert {name for name in re.findall(r"`(flanpy_\w+)", text) if name not in metrics} <= {"flanpy_bpf"}


@pytest.mark.parametrize(
    "line",
    [
        "agent --etcd-endpoints http://10.0.0.1:2379 --iface eth0 --ip-masq",
        "agent --embedded-etcd 10.0.0.1:2379 --iface eth0",
        "reserve 10.244.7.0/24 --public-ip 10.0.0.7",
        "status --wait 30",
        "cleanup --dry-run",
        "cni install --name flannel",
        "ping 10.0.0.2",
    ],
)
def test_commands_of_the_guides_are_understood(line: str) -> None:
    assert any(line in page.read_text(encoding="utf-8") for page in [*PAGES, TOP / "README.md"])
    parse(line.split())
