"""Grids: where the points of a field lie, and how large their cells are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scisparse.errors import GridError
from scisparse.grids.base import EARTH_RADIUS as EARTH_RADIUS
from scisparse.grids.base import Grid as Grid
from scisparse.grids.discovery import from_xarray as from_xarray
from scisparse.grids.equal_area import healpix as healpix
from scisparse.grids.gaussian import reduced_gaussian as reduced_gaussian
from scisparse.grids.icosahedron import icosahedral as icosahedral
from scisparse.grids.icosahedron import icosahedral_faces as icosahedral_faces
from scisparse.grids.latlon import LatLonGrid as LatLonGrid
from scisparse.grids.projected import ProjectedGrid as ProjectedGrid
from scisparse.grids.unstructured import UnstructuredGrid as UnstructuredGrid

__all__ = [
    "EARTH_RADIUS",
    "Grid",
    "LatLonGrid",
    "ProjectedGrid",
    "UnstructuredGrid",
    "from_xarray",
    "grid_from_dict",
    "healpix",
    "icosahedral",
    "icosahedral_faces",
    "reduced_gaussian",
]

_KINDS: dict[str, type[Grid]] = {c.kind: c for c in (LatLonGrid, ProjectedGrid, UnstructuredGrid)}


def grid_from_dict(values: Mapping[str, Any]) -> Grid:
    """Read a grid of any kind from what its ``to_dict`` wrote.

    Raises
    ------
    GridError
        If the kind is unknown or an entry is missing.

    Examples
    --------
    >>> grid = LatLonGrid.from_degrees([10, 20], [0, 1, 2])
    >>> grid_from_dict(grid.to_dict()) == grid
    True
    """
    kind = values.get("kind")
    if kind not in _KINDS:
        raise GridError(f"`kind` (={kind!r}) must be one of {sorted(_KINDS)}")
    try:
        return _KINDS[kind].from_dict(values)
    except KeyError as error:
        raise GridError(
            f"`values` of a grid of kind {kind!r} must have an entry {error.args[0]!r}"
        ) from error
