"""Imports go one way: the table in ARCHITECTURE.md is read, and every import of the package is held against it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"pyroute2": "kernel", "grpc": "stores", "etcd3": "stores", "flanpy.datapath._core": "datapath"}
"""Modules that only one layer may import. ``bench`` has a compiled module of its own."""


def allowed() -> dict[str, set[str]]:
    """layer -> layers that it may import, from the lines ``| `layer` | `a`, `b` |`` below the heading Imports."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## Imports", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", text, re.MULTILINE)
    return {layer: set(re.findall(r"`(\w+)`", cell)) for layer, cell in rows}


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "flanpy"


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [
                (node.lineno, f"{node.module}.{alias.name}" if node.module == "flanpy" else node.module) for alias in node.names
            ]
    return found


def modules() -> list[Path]:
    return sorted((ROOT / "flanpy").rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    table = allowed()
    own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for line, name in imports(path):
        if name.split(".")[0] == "flanpy":
            target = layer_of(name)
            assert target in table[own] | {own, "flanpy", "__version__"}, f"{path}:{line}: {own} must not import {target}"
        for heavy, owner in HEAVY.items():
            if name == heavy or name.startswith(heavy + "."):
                assert own == owner, f"{path}:{line}: only {owner} may import {heavy}"


def test_every_layer_stands_in_the_table() -> None:
    layers = {layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in modules()}
    assert layers - {"__init__"} <= set(allowed())


def test_the_table_has_no_cycle() -> None:
    table = allowed()

    def reach(layer: str, seen: frozenset[str]) -> None:
        assert layer not in seen, f"cycle through {layer}"
        for target in table.get(layer, set()):
            reach(target, seen | {layer})

    for layer in table:
        reach(layer, frozenset())
