"""Compare the source archive and the wheel in a folder with the tree: nothing missing or extra."""

from __future__ import annotations

import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(folder: str) -> int:
    """Print every difference; return 1 when there is one."""
    (wheel,) = Path(folder).glob("*.whl")
    (archive,) = Path(folder).glob("*.tar.gz")
    problems = [*wheel_problems(wheel), *archive_problems(archive)]
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


def wheel_problems(wheel: Path) -> list[str]:
    """Differences between the wheel and the Python files of the mapped folders."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    expected = {"scisparse/py.typed", "scisparse/kernels/_cpu.abi3.so"}
    for package, folder in settings["tool"]["setuptools"]["package-dir"].items():
        for path in (path for kind in ("*.py", "*.cu") for path in (ROOT / folder).rglob(kind)):
            inside = path.relative_to(ROOT / folder).as_posix()
            expected.add(f"{package.replace('.', '/')}/{inside}")
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
    return differences(wheel.name, held, expected)


def archive_problems(archive: Path) -> list[str]:
    """Sources that the archive lacks."""
    kinds = (
        "kernels/**/*.[ch]pp",
        "kernels/**/*.cu",
        "tests/**/*.cpp",
        "scisparse/**/*.py",
        "kernels/**/*.py",
        "layers/**/*.py",
    )
    others = ("tests/**/*.py", "examples/**/*.py", "setup.py", "constraints.txt", ".ci/*.py")
    files = [path for kind in (*kinds, *others) for path in ROOT.glob(kind)]
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    return differences(archive.name, held & expected, expected)


def differences(name: str, held: set[str], expected: set[str]) -> list[str]:
    """One line for each file that is missing or should not be there."""
    missing = [f"{name}: lacks {file}" for file in sorted(expected - held)]
    return missing + [f"{name}: should not hold {file}" for file in sorted(held - expected)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
