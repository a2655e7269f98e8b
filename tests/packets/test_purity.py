"""The pure half of the core calls nothing but memory functions, has no writable data, and compiles without a warning."""

import re
import subprocess
from pathlib import Path

import pytest

from flanpy.datapath.core_build import CSRC, PURE_SOURCES

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "memcpy",
    "memmove",
    "memset",
    "memcmp",
    "bcmp",  # what clang makes of memcmp() == 0
    "__cpu_model",  # the compiler's own record of what the CPU can do
    "__cpu_indicator_init",
    "_GLOBAL_OFFSET_TABLE_",
}
STRICT = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-fno-stack-protector"]
LINES_MAX = 400
FUNCTION_LINES_MAX = 60


def objects(compiler: str, directory: Path, *flags: str) -> list[Path]:
    """All pure files compiled by one call."""
    sources = [str(ROOT / CSRC / name) for name in PURE_SOURCES]
    subprocess.run([compiler, *flags, "-c", "-O1", *STRICT, *sources], check=True, cwd=directory, timeout=110)
    return sorted(directory.glob("*.o"))


def symbols(paths: list[Path], *flags: str) -> list[tuple[str, str]]:
    """(type, name) of every symbol that nm lists."""
    listed = subprocess.run(["nm", *flags, *map(str, paths)], check=True, capture_output=True, text=True, timeout=60).stdout
    return [(match[1], match[2]) for match in re.finditer(r"^[0-9a-f ]* ([A-Za-z]) (\S+)$", listed, flags=re.MULTILINE)]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_pure_objects_need_nothing_but_memory_functions_and_each_other(compiler: str, tmp_path: Path) -> None:
    built = objects(compiler, tmp_path)
    needed = {name for _, name in symbols(built, "-u")}
    defined = {name for _, name in symbols(built, "--defined-only")}
    assert needed - defined <= ALLOWED


def test_pure_objects_hold_no_writable_data(tmp_path: Path) -> None:
    writable = {name for kind, name in symbols(objects("gcc", tmp_path), "--defined-only") if kind in "bBdDcCsS"}
    assert {name for name in writable if not name.startswith(("names.", "meanings."))} == set()


def test_a_system_call_would_be_noticed(tmp_path: Path) -> None:
    source = tmp_path / "impure.c"
    source.write_text("#include <unistd.h>\nlong impure(void);\nlong impure(void) { return getpid(); }\n")
    target = tmp_path / "impure.o"
    subprocess.run(["gcc", "-c", "-O2", *STRICT, str(source), "-o", str(target)], check=True, timeout=60)
    assert {name for _, name in symbols([target], "-u")} - ALLOWED == {"getpid"}


def test_every_pure_file_is_in_the_list() -> None:
    present = {path.name for path in (ROOT / CSRC).glob("*.c") if not path.name.startswith("worker")}
    assert present == set(PURE_SOURCES)


@pytest.mark.parametrize("name", PURE_SOURCES)
def test_files_and_functions_stay_small(name: str) -> None:
    lines = (ROOT / CSRC / name).read_text().splitlines()
    assert len(lines) <= LINES_MAX
    starts = [i for i, line in enumerate(lines) if line == "{"]
    ends = [next(j for j in range(start, len(lines)) if lines[j] == "}") for start in starts]
    assert max(end - start for start, end in zip(starts, ends, strict=True)) <= FUNCTION_LINES_MAX


def test_the_pure_core_compiles_for_arm64_as_well(tmp_path: Path) -> None:
    """clang brings the code generator along but no arm64 headers: this machine's serve, told that words have 64 bits."""
    for name, text in {
        "gnu/stubs-32.h": "",
        "bits/wordsize.h": "#define __WORDSIZE 64\n#define __WORDSIZE_TIME64_COMPAT32 0\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    headers = [
        "-isystem",
        str(tmp_path),
        "-idirafter",
        "/usr/include/x86_64-linux-gnu",
        "-idirafter",
        "/usr/include/aarch64-linux-gnu",
    ]
    built = objects("clang", tmp_path, "--target=aarch64-linux-gnu", *headers)
    needed = {name for _, name in symbols(built, "-u")} - {name for _, name in symbols(built, "--defined-only")}
    assert needed <= {"memcpy", "memmove", "memset", "memcmp", "bcmp"}
