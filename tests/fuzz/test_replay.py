"""The fuzz targets, built with AddressSanitizer and UndefinedBehaviorSanitizer, run over the committed inputs.

These are the seeds (corpus/, written by seeds.py) and the fewest inputs that reach all that long runs of libFuzzer have reached (found/,
written by ``csrc/fuzz/build.sh keep``); executions.txt says how many executions each target has survived.
"""

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import seeds

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "csrc" / "fuzz" / "build.sh"
FOUND = Path(__file__).parent / "found"
EXECUTIONS = Path(__file__).parent / "executions.txt"
GOAL = 10_000_000
"""Least executions of each target."""
TARGETS = ["encap_frame", "decap_train", "table", "round_trip", "table_history", "protocol"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sanitized")
    subprocess.run([BUILD, "replay", directory], check=True, timeout=110)
    return directory


def replay(program: Path, inputs: list[Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *inputs], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_the_core_handles_every_known_input_without_a_stray_access(
    target: str, built: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """Row 22: malformed, truncated, fragmented, oversized packets and damaged tables: fuzzing under ASan and UBSan.

    libFuzzer runs the pure C core: whole batches of packets in and out, what was cut against what is merged, tables and histories of
    tables against a naive look-up, requests to the datapath process. What it has found stands in the repository and is run here.
    Passes when: no crash, no leak; 10 million executions of each target; corpus kept and replayed in the tests.
    """
    with tarfile.open(FOUND / f"{target}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    inputs = [*sorted((seeds.CORPUS / target).iterdir()), *sorted(tmp_path.iterdir())]
    assert len(inputs) > len(list((seeds.CORPUS / target).iterdir()))
    done = replay(built / target, inputs)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{len(inputs)} inputs\n", "")
    measured(f"{len(inputs)} inputs replayed, after {executions()[target]:,} executions without a finding")


def executions() -> dict[str, int]:
    """How many executions each target has survived, as ``csrc/fuzz/build.sh count`` has written it down."""
    lines = (line.split() for line in EXECUTIONS.read_text(encoding="utf-8").splitlines())
    return {target: int(count) for target, count in lines}


def test_every_target_has_been_run_long_enough() -> None:
    survived = executions()
    assert set(survived) == set(TARGETS)
    assert {target: count for target, count in survived.items() if count < GOAL} == {}


@pytest.mark.parametrize("target", TARGETS)
def test_every_prefix_of_a_known_input_is_handled_as_well(target: str, built: Path, tmp_path: Path) -> None:
    inputs = []
    for seed in sorted((seeds.CORPUS / target).iterdir()):
        data = seed.read_bytes()
        for length in range(0, len(data), max(1, len(data) // 25)):
            inputs.append(tmp_path / f"{seed.name}-{length}")
            inputs[-1].write_bytes(data[:length])
    done = replay(built / target, inputs)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_target_has_its_seeds_as_they_are_written() -> None:
    listed = subprocess.run([BUILD, "targets"], check=True, capture_output=True, text=True, timeout=10).stdout.split()
    assert listed == TARGETS
    for target in TARGETS:
        for name, data in getattr(seeds, target)():
            assert (seeds.CORPUS / target / name).read_bytes() == data, f"{target}/{name}: run python -m tests.fuzz.seeds"


def test_a_stray_access_would_be_noticed(tmp_path: Path, built: Path) -> None:
    source = tmp_path / "stray.c"
    source.write_text(
        '#include "fuzz.h"\n'
        "int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) { return fp_sum(data, bytes + 1, 0) == 0 ? 0 : 0; }\n"
    )
    program = tmp_path / "stray"
    objects = [str(path) for path in sorted(built.glob("*.o"))]
    command = [
        "-std=c11",
        "-D_GNU_SOURCE",
        "-I",
        str(ROOT / "csrc"),
        "-I",
        str(ROOT / "csrc/fuzz"),
        "-fsanitize=address,undefined",
    ]
    compiler = (
        "clang" if subprocess.run(["which", "clang"], capture_output=True, timeout=10, check=False).returncode == 0 else "gcc"
    )
    subprocess.run([compiler, *command, str(source), *objects, "-o", str(program)], check=True, timeout=60)
    done = replay(program, [seeds.CORPUS / "table" / "undamaged"])
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
