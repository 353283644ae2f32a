"""The only door between xarray and arrays: dims by name, in any order, and back.

A field is the same field whether latitude runs up or down, longitude starts at 0 or at -180, or its
dims are transposed. :class:`Frame` maps every such form onto one canonical order (latitude and
projected axes rising, longitude eastward from the first meridian after the widest gap), so that
what is computed inside does not depend on the form, and back.
"""

from __future__ import annotations

import datetime
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.errors import DataError, GridError
from scisparse.grids import Grid, LatLonGrid, ProjectedGrid, UnstructuredGrid, from_xarray
from scisparse.grids.canonical import (
    canonical_points,
    check_shape,
    check_values,
    eastward,
    with_areas,
)
from scisparse.grids.discovery import grid_dims, has_grid, places_among, role_of
from scisparse.grids.same import Labels, difference, labels_of, order_of
from scisparse.grids.same import same_points as same_points

__all__ = [
    "Axes",
    "Frame",
    "add_history",
    "check_object",
    "find_axes",
    "find_dim",
    "has_role",
    "same_points",
    "tells_valid_time",
    "with_coordinates",
]

FloatArray = NDArray[np.float64]

_NAMES = {
    "time": (
        "time", "valid_time", "forecast_reference_time", "init_time", "init", "start_time",
        "start_date", "sdate", "date", "s", "t",
    ),
    "member": ("member", "members", "realization", "realisation", "number", "ensemble", "ens", "m"),
    "lead": (
        "lead", "lead_time", "step", "forecast_period", "leadtime", "l", "prediction_timedelta",
        "forecastmonth", "leadtime_month", "ftime",
    ),
}  # fmt: skip
_STANDARD_NAMES = {
    "time": ("time", "forecast_reference_time"),
    "member": ("realization",),
    "lead": ("forecast_period",),
}
_AXIS = {"time": "T", "member": "E"}
_PLACES = ("latitude", "longitude")
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

    The order of the dims does not count: with both, ``time`` is the time and ``init_time`` another
    dim.

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
    signs = {str(dim): _signs(obj, str(dim), role) for dim in obj.dims}
    found = [dim for dim in signs if signs[dim] < _signs(xr.Dataset(), "", role)]
    # Never the order of dims: a transposed field is the same field.
    return min(found, key=lambda dim: (signs[dim], dim), default=None)


def has_role(coordinate: xr.DataArray, role: str) -> bool:
    """Whether a coordinate, with a dim or of one value, would be the `role` as a dim."""
    return _signs(coordinate, str(coordinate.name), role) < _signs(xr.Dataset(), "", role)


def _signs(obj: _Object, dim: str, role: str) -> tuple[int, int, int]:
    """Places of a dim among the standard names, axes and names of a role; past the end if none."""
    attrs = obj.coords[dim].attrs if dim in obj.coords else {}
    axes = (_AXIS[role],) if role in _AXIS else ()
    return (
        _place(attrs.get("standard_name"), _STANDARD_NAMES[role]),
        _place(attrs.get("axis"), axes),
        _place(dim.lower(), _NAMES[role]),
    )


def _place(value: object, known: tuple[str, ...]) -> int:
    return next((place for place, name in enumerate(known) if name == value), len(known))


def find_axes(obj: _Object) -> Axes:
    """Find time, member and space dims of `obj`.

    Raises
    ------
    GridError
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
    """How one xarray object lies on a canonical grid: the way from a DataArray to a layer and back.

    Build layers on :attr:`grid`; that of `grids.from_xarray` keeps the order of coordinates.

    Attributes
    ----------
    grid
        The canonical grid.
    space
        The object's dims for the grid's axes.
    take
        For each axis, the object's index of each canonical point.

    Examples
    --------
    To ``[B, N, C]``, here times, points and one channel, and back:

    >>> import numpy as np, xarray as xr
    >>> coords = {"lon": [0, 90, 180, 270], "lat": [30, 0, -30], "time": [1, 2]}
    >>> field = xr.DataArray(np.random.rand(4, 3, 2), coords, ("lon", "lat", "time"))
    >>> frame = Frame.of(field)
    >>> x = frame.values(field, ["time"]).reshape(2, frame.grid.size, 1)
    >>> frame.wrap(x.reshape(2, *frame.grid.shape), ["time"], field).equals(field)
    True
    """

    grid: Grid
    space: tuple[str, ...]
    take: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, obj: _Object, what: str = "data") -> Self:
        """Frame of `obj` on its own canonical grid.

        Points that do not cover the sphere, such as stations, count equally.

        Parameters
        ----------
        obj
            DataArray or Dataset.
        what
            Name of `obj` for errors.

        Raises
        ------
        GridError
            The grid cannot be found, or a coordinate is not sorted, repeats or is empty.
        """
        frame = cls._found(obj, what)
        return cls(with_areas(frame.grid), frame.space, frame.take)

    @classmethod
    def _found(cls, obj: _Object, what: str) -> Self:
        """Frame of `obj`; areas of points, which take long, are not derived."""
        space: tuple[str, ...] = ()
        try:
            space = grid_dims(obj)
            grid = from_xarray(obj)
        except GridError as error:
            _check_sorted(obj, space, what)  # says it with the names and numbers of the data
            raise GridError(f"{what}: {error}") from error
        if isinstance(grid, LatLonGrid):
            latitude, longitude = np.rad2deg(grid.lat_axis), eastward(np.rad2deg(grid.lon_axis))
            take = (np.argsort(latitude), np.argsort(longitude))
            axes = (np.round(latitude[take[0]], 9), longitude[take[1]])
            return cls(LatLonGrid.from_degrees(*axes), space, take)
        if isinstance(grid, ProjectedGrid):
            take = (np.argsort(grid.y_axis), np.argsort(grid.x_axis))
            y_axis, x_axis = grid.y_axis[take[0]], grid.x_axis[take[1]]
            places = (grid.lat, grid.lon) if grid.has_lat_lon else ()
            fields = (place.reshape(grid.shape)[np.ix_(*take)] for place in places)
            return cls(ProjectedGrid(y_axis, x_axis, None, *fields), space, take)
        return cls(canonical_points(grid), space, (np.arange(grid.size),))

    @classmethod
    def on(cls, obj: _Object, grid: Grid, what: str, labels: Labels | None = None) -> Self:
        """Frame of `obj` on a canonical grid that is known, of which points may come in any order.

        Parameters
        ----------
        obj
            DataArray or Dataset.
        grid
            Canonical grid, of an earlier :meth:`of`.
        what
            Name of `obj` for errors.
        labels
            Names of the points of `grid`, which tell those apart that lie at one place.

        Raises
        ------
        DataError
            `obj` lies on another grid; both are named.
        """
        frame = cls._found(obj, what)
        order = order_of(frame.grid, grid, (labels_of(obj), labels) if labels else ({}, {}))
        if order is not None:
            return cls(grid, frame.space, (order,))
        if not same_points(frame.grid, grid):
            told = difference(frame.grid, grid)
            raise DataError(f"{what} is on {frame.grid!r} but {grid!r} is needed{told}")
        return cls(grid, frame.space, frame.take)

    def values(self, array: xr.DataArray, leading: Sequence[str]) -> FloatArray:
        """Values of `array` as float64 ``[*leading, *grid.shape]``, in canonical order.

        Dims of `leading` that it does not have get length 1. It may have the points in another
        order than the object of the frame; without coordinates it is taken to have the same.

        Raises
        ------
        DataError
            `array` lies on another grid, has dims besides, or holds no numbers.
        """
        frame = self._for(array)
        check_values(array, leading, frame.space)
        absent = [dim for dim in leading if dim not in array.dims]
        ordered = array.expand_dims(absent).transpose(*leading, *frame.space)
        values = ordered.values
        for axis, take in enumerate(frame.take, len(leading)):
            values = _taken(values, take, axis)
        return np.array(values, dtype=np.float64, order="C")

    def wrap(
        self, values: NDArray[Any], leading: Sequence[Hashable], template: _Object
    ) -> xr.DataArray:
        """Give canonical values ``[*leading, *grid.shape]`` the coordinates of `template`.

        Parameters
        ----------
        values
            In canonical order.
        leading
            Names of the axes before the grid's.
        template
            Object that the frame was made of, or another on the same points; its coordinates along
            these dims are kept, with their attributes, and the order of its dims.

        Raises
        ------
        DataError, ShapeError
            `template` lies on another grid, or `values` have another shape.
        """
        check_shape(np.shape(values), leading, self.grid.shape)
        frame = self._for(template)
        for axis, take in enumerate(frame.take):
            values = np.take(values, np.argsort(take), axis=len(leading) + axis)
        dims = [*leading, *frame.space]
        coords = {
            name: coord for name, coord in template.coords.items() if set(coord.dims) <= set(dims)
        }
        array = xr.DataArray(values, dims=dims, coords=coords)
        order = [dim for dim in template.dims if dim in dims]
        return array.transpose(*[dim for dim in dims if dim not in order], *order)

    def _for(self, obj: _Object) -> Self:
        """Frame of another object on the same points, in its order where its coordinates tell."""
        if not has_grid(obj):
            return self
        grid = self._found(obj, "the array").grid
        points = isinstance(grid, UnstructuredGrid) and (grid.size,) == self.take[0].shape
        if points:  # those at one place may be told apart by more than is known here
            order = order_of(UnstructuredGrid.from_grid(grid, self.take[0]), self.grid)
            if order is not None and (order[1:] > order[:-1]).all():
                return self
        return self.on(obj, self.grid, "the array")


def with_coordinates(data: _Object, target: str | None = None) -> _Object:
    """Make coordinates of latitudes, longitudes and valid times that a file holds as variables.

    Never of `target`, nor of what changes with time, member or lead time, as along the track of a
    storm, if it only looks like a place or there are coordinates that tell places.

    Examples
    --------
    >>> import xarray as xr
    >>> lat = ("cell", [1.0, 2.0], {"standard_name": "latitude"})
    >>> list(with_coordinates(xr.Dataset({"lat": lat, "t2m": ("cell", [280.0, 281.0])})).coords)
    ['lat']
    """
    if not isinstance(data, xr.Dataset):
        return data
    others = [each for name, each in data.data_vars.items() if name != target]
    fixed = [each.name for each in others if not any(find_dim(each, role) for role in _NAMES)]
    roles = {role_of(coordinate) for coordinate in data.coords.values()}
    places = [each for each in others if each.attrs.get("standard_name") in _PLACES]
    told = [each.name for each in others if tells_valid_time(each) and each.dtype.kind in "MO"]
    told += [each.name for each in places if each.name in fixed or role_of(each) not in roles]
    found = [*told, *places_among(data, fixed, target)]
    # Where there is nothing else, one of them is the field.
    return data if {*found} == {*data.data_vars} else data.set_coords(found)


def tells_valid_time(variable: xr.DataArray) -> bool:
    """Whether a variable says that it holds valid times."""
    return variable.name == "valid_time" or variable.attrs.get("standard_name") == "time"


def check_object(obj: object, what: str) -> None:
    """Raise :class:`DataError` unless `obj`, called `what` in it, is a DataArray or a Dataset."""
    if not isinstance(obj, xr.DataArray | xr.Dataset):
        raise DataError(
            f"{what} is of type {type(obj).__name__}; it must be an xarray DataArray or Dataset"
        )


def add_history(dataset: xr.Dataset, action: str, before: Mapping[Hashable, Any]) -> xr.Dataset:
    """Prepend `action`, dated, to the CF ``history`` of the data that `dataset` was made from."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [f"{stamp}: {action}", str(before.get("history", "")).strip()]
    return dataset.assign_attrs(history="\n".join(line for line in lines if line))


def _taken(values: NDArray[Any], take: NDArray[np.int64], axis: int) -> NDArray[Any]:
    """Values in another order along an axis, not copied where they rise or fall as they are."""
    rising = np.arange(take.size)
    for order, step in ((rising, 1), (rising[::-1], -1)):
        if np.array_equal(take, order):
            return values[(slice(None),) * axis + (slice(None, None, step),)]
    return np.take(values, take, axis=axis)


def _check_sorted(obj: _Object, space: tuple[str, ...], what: str) -> None:
    """Raise when an axis of a grid with rows and columns is empty, repeats or is not sorted."""
    for axis, dim in enumerate(space if len(space) == 2 else ()):
        if obj.sizes[dim] == 0:
            raise GridError(f"{what}: dim {dim!r} is empty; check the selection")
        if dim not in obj.coords or obj[dim].dtype.kind not in "fiu":
            continue
        values = obj[dim].values
        turn = 2 * np.pi if "rad" in str(obj[dim].attrs.get("units", "")) else 360.0
        steps = np.diff(np.unwrap(values, period=turn) if axis == 1 else values)
        wrong = steps * np.sign(np.median(steps)) <= 0
        if wrong.any():
            place = int(np.argmax(wrong))
            raise GridError(
                f"{what}: coordinate {dim!r} must strictly rise or strictly fall, but values "
                f"{place} and {place + 1} are {values[place]:.9g} and {values[place + 1]:.9g}; "
                f"sort it with .sortby({dim!r}), keep one of each"
            )
