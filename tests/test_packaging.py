"""What is installed: every folder, nothing heavy at import, and a compiled library in plain C."""

from __future__ import annotations

import ast
import ctypes
import importlib.metadata
import importlib.resources
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_layering import MODULES

import scisparse
from scisparse.kernels._native import load

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]

PUBLIC = {
    "Pattern",
    "PostProcessor",
    "Recipe",
    "Sparsifier",
    "arrays",
    "datasets",
    "errors",
    "evaluate",
    "grids",
    "kernels",
    "layers",
    "losses",
    "models",
    "orders",
    "patterns",
    "plots",
    "postprocess",
    "sparsity",
    "testing",
    "verification",
}


def python(code: str) -> str:
    """Output of `code` in a fresh interpreter that does not look into the current folder."""
    command = [sys.executable, "-P", "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def own_folders() -> dict[str, Path]:
    """Import name and path of every folder that holds Python files of the package."""
    folders = {}
    for package, top in SETUPTOOLS["package-dir"].items():
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            folders[".".join((package, *folder.relative_to(ROOT / top).parts))] = folder
    return folders


def test_every_folder_is_in_packages() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(own_folders())


def test_every_folder_is_a_package() -> None:
    assert [
        name for name, path in own_folders().items() if not (path / "__init__.py").exists()
    ] == []


def test_every_cpp_file_is_compiled() -> None:
    (sources,) = (
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SOURCES"
    )
    assert sources == sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("kernels/**/*.cpp"))


def test_version_is_the_one_in_pyproject() -> None:
    version = PROJECT["project"]["version"]
    assert scisparse.__version__ == version
    assert importlib.metadata.version("scisparse") == version


def test_type_marker_is_installed() -> None:
    assert importlib.resources.files("scisparse").joinpath("py.typed").is_file()


def pins() -> dict[str, str]:
    """Pinned version of each distribution in `constraints.txt`."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, separator, version = line.partition("==")
            assert separator, f"constraints.txt: {line!r} is not an exact pin"
            found[canonicalize_name(name)] = version
    return found


def requirements() -> list[Requirement]:
    """Every requirement of the package and its extras, but those that need a GPU."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    names = [name for name in extras if name not in ("cuda", "gpu")]
    texts = [*project["dependencies"], *(text for name in names for text in extras[name])]
    return [r for r in map(Requirement, texts) if r.name != "scisparse"]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert Version(pins()[canonicalize_name(requirement.name)]) in requirement.specifier


def test_torch_is_pinned_without_a_build_suffix() -> None:
    assert pins()["torch"] == "2.13.0"


def test_all_holds_every_extra_but_those_for_gpus() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == extras.keys() - {"all", "cuda", "gpu"}


def test_public_names() -> None:
    assert set(scisparse.__all__) == PUBLIC
    assert [name for name in PUBLIC if not hasattr(scisparse, name)] == []


def test_public_names_stay_the_same_when_their_modules_are_imported() -> None:
    """A submodule becomes an attribute of its package once imported: `evaluate` must not."""
    pytest.importorskip("xarray")  # for the process that imports all
    show = f"for name in {sorted(PUBLIC)}: print(name, type(getattr(scisparse, name)).__name__)"
    modules = sorted(name for name in MODULES if name.count(".") == 1)
    before = python(f"import scisparse\n{show}")
    assert python(f"import {', '.join(modules)}\n{show}") == before


def test_the_source_folder_alone_says_how_to_install(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scisparse", tmp_path / "scisparse")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import scisparse"
    # -S: the finder of an editable install would complete the package.
    run = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True)
    assert run.returncode == 1
    assert "ImportError: scisparse was found in its source folder" in run.stderr
    assert "pip install --editable ." in run.stderr


def test_import_loads_nothing_beyond_torch() -> None:
    """Time at import is the time of the modules loaded: xarray alone takes too much of it."""
    loaded = python(
        "import sys, torch, numpy; before = set(sys.modules); import scisparse\n"
        "print(*sorted(set(sys.modules) - before))"
    ).split()
    known = {"numpy", "scisparse", *sys.stdlib_module_names}
    assert "scisparse" in loaded
    assert [name for name in loaded if name.partition(".")[0] not in known] == []


def test_import_reads_no_environment() -> None:
    code = (
        "import os, torch\n"
        "class Unread(dict):\n"
        "    def __getitem__(self, key): raise AssertionError(key)\n"
        "    get = __getitem__\n"
        "os.environ = Unread()\n"
        "import scisparse, scisparse.kernels, scisparse.layers\n"
        "print('ok')"
    )
    assert python(code) == "ok"


compiled = pytest.mark.skipif(isinstance(load(), str), reason="the C++ kernels were not compiled")


@compiled
def test_library_needs_no_openmp_of_its_own() -> None:
    """A second OpenMP runtime would make a second pool of threads."""
    library = load()
    assert isinstance(library, ctypes.CDLL)
    content = Path(library._name).read_bytes()
    assert b"GOMP_parallel" in content or b"__kmpc_fork_call" in content
    assert b"libgomp.so" not in content
    assert b"libomp" not in content


@compiled
def test_library_is_plain_c() -> None:
    library = load()
    assert isinstance(library, ctypes.CDLL)
    assert library._name.endswith("_cpu.abi3.so")
    assert hasattr(library, "scisparse_gather_matmul")
    assert hasattr(library, "scisparse_edge_outer")
    assert not hasattr(library, "PyInit__cpu")
