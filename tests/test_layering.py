"""Who may import whom: the table of `docs/architecture.md`, checked without importing anything."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"scisparse": "scisparse", "kernels": "scisparse.kernels", "layers": "scisparse.layers"}

# A module imports only from rows above its own, or from inside its own entry.
ROWS = (
    ("scisparse.errors",),
    (
        "scisparse.formats",
        "scisparse.grids",
        "scisparse.memory",
        "scisparse.names",
        "scisparse.units",
    ),
    ("scisparse.pattern",),
    ("scisparse.orders", "scisparse.patterns", "scisparse.tying"),
    ("scisparse.adjacency",),
    ("scisparse.kernels",),
    ("scisparse.layers",),
    ("scisparse.arrays", "scisparse.files", "scisparse.sparsity", "scisparse.testing"),
    ("scisparse.coordinates", "scisparse.losses", "scisparse.models"),
    ("scisparse.times",),
    ("scisparse.datasets", "scisparse.plots", "scisparse.postprocess", "scisparse.verification"),
    ("scisparse.demo", "scisparse.doctor"),
    ("scisparse.cli", "scisparse"),
)
ROW_OF = {entry: row for row, entries in enumerate(ROWS) for entry in entries}

# These run on a bare GPU machine: anything but torch and numpy is imported inside functions.
BARE = (
    "scisparse.adjacency",
    "scisparse.errors",
    "scisparse.grids",
    "scisparse.kernels",
    "scisparse.layers",
    "scisparse.memory",
    "scisparse.orders",
    "scisparse.pattern",
    "scisparse.patterns",
    "scisparse.sparsity",
    "scisparse.testing",
    "scisparse.tying",
)
BARE_IMPORTS = {"numpy", "scisparse", "torch", *sys.stdlib_module_names}

# Kernels take raw tensors: they know no pattern, grid or module.
KERNELS_SEE = {"scisparse.errors", "scisparse.kernels"}

# Each package of an extra, and the modules that may import it outside a function.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "cuda": (),
    "dask": (),
    "matplotlib": (),
    "scores": (),
    "scoringrules": (),
    "triton": (
        "scisparse.kernels.gather_matmul.triton_kernels",
        "scisparse.kernels.graph_attention.triton_choices",
        "scisparse.kernels.graph_attention.triton_kernels",
        "scisparse.kernels.graph_attention.triton_products",
        "scisparse.kernels.graph_attention.triton_tiles",
    ),
    "zarr": (),
}
LEAVES = {module for modules in OPTIONAL.values() for module in modules}


class Import(NamedTuple):
    """One imported module, by its full name, and whether importing the importer imports it too."""

    name: str
    line: int
    at_import: bool


def modules() -> Iterator[tuple[str, Path]]:
    """Import name and file of every module of the package."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            names = parts[:-1] if parts[-1] == "__init__" else parts
            yield ".".join((package, *names)), path


MODULES = dict(modules())


def imports_of(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    """Every import in `source`; `from a import b` is `a.b` where that is a module of ours.

    In kernels and layers `from scisparse import b` stays an import of `scisparse`, the last row.
    """
    package = module if is_package else module.rpartition(".")[0]
    mapped = entry_of(module) in ("scisparse.kernels", "scisparse.layers")
    found: list[Import] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                whole = full not in MODULES or (mapped and base == "scisparse")
                found.append(Import(base if whole else full, node.lineno, at_import))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for typed in node.body:
                visit(typed, False)
            for other in node.orelse:
                visit(other, at_import)
        else:
            deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                visit(child, at_import and not deferred)

    visit(ast.parse(source), True)
    return found


def entry_of(module: str) -> str | None:
    """Entry of the table that `module` belongs to: the longest that it is or lies inside."""
    if module == "scisparse":
        return module
    inside = [e for e in ROW_OF if e != "scisparse" and f"{module}.".startswith(f"{e}.")]
    return max(inside, key=len, default=None)


def violations(module: str, imports: list[Import]) -> list[str]:
    """Every rule that the imports of `module` break, one sentence each."""
    entry = entry_of(module)
    if entry is None:
        return [f"{module} is in no row of ROWS; add it where its imports put it"]
    broken = []
    for name, line, at_import in imports:
        where, top = f"{module}, line {line}: imports {name}", name.partition(".")[0]
        if top in ("kernels", "layers"):
            broken.append(f"{where}, a second copy of scisparse.{name}")
        if top == "scisparse":
            other = entry_of(name)
            if other is None:
                broken.append(f"{where}, which is in no row of ROWS")
            elif other != entry and ROW_OF[other] >= ROW_OF[entry]:
                broken.append(f"{where}, which is not in a row above {entry}")
            elif entry == "scisparse.kernels" and other not in KERNELS_SEE:
                broken.append(f"{where}, but kernels see raw tensors only")
        if not at_import or module in OPTIONAL.get(top, ()):
            continue
        if entry in BARE and top not in BARE_IMPORTS:
            broken.append(f"{where} outside a function, but must load with torch and numpy alone")
        if top in OPTIONAL or (name in LEAVES and module not in LEAVES):
            broken.append(f"{where} outside a function, but it is optional")
    return broken


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_to_its_row(module: str) -> None:
    path = MODULES[module]
    imports = imports_of(path.read_text(), module, is_package=path.name == "__init__.py")
    assert violations(module, imports) == []


@pytest.mark.parametrize("package", ["scisparse", "scisparse.kernels", "scisparse.layers"])
def test_modules_are_found(package: str) -> None:
    assert package in MODULES


@pytest.mark.parametrize("entry", [e for row in ROWS for e in row if e in BARE])
def test_bare_entries_exist(entry: str) -> None:
    assert entry in MODULES


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        ("scisparse.grids.base", "from scisparse.pattern import Pattern", "not in a row above"),
        ("scisparse.kernels._native", "from scisparse import grids", "not in a row above"),
        ("scisparse.kernels._native", "import scisparse.pattern", "raw tensors only"),
        ("scisparse.layers.local", "from scisparse import __version__", "not in a row above"),
        ("scisparse.layers.local", "from .. import cli", "not in a row above"),
        ("scisparse.cli", "def f():\n    import layers.local", "a second copy"),
        ("scisparse.cli", "from kernels import gather_matmul", "a second copy"),
        ("scisparse.patterns.windows", "import scipy.spatial", "torch and numpy alone"),
        ("scisparse.plots", "try:\n    import matplotlib\nexcept ImportError: ...", "is optional"),
        (
            "scisparse.kernels.gather_matmul.triton",
            "from scisparse.kernels.gather_matmul import triton_kernels",
            "is optional",
        ),
        ("scisparse.novelty", "import torch", "in no row"),
        ("scisparse.cli", "import scisparse.novelty", "in no row"),
    ],
)
def test_broken_rule_is_seen(module: str, source: str, rule: str) -> None:
    (message,) = violations(module, imports_of(source, module))
    assert rule in message


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scisparse.patterns.windows", "def f():\n    from scipy.spatial import cKDTree"),
        ("scisparse.demo", "from scisparse import datasets"),
        ("scisparse.pattern.value", "from .edges import sort\nfrom ..errors import PatternError"),
        ("scisparse.plots", "if TYPE_CHECKING:\n    from matplotlib.figure import Figure"),
        ("scisparse.layers.local", "from scisparse.kernels import gather_matmul"),
    ],
)
def test_allowed_import_passes(module: str, source: str) -> None:
    assert violations(module, imports_of(source, module)) == []


PACKAGES = [m for m, path in MODULES.items() if path.name == "__init__.py" and m != "scisparse"]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_list_the_names_that_they_hand_on(package: str) -> None:
    """Without ``__all__``, ``help`` shows none of them."""
    tree = ast.parse(MODULES[package].read_text())
    handed_on = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name and f"{node.module}.{alias.name}" not in MODULES
    }
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert len(listed) == 1
    assert handed_on <= set(listed[0])
    assert len(listed[0]) == len(set(listed[0]))
