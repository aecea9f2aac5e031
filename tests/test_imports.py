"""What stays light and small. Who may import whom is a contract in pyproject.toml, which ``make lint`` checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*ROOT.glob("align/**/*.py"), *ROOT.glob("eval/**/*.py")])


def imports(path: Path, *, only_top: bool = False) -> Iterator[str]:
    """Names of modules that a file imports, those for type checking left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in tree.body if only_top else ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_trl_is_imported_in_one_file() -> None:
    found = {str(p.relative_to(ROOT)) for p in SOURCES if any(m.split(".")[0] == "trl" for m in imports(p))}
    assert found == {"align/compat.py"}


def test_report_never_imports_torch() -> None:
    for path in ROOT.glob("align/report/*.py"):
        assert not {m for m in imports(path) if m.split(".")[0] in ("torch", "transformers")}, path.name


@pytest.mark.parametrize(
    "module", ["align", "align.recipe", "align.cli.main", "align.objectives", "align.report.verdict"]
)
def test_light_modules_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'trl', 'datasets'}} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 350, f"{path.name} has {lines} lines: split it"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno
            assert length <= 75, f"{path.name}: {node.name} has {length} lines"
