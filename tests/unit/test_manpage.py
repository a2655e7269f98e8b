"""The man page: what the code says, well formed, with every command and flag in it."""

import subprocess
import sys
from pathlib import Path

from flanpy.cli.main import COMMANDS
from flanpy.config.agent_flags import AGENT_FLAGS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "man" / "flanpy.1"


def test_the_man_page_is_what_the_code_says() -> None:
    argv = [sys.executable, "scripts/manpage.py", "--check"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env={"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")


def test_groff_has_nothing_to_complain_about_and_shows_every_command_and_flag() -> None:
    argv = ["groff", "-man", "-ww", "-Tascii", "-P-cbou", "-rLL=1000n", str(PAGE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    words = set(done.stdout.replace(",", " ").split())
    assert [flag.name for flag in AGENT_FLAGS if f"--{flag.name}" not in words] == []
    assert [name for name in COMMANDS if f"flanpy {name} - " not in done.stdout] == []
    assert "up --hosts 3" in done.stdout  # an example of a command below a command
