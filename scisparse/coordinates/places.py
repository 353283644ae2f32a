"""Latitudes and longitudes of cells, against the number or the index that they are matched by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.errors import DataError
from scisparse.grids import from_xarray
from scisparse.grids.discovery import role_of
from scisparse.grids.masks import DEGREES

__all__ = ["check_places", "check_points"]


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


def check_points(first: xr.Dataset, second: xr.Dataset, dim: str, names: tuple[str, str]) -> None:
    """Raise where points that would be matched by their index are others: it may number rows.

    That is where one lies at the place of another one, or most of them nearer to another one. Else
    two files may tell of one station with other digits.

    Parameters
    ----------
    first, second
        What is to be matched, each on points of its own.
    dim
        Dim of the points, which both have an index of.
    names
        Names for errors.

    Raises
    ------
    DataError
        The index means other points; one of them is named.
    """
    from scipy.spatial import cKDTree

    index = first.indexes[dim].get_indexer(second.indexes[dim])
    shared = np.flatnonzero(index >= 0)
    ours, theirs = (from_xarray(data).positions() for data in (first, second))
    distance, nearest = cKDTree(ours).query(theirs[shared])
    near = np.deg2rad(DEGREES)
    own = np.linalg.norm(ours[index[shared]] - theirs[shared], axis=1)
    others = (own >= near) & (distance < own)
    sure = others & (distance < near)
    if sure.any() or 2 * others.sum() > others.size:
        wrong = int(np.argmax(sure if sure.any() else others))
        label, other = second[dim].values[shared[wrong]], first[dim].values[nearest[wrong]]
        raise DataError(
            f"points of {names[1]} are not those of {names[0]}: where {names[1]} has {dim!r} "
            f"{label}, {names[0]} has {other}, and {label} elsewhere; give the same points of both "
            f"the same {dim!r}"
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
