"""Latitudes and longitudes of cells that no index tells apart, as on a curvilinear grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.errors import DataError
from scisparse.grids.discovery import role_of
from scisparse.grids.masks import DEGREES

__all__ = ["check_places"]


def check_places(first: xr.Dataset, second: xr.Dataset, names: tuple[str, str]) -> None:
    """Raise where cells that would be matched by their number lie elsewhere.

    Only cells whose latitude or longitude both tell are compared; where all dims have an index,
    cells are known by it. Latitude and longitude of exactly 0 tell nothing: files of ocean models
    have them where land is left out.

    Parameters
    ----------
    first, second
        What is to be matched.
    names
        Names for errors.

    Raises
    ------
    DataError
        Latitudes or longitudes differ; the coordinate and two values are named.
    """
    for ours, theirs in _pairs(first, second):
        numbered = [
            dim for dim in ours.dims if dim not in ours.indexes or dim not in theirs.indexes
        ]
        same_dims = {*ours.dims} == {*theirs.dims}
        if not numbered or not same_dims or any(ours.sizes[d] != theirs.sizes[d] for d in numbered):
            continue
        known = _known(first, ours), _known(second, theirs).transpose(*ours.dims)
        a, b = (_degrees(each) for each in xr.align(*known))
        away = np.abs(a - b)
        if role_of(ours) == "lon":
            away = np.minimum(away % 360.0, -away % 360.0)
        wrong = away > DEGREES  # not so where one is missing, as on land
        if wrong.any():
            place = np.unravel_index(int(np.nanargmax(away)), away.shape)
            raise DataError(
                f"cells of {names[1]} are not those of {names[0]}: {str(ours.name)!r} differs at "
                f"{wrong.sum()} of {wrong.size}, such as {a[place]:.6g} and {b[place]:.6g}; bring "
                f"both to the same cells in the same order, or give dims {numbered} coordinates to "
                "match them by"
            )


def _pairs(first: xr.Dataset, second: xr.Dataset) -> Iterator[tuple[xr.DataArray, xr.DataArray]]:
    """Latitudes of both, then longitudes: by name where there are several."""
    for role in ("lat", "lon"):
        found = [
            {n: c for n, c in data.coords.items() if c.ndim and role_of(c) == role}
            for data in (first, second)
        ]
        if all(len(each) == 1 for each in found):
            yield next(iter(found[0].values())), next(iter(found[1].values()))
        else:
            yield from ((found[0][name], found[1][name]) for name in found[0] if name in found[1])


def _known(data: xr.Dataset, coordinate: xr.DataArray) -> xr.DataArray:
    """Coordinate, missing in cells where latitude and longitude are both 0."""
    roles = {"lat", "lon"} - {role_of(coordinate)}
    others = [
        other
        for other in data.coords.values()
        if role_of(other) in roles and {*other.dims} == {*coordinate.dims}
    ]
    told = coordinate != 0.0
    for other in others:
        told = told | (other != 0.0)
    return coordinate.where(told) if others else coordinate


def _degrees(coordinate: xr.DataArray) -> NDArray[np.float64]:
    values = np.asarray(coordinate.values, dtype=np.float64)
    return np.rad2deg(values) if "rad" in str(coordinate.attrs.get("units", "")) else values
