"""Strict mypy over every Python file of the project; fails when mypy has seen fewer.

The folders `layers/` and `kernels/` are installed as `scisparse.layers` and `scisparse.kernels`,
which mypy cannot know. So all files are linked where their import names say, and mypy is given
each one by name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / ".typecheck"
NOT_SOURCES = {"build", "dist", "demo_output"}


def main() -> int:
    """Link, check, count; return mypy's exit status, or 1 when files were left out."""
    sources = sorted(python_files())
    links = link_tree(sources)
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", *links],
        cwd=TREE,
        env=os.environ | {"MYPYPATH": "tests", "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")},
        capture_output=True,
        text=True,
    )
    print(result.stdout, result.stderr, sep="", end="")
    found = re.search(r"(?:no issues found in|checked) (\d+) source file", result.stdout)
    checked = int(found[1]) if found else 0
    if checked != len(sources):
        print(f"mypy checked {checked} files, but there are {len(sources)}")
        return 1
    return result.returncode


def python_files() -> Iterator[Path]:
    """Every Python file that is ours, relative to the root."""
    for folder, subfolders, files in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if is_source(name)]
        for name in files:
            if name.endswith(".py"):
                yield (Path(folder) / name).relative_to(ROOT)


def is_source(folder: str) -> bool:
    """Whether a folder of this name can hold our own files."""
    hidden = folder.startswith(".") and folder != ".ci"
    return not hidden and folder not in NOT_SOURCES and not folder.endswith(".egg-info")


def link_tree(sources: list[Path]) -> list[str]:
    """Make the tree of links afresh; return each link relative to it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    mapped = {
        folder: package.replace(".", "/")
        for package, folder in settings["tool"]["setuptools"]["package-dir"].items()
    }
    shutil.rmtree(TREE, ignore_errors=True)
    links = []
    for source in sources:
        top, *rest = source.parts
        link = Path(mapped.get(top, top.lstrip(".")), *rest)
        (TREE / link).parent.mkdir(parents=True, exist_ok=True)
        (TREE / link).symlink_to(ROOT / source)
        links.append(str(link))
    return links


if __name__ == "__main__":
    sys.exit(main())
