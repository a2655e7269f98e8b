"""Builds the C extensions; everything else about the package stands in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup

BUILDERS = ["flanpy/datapath/core_build.py", "flanpy/bench/native_build.py"]

setup(
    cmdclass={"build_ext": runpy.run_path("flanpy/datapath/bpf_build.py")["BuildWithBpf"]},
    cffi_modules=[f"{builder}:ffi" for builder in BUILDERS if Path(builder).exists()],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
