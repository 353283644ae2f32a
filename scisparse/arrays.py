"""The only door between xarray and arrays: dims by name in any order, one canonical order inside, the caller's order back.

A field is the same field whether latitude runs up or down, longitude starts at 0 or at -180, or its dims are transposed.
:class:`Frame` maps every such form onto one canonical order (latitude and projected axes rising, longitude eastward from
the first meridian after the widest gap), so that what is computed inside does not depend on the form, and back.
"""

from __future__ import annotations

import datetime
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.errors import DataError
from scisparse.grids import Grid, LatLonGrid, ProjectedGrid, from_xarray
from scisparse.grids.discovery import grid_dims

__all__ = ["Axes", "Frame", "add_history", "check_units", "find_axes", "find_dim"]

FloatArray = NDArray[np.float64]

_NAMES = {
    "time": ("time", "valid_time", "forecast_reference_time", "init_time", "date", "s", "t"),
    "member": ("member", "members", "realization", "realisation", "number", "ensemble", "ens", "m"),
    "lead": ("lead", "lead_time", "step", "forecast_period", "leadtime", "l"),
}
_STANDARD_NAMES = {
    "time": ("time", "forecast_reference_time"),
    "member": ("realization",),
    "lead": ("forecast_period",),
}
_AXIS = {"time": "T", "member": "E"}
_ANGLE_TOLERANCE = 1e-4  # degrees: coordinates are often stored in single precision
_Object = xr.DataArray | xr.Dataset


@dataclass(frozen=True)
class Axes:
    """Names of the dims of a forecast or an observation, by what they are.

    Attributes
    ----------
    time, member
        Names, or ``None`` when there is no such dim.
    space
        Dims of the grid, in its order.
    extra
        All other dims.
    """

    time: str | None
    member: str | None
    space: tuple[str, ...]
    extra: tuple[str, ...]


def find_dim(obj: _Object, role: str) -> str | None:
    """Find the dim that is the `role`, by CF attributes, then by name.

    Parameters
    ----------
    obj
        DataArray or Dataset.
    role
        ``"time"``, ``"member"`` or ``"lead"``; the dims of the grid are in :func:`find_axes`.

    Returns
    -------
    str or None
        The name; ``None`` when there is none.

    Examples
    --------
    >>> import xarray as xr
    >>> find_dim(xr.DataArray([[0.0]], dims=("Realization", "valid_time")), "member")
    'Realization'
    """
    dims = [str(dim) for dim in obj.dims]
    for dim in dims:
        attrs = obj.coords[dim].attrs if dim in obj.coords else {}
        if attrs.get("standard_name") in _STANDARD_NAMES[role]:
            return dim
    for dim in dims:
        attrs = obj.coords[dim].attrs if dim in obj.coords else {}
        if role in _AXIS and attrs.get("axis") == _AXIS[role]:
            return dim
    for dim in dims:
        if dim.lower() in _NAMES[role]:
            return dim
    return None


def find_axes(obj: _Object) -> Axes:
    """Find time, member and space dims of `obj`.

    Raises
    ------
    DataError
        The grid cannot be found.
    """
    space = grid_dims(obj)
    rest = [str(dim) for dim in obj.dims if dim not in space]
    time, member = find_dim(obj, "time"), find_dim(obj, "member")
    time = time if time in rest else None
    member = member if member in rest and member != time else None
    extra = tuple(dim for dim in rest if dim not in (time, member))
    return Axes(time, member, space, extra)


@dataclass(frozen=True)
class Frame:
    """How one xarray object lies on a canonical grid.

    Attributes
    ----------
    grid
        The canonical grid.
    space
        The object's dims for the grid's axes.
    take
        For each axis, the object's index of each canonical point.
    """

    grid: Grid
    space: tuple[str, ...]
    take: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, obj: _Object) -> Self:
        """Frame of `obj` on its own canonical grid.

        Raises
        ------
        DataError
            The grid cannot be found, or a coordinate repeats.
        """
        space = grid_dims(obj)
        grid = from_xarray(obj)
        if isinstance(grid, LatLonGrid):
            latitude, longitude = np.rad2deg(grid.lat_axis), np.rad2deg(grid.lon_axis)
            eastward = _eastward(longitude)
            take = (np.argsort(latitude, kind="stable"), np.argsort(eastward, kind="stable"))
            # Rounding makes 0..360 and -180..180 forms of one longitude the same number.
            axes = (np.round(latitude[take[0]], 9), np.round(eastward[take[1]], 9))
            return cls(LatLonGrid.from_degrees(*axes), space, take)
        if isinstance(grid, ProjectedGrid):
            take = (np.argsort(grid.y_axis), np.argsort(grid.x_axis))
            return cls(ProjectedGrid(grid.y_axis[take[0]], grid.x_axis[take[1]]), space, take)
        return cls(grid, space, (np.arange(grid.size),))

    @classmethod
    def on(cls, obj: _Object, grid: Grid, what: str) -> Self:
        """Frame of `obj` on a canonical grid that is known.

        Parameters
        ----------
        obj
            DataArray or Dataset; it may hold more columns or rows than the grid only if none is missing.
        grid
            Canonical grid, of an earlier :meth:`of`.
        what
            Name of `obj` for errors.

        Raises
        ------
        DataError
            `obj` lies on another grid; both are named.
        """
        frame = cls.of(obj)
        if not same_points(frame.grid, grid):
            raise DataError(
                f"{what} is on {frame.grid!r} but {grid!r} is needed; interpolate it to that grid first "
                "(for example with .interp_like)"
            )
        return cls(grid, frame.space, frame.take)

    def values(self, array: xr.DataArray, leading: Sequence[str]) -> FloatArray:
        """Values of `array` as float64 ``[*leading, *grid.shape]`` in canonical order; missing dims have length 1."""
        absent = [dim for dim in leading if dim not in array.dims]
        ordered = array.expand_dims(absent).transpose(*leading, *self.space)
        values = np.asarray(ordered.values, dtype=np.float64)
        for axis, take in enumerate(self.take):
            values = np.take(values, take, axis=len(leading) + axis)
        return values

    def wrap(
        self, values: NDArray[Any], leading: Sequence[Hashable], template: _Object
    ) -> xr.DataArray:
        """Give canonical values ``[*leading, *grid.shape]`` the coordinates and the order of `template`.

        Parameters
        ----------
        values
            In canonical order.
        leading
            Names of the axes before the grid's.
        template
            Object that the frame was made of; its coordinates along these dims are kept with their attributes.
        """
        for axis, take in enumerate(self.take):
            values = np.take(values, np.argsort(take), axis=len(leading) + axis)
        dims = [*leading, *self.space]
        coords = {
            name: coord for name, coord in template.coords.items() if set(coord.dims) <= set(dims)
        }
        array = xr.DataArray(values, dims=dims, coords=coords)
        order = [dim for dim in template.dims if dim in dims]
        return array.transpose(*[dim for dim in dims if dim not in order], *order)


def same_points(first: Grid, second: Grid) -> bool:
    """Whether two canonical grids have the same points; masks do not count, nor rounding of coordinates."""
    if type(first) is not type(second) or first.shape != second.shape:
        return False
    if isinstance(first, ProjectedGrid) and isinstance(second, ProjectedGrid):
        return bool(np.allclose(first.positions(), second.positions(), rtol=1e-6, atol=1.0))
    tolerance = np.deg2rad(_ANGLE_TOLERANCE)
    return bool(np.linalg.norm(first.positions() - second.positions(), axis=1).max() < tolerance)


def check_units(what: str, units: str | None, expected: str | None) -> None:
    """Raise unless units agree, as far as both are known.

    Raises
    ------
    DataError
        They differ; both are named.
    """
    if units is None or expected is None or units.strip() == expected.strip():
        return
    raise DataError(
        f"{what} has units {units!r} but {expected!r} is needed; convert it (and set attrs['units']) first"
    )


def add_history(dataset: xr.Dataset, action: str, before: Mapping[Hashable, Any]) -> xr.Dataset:
    """Prepend `action`, dated, to the CF ``history`` of the data that `dataset` was made from."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [f"{stamp}: {action}", str(before.get("history", "")).strip()]
    return dataset.assign_attrs(history="\n".join(line for line in lines if line))


def _eastward(longitude: FloatArray) -> FloatArray:
    """Longitudes counted eastward without a jump, from the first one after the widest gap on the circle."""
    # Rounded, so that single-precision forms of one longitude fall together.
    circle = np.round(np.mod(longitude, 360.0), 5) % 360.0
    rising = np.sort(circle)
    gaps = np.diff(rising, append=rising[0] + 360.0)
    widest = int(np.argmax(np.roll(gaps, 1) > gaps.max() - 1e-3))
    return np.where(circle < rising[widest] - 1e-9, circle + 360.0, circle)
