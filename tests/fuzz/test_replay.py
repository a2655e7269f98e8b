"""The fuzz targets, built with AddressSanitizer and UndefinedBehaviorSanitizer, run over the committed inputs."""

import subprocess
from pathlib import Path

import pytest

from tests.fuzz import seeds

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "csrc" / "fuzz" / "build.sh"
TARGETS = ["encap_frame", "decap_train", "table", "round_trip"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sanitized")
    subprocess.run([BUILD, "replay", directory], check=True, timeout=110)
    return directory


def replay(program: Path, inputs: list[Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *inputs], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_the_core_handles_every_known_input_without_a_stray_access(target: str, built: Path) -> None:
    inputs = sorted((seeds.CORPUS / target).iterdir())
    done = replay(built / target, inputs)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{len(inputs)} inputs\n", "")


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
