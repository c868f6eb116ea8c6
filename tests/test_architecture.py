"""The rules of docs/architecture.md that can be read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import unbackdoor

ROOT = Path(unbackdoor.__file__).parent
FILES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
DEFENCES = [name for name in MODULES if name.split(".")[1:2] in (["methods"], ["recover"])]
OUT_OF_REACH = ("attacks", "_evaluate", "data", "bench", "cli")


def imports(name: str) -> Iterator[str]:
    """Yield the package's own modules that ``name`` imports, by dotted name."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (module for module in found if module in MODULES and module != "unbackdoor")


def reach(name: str) -> set[str]:
    """Return every module of the package that importing ``name`` needs, itself included."""
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo.extend(imports(module))
    return seen


def test_there_is_something_to_check() -> None:
    assert "unbackdoor.methods.awm" in DEFENCES
    assert "unbackdoor._minmax" in reach("unbackdoor.methods.awm")
    assert "unbackdoor._clean" in reach("unbackdoor._purify")


@pytest.mark.parametrize("name", DEFENCES)
def test_defences_reach_no_trigger_no_metric_no_test_image(name: str) -> None:
    assert not {module for module in reach(name) if module.split(".")[1] in OUT_OF_REACH}


@pytest.mark.parametrize("name", [n for n in MODULES if n.split(".")[1:2] == ["recover"]])
def test_recovery_knows_no_method(name: str) -> None:
    assert not {module for module in reach(name) if module.startswith("unbackdoor.methods")}


@pytest.mark.parametrize("name", MODULES)
def test_files_are_loaded_without_running_code(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True", f"{name}, line {node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("allow_pickle", "False") == "False", f"{name}, line {node.lineno}"
