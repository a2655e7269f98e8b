"""The hand-over of tables to the workers under ThreadSanitizer: csrc/tests/hammer.c says what it does."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hammer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built with the whole core under -fsanitize=thread."""
    program = tmp_path_factory.mktemp("hammer") / "hammer"
    sources = [str(ROOT / "csrc/tests/hammer.c"), *map(str, sorted((ROOT / "csrc").glob("*.c")))]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-fsanitize=thread", "-I", str(ROOT / "csrc")]
    subprocess.run(["gcc", *flags, *sources, "-o", str(program), "-lpthread"], check=True, timeout=100)
    return program


@pytest.mark.parametrize("threads_per_queue", [1, 2])
def test_tables_change_hands_without_a_race(hammer: Path, threads_per_queue: int) -> None:
    """Addresses are not randomized, for ThreadSanitizer wants its shadow memory where it is."""
    setarch = shutil.which("setarch")
    assert setarch, "setarch (util-linux) is needed"
    command = [setarch, "-R", str(hammer), "1", str(threads_per_queue)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "packets each way" in done.stdout
