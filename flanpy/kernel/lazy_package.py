"""Lets a package's modules be imported without all that its ``__init__`` imports for those who might want it. Touches no file of it.

pyroute2's imports every part of the library: 70 modules that nothing here uses, a database among them, and 6 MB of every agent's memory.
Whoever asks the package for a name that is no module of it (``from pyroute2 import NetNS``) makes it load itself after all, so it
does for everybody what it always does.
"""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_lock = threading.RLock()
_loading: dict[str, int] = {}
"""Packages whose ``__init__`` runs, and by which thread: what it asks its own package for is there, or is missing; others wait."""


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        """Only called for what is not there yet."""
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(name)
        if name.isidentifier() and find_spec(f"{self.__name__}.{name}") is not None:
            return importlib.import_module(f"{self.__name__}.{name}")
        if _loading.get(self.__name__) == threading.get_ident():
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        with _lock:
            _load(self)
        return getattr(self, name)


def make_lazy(name: str) -> None:
    """Import a package's ``__init__`` only when something of it is asked for; without effect when it has been imported."""
    with _lock:
        if name not in sys.modules and (spec := find_spec(name)) is not None:
            package = module_from_spec(spec)
            package.__class__ = _Lazy
            sys.modules[name] = package


def _load(package: ModuleType) -> None:
    if type(package) is ModuleType:
        return
    spec = package.__spec__
    assert spec is not None
    assert spec.loader is not None
    _loading[package.__name__] = threading.get_ident()
    try:
        spec.loader.exec_module(package)
        package.__class__ = ModuleType
    finally:
        del _loading[package.__name__]
