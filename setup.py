"""Builds the C extensions; everything else about the package stands in pyproject.toml."""

import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

BUILDERS = ["flanpy/datapath/core_build.py", "flanpy/bench/native_build.py"]

bpf = runpy.run_path("flanpy/datapath/bpf_build.py")


class BuildWithBpf(build_ext):
    """build_ext, and the BPF object beside the extensions; without clang the rest is built and said to lack it."""

    def run(self) -> None:
        super().run()
        problem = bpf["compile_object"](bpf["SOURCE"], Path("." if self.inplace else self.build_lib) / bpf["OBJECT"])
        if problem is not None:
            print(f"flanpy: built without the ebpf datapath: {problem}", file=sys.stderr)


setup(
    cmdclass={"build_ext": BuildWithBpf},
    cffi_modules=[f"{builder}:ffi" for builder in BUILDERS if Path(builder).exists()],
    data_files=[("share/man/man1", ["docs/man/flanpy.1"])],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
