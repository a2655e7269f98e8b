"""Builds the C extensions; everything else about the package stands in pyproject.toml."""

import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

BUILDERS = ["flanpy/datapath/core_build.py", "flanpy/bench/native_build.py"]

bpf = runpy.run_path("flanpy/datapath/bpf_build.py")
process = runpy.run_path("flanpy/datapath/process_build.py")


class BuildAll(build_ext):
    """build_ext, and beside the extensions the datapath's executable and the BPF object; without clang the latter is said to lack."""

    def run(self) -> None:
        super().run()
        root = Path("." if self.inplace else self.build_lib)
        process["compile_executable"](root / process["EXECUTABLE"])
        problem = bpf["compile_object"](bpf["SOURCE"], root / bpf["OBJECT"])
        if problem is not None:
            print(f"flanpy: built without the ebpf datapath: {problem}", file=sys.stderr)


setup(
    cmdclass={"build_ext": BuildAll},
    cffi_modules=[f"{builder}:ffi" for builder in BUILDERS if Path(builder).exists()],
    data_files=[("share/man/man1", ["docs/man/flanpy.1"])],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
