"""Make a virtual environment that sees only the named distributions, and what they require.

Links instead of copies: made in a second, without a network. scisparse itself is never linked, so
that it must come from the archive that is then installed.

Usage: slim_environment.py FOLDER REQUIREMENT...
"""

from __future__ import annotations

import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OWN = "scisparse"


def main(folder: str, *requirements: str) -> None:
    """Make the environment and link all that `requirements` need."""
    venv.create(folder, clear=True, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = Path(folder, "lib", version, "site-packages")
    found: dict[str, Distribution] = {}
    for text in requirements:
        collect(Requirement(text), found, set())
    for name, dist in found.items():
        if name != OWN:
            link(dist, site)
    print(f"{folder}: {len(found.keys() - {OWN})} distributions")


def collect(
    requirement: Requirement, found: dict[str, Distribution], seen: set[tuple[str, str]]
) -> None:
    """Add the distribution that meets `requirement`, and those that it needs itself, to `found`."""
    name = canonicalize_name(requirement.name)
    found[name] = distribution(name)
    for extra in ("", *requirement.extras):
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for needed in map(Requirement, found[name].requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                collect(needed, found, seen)


def link(dist: Distribution, site: Path) -> None:
    """Link every top-level file and folder of `dist` into `site`."""
    for top in {file.parts[0] for file in dist.files or ()} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(dist.locate_file(top))).resolve())


if __name__ == "__main__":
    main(*sys.argv[1:])
