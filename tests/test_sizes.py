"""No file and no function is longer than `CONTRIBUTING.md` allows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".ci", "benchmarks", "examples", "kernels", "layers", "scisparse", "tests")
ENDINGS = {".py", ".hpp", ".cpp", ".cu"}
FILES = [p for f in FOLDERS for p in sorted((ROOT / f).rglob("*")) if p.suffix in ENDINGS]
LONGEST_FILE, LONGEST_FUNCTION = 400, 80


def long_functions(source: str) -> list[str]:
    """Functions with too many lines, those of the docstring not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            told = ast.get_docstring(node) is not None
            docstring = range(first.lineno, (first.end_lineno or 0) + 1) if told else ()
            lines = (node.end_lineno or 0) - node.lineno + 1 - len(docstring)
            if lines > LONGEST_FUNCTION:
                found.append(f"{node.name}: {lines} lines")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_sizes(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= LONGEST_FILE, "split it"
    if path.suffix == ".py":
        assert long_functions(source) == []


def test_long_functions_are_seen() -> None:
    body = "    x = 1\n" * LONGEST_FUNCTION
    assert long_functions(f"def f():\n{body}") == ["f: 81 lines"]
    assert long_functions(f'def f():\n    """One.\n\n    Two.\n    """\n{body[10:]}') == []
