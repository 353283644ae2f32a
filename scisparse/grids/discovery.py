"""Grids of xarray objects, found by CF attributes, then units, then names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scisparse.errors import GridError
from scisparse.grids.base import FloatArray, Grid
from scisparse.grids.latlon import LatLonGrid
from scisparse.grids.projected import ProjectedGrid
from scisparse.grids.unstructured import UnstructuredGrid

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["from_xarray", "grid_dims", "has_grid", "places_among", "role_of"]

_STANDARD_NAMES = {
    "latitude": "lat",
    "longitude": "lon",
    "projection_y_coordinate": "y",
    "projection_x_coordinate": "x",
}
_NORTH = {"degrees_north", "degree_north", "degrees_n", "degree_n", "degreesn", "degreen"}
_EAST = {"degrees_east", "degree_east", "degrees_e", "degree_e", "degreese", "degreee"}
_RADIANS = {"radian", "radians", "rad"}
_POLE = np.deg2rad(90.0001)  # rounding of single precision is allowed
_METRES = {"m": 1.0, "metre": 1.0, "metres": 1.0, "meter": 1.0, "meters": 1.0}
_METRES |= {"km": 1e3, "kilometre": 1e3, "kilometres": 1e3, "kilometer": 1e3, "kilometers": 1e3}
_NAMES = {
    "lat": "lat", "latitude": "lat", "clat": "lat", "nav_lat": "lat", "xlat": "lat",
    "lon": "lon", "longitude": "lon", "clon": "lon", "nav_lon": "lon", "xlong": "lon",
    "y": "y", "projection_y_coordinate": "y", "x": "x", "projection_x_coordinate": "x",
}  # fmt: skip
_ROTATED = ("grid_latitude", "grid_longitude")  # CF names for a rotated pole: no latitude
_ROLES = {"lat": "latitude", "lon": "longitude", "y": "projection y", "x": "projection x"}


def from_xarray(data: xr.Dataset | xr.DataArray) -> Grid:
    """Find the grid of a Dataset or a DataArray, in the order of its coordinates.

    The grid is (latitude, longitude) or (y, x) whatever the order of the dims of `data`, and its
    axes run as the coordinates of `data` do: its point number k is point k of the transposed data,
    not of ``data.values.reshape(-1)``. To get values in the order of a grid, and back, use
    :class:`scisparse.arrays.Frame`, whose grid is the same for every form of a field.

    Coordinates are known by CF ``standard_name`` or ``axis``, else by units (``degrees_north``),
    else by name. One-dimensional latitude and longitude on dims of their own give a ``LatLonGrid``;
    on one dim in common an ``UnstructuredGrid``; projection coordinates (metres or kilometres) give
    a ``ProjectedGrid``, with latitude and longitude when there are two-dimensional ones that no
    cell lacks. Angles are radians when their units say so, else degrees.

    Parameters
    ----------
    data
        Object with coordinates; its values are not read.

    Returns
    -------
    Grid
        Without a mask: see ``Grid.with_mask``.

    Raises
    ------
    GridError
        If there is no grid, or more than one, or its units are not known; the message names what
        was found.

    References
    ----------
    CF conventions, chapters 4 and 5. https://cfconventions.org

    Examples
    --------
    >>> import xarray as xr
    >>> coords = {"lat": [5, 6], "lon": [0, 1]}
    >>> from_xarray(xr.DataArray([[0, 1], [2, 3]], coords, dims=("lat", "lon")))
    LatLonGrid(2 x 2, lat 5 to 6, lon 0 to 1)

    A field that is (longitude, latitude), north first, as ``[B, N, C]`` for a layer on its grid:

    >>> from scisparse.arrays import Frame
    >>> field = xr.DataArray([[1, 2], [3, 4], [5, 6]], {"lon": [0, 1, 2], "lat": [6, 5]})
    >>> from_xarray(field)  # its values are of shape 3 x 2
    LatLonGrid(2 x 3, lat 6 to 5, lon 0 to 2)
    >>> frame = Frame.of(field)
    >>> frame.grid  # build patterns and layers on this one
    LatLonGrid(2 x 3, lat 5 to 6, lon 0 to 2)
    >>> frame.values(field, []).reshape(1, frame.grid.size, 1)[0, :, 0]
    array([2., 4., 6., 1., 3., 5.])
    """
    first, second, around = _coordinates(data)
    if around is not None:
        return _projected(first, second, *around)
    lat, lon = first, second
    if lat.ndim == 1 and lon.ndim == 1:
        lat_axis, lon_axis = _radians(lat), _radians(lon)
        if np.abs(lat_axis).max(initial=0.0) > _POLE:
            raise GridError(
                f"`{lat.name}` has a latitude of {np.rad2deg(np.abs(lat_axis).max()):.6g} degrees, "
                "which must be at most 90; check its values and units"
            )
        if lat.dims == lon.dims:
            return UnstructuredGrid(lat_axis, lon_axis, dims=(str(lat.dims[0]),))
        return LatLonGrid(lat_axis, lon_axis)
    raise _curvilinear(lat, lon)


def grid_dims(data: xr.Dataset | xr.DataArray) -> tuple[str, ...]:
    """Dims of the grid that :func:`from_xarray` finds, in the order of its axes.

    Raises
    ------
    GridError
        As in :func:`from_xarray`.
    """
    first, second, _ = _coordinates(data)
    return tuple(dict.fromkeys(str(dim) for dim in (*first.dims, *second.dims)))


def has_grid(data: xr.Dataset | xr.DataArray) -> bool:
    """Whether `data` has the coordinates of a grid, though they may break the rules of one.

    A series, a mean over one dim of a grid, and a curvilinear grid have none: no fault of theirs.

    Raises
    ------
    GridError
        There are several coordinates for one of them.
    """
    found = _Coordinates(data)
    y, x, lat, lon = (found.only(role) for role in ("y", "x", "lat", "lon"))
    plane = y is not None and x is not None
    if lat is None or lon is None:
        return plane
    if lat.ndim == 1 and lon.ndim == 1:
        return True
    return plane and any(_units(axis) for axis in (y, x) if axis is not None)


def role_of(coordinate: xr.DataArray) -> str | None:
    """``"lat"``, ``"lon"``, ``"y"``, ``"x"`` or none of these, as :func:`from_xarray` sees it."""
    surest = _surest(coordinate)
    return None if surest is None else surest[1]


def places_among(data: xr.Dataset, names: Sequence[Hashable], target: str | None) -> list[Hashable]:
    """Which of the variables `names` are latitude or longitude of the grid, by any of the signs.

    The grid is that of the variable `target` where there is one; on a plane they have its dims.
    """
    # What only looks like one, by name or units, may be something else where there is one.
    wanted = {"lat", "lon"} - {role_of(coord) for coord in data.coords.values()}
    bounds = {variable.attrs.get("bounds") for variable in data.variables.values()}
    alike = [name for name in names if role_of(data[name]) in wanted and name not in bounds]
    tried = data.set_coords(alike)
    try:
        first, second, around = _coordinates(tried.get(target, tried))
    except GridError:
        return []
    dims = {*first.dims, *second.dims}
    beside = [c for c in around or () if c is not None and {*c.dims} == dims]
    return [c.name for c in (first, second, *beside) if c.name in alike]


_Pair = tuple["xr.DataArray | None", "xr.DataArray | None"]


def _coordinates(
    data: xr.Dataset | xr.DataArray,
) -> tuple[xr.DataArray, xr.DataArray, _Pair | None]:
    """Latitude and longitude; or projection y and x, and the latitude and longitude beside them."""
    found = _Coordinates(data)
    y, x, lat, lon = (found.only(role) for role in ("y", "x", "lat", "lon"))
    if y is not None and x is not None and not _stacked(y, x, lat, lon):
        return y, x, (lat, lon)
    if lat is None or lon is None:
        single = [str(c.name) for c in data.coords.values() if not c.ndim and role_of(c)]
        remedy = f"give {single} dims, with .expand_dims({single})" if single else ""
        raise GridError(
            f"`data` has no grid: latitude {_named(lat)}, longitude {_named(lon)}, "
            f"projection y {_named(y)}, projection x {_named(x)} among {found.listing}; "
            f"{remedy or 'set standard_name attributes'}"
        )
    return lat, lon, None


def _stacked(
    y: xr.DataArray, x: xr.DataArray, lat: xr.DataArray | None, lon: xr.DataArray | None
) -> bool:
    """Whether these are a plane that was stacked into one dim: points, beside their index."""
    if lat is None or lon is None or lat.ndim != 1:
        return False
    return lat.dims == lon.dims == y.dims == x.dims


class _Coordinates:
    """Candidates for each role among the variables of an object."""

    def __init__(self, data: xr.Dataset | xr.DataArray) -> None:
        if not hasattr(data, "coords"):
            raise GridError(f"`data` ({type(data).__name__}) must be a DataArray or a Dataset")
        names = list(data.coords)
        variables = getattr(data, "data_vars", {})
        # Files without a `coordinates` attribute leave coordinates among the variables.
        names += [
            name for name in variables if _by_standard_name(data[name]) or _by_name(data[name])
        ]
        bounds = {data[name].attrs.get("bounds") for name in names}
        self._candidates = [data[name] for name in names if name not in bounds and data[name].ndim]
        # A file may hold a second grid, for variables that are not here.
        used = (
            {dim for name in variables for dim in data[name].dims} if variables else set(data.dims)
        )
        along = [c for c in self._candidates if used.issuperset(c.dims)]
        moving = {c.name for c in along if any(_is_time(data, dim) for dim in c.dims)}
        staying = [c for c in along if c.name not in moving]
        self._candidates = [
            c
            for c in along
            if c.name not in moving or not any(_stays_beside(c, other) for other in staying)
        ]
        self.listing = [str(c.name) for c in self._candidates] or "no coordinates"

    def only(self, role: str) -> xr.DataArray | None:
        """Give the one coordinate of a role, by the surest sign that any has."""
        for sign in _SIGNS:
            matches = [c for c in self._candidates if _role(c, sign) == role]
            if len(matches) > 1:
                raise GridError(
                    f"`data` has {len(matches)} {_ROLES[role]} coordinates "
                    f"{[str(m.name) for m in matches]}; select one variable first"
                )
            if matches:
                return matches[0]
        return None


def _stays_beside(moving: xr.DataArray, other: xr.DataArray) -> bool:
    """Whether another coordinate is of a grid, beside what moves, such as the centre of a storm.

    Not numbers of rows and columns along which latitudes move that are told by a surer sign.
    """
    if role_of(moving) != role_of(other):
        return False
    apart = set(other.dims).isdisjoint(moving.dims)
    return apart or _sureness(other) <= _sureness(moving)


def _sureness(coordinate: xr.DataArray) -> int:
    """Place of the surest sign that tells the role of a coordinate."""
    surest = _surest(coordinate)
    return len(_SIGNS) if surest is None else _SIGNS.index(surest[0])


def _is_time(data: xr.Dataset | xr.DataArray, dim: Hashable) -> bool:
    """Whether there are dates along a dim, or its attributes tell of times."""
    if dim not in data.indexes:
        return False
    index, attrs = data.indexes[dim], data[dim].attrs
    dates = index.dtype.kind == "M" or hasattr(index, "calendar")
    return dates or attrs.get("axis") == "T" or attrs.get("standard_name") == "time"


_Sign = Callable[["xr.DataArray"], "str | None"]


def _role(coordinate: xr.DataArray, sign: _Sign) -> str | None:
    """Role by one sign, unless a surer sign gives another."""
    surest = _surest(coordinate)
    return surest[1] if surest is not None and surest[0] is sign else None


def _surest(coordinate: xr.DataArray) -> tuple[_Sign, str] | None:
    """Surest sign that a coordinate has, and the role that it gives."""
    for sign in _SIGNS:
        role = sign(coordinate)
        if role is not None:
            return sign, role
    return None


def _by_standard_name(coordinate: xr.DataArray) -> str | None:
    return _STANDARD_NAMES.get(str(coordinate.attrs.get("standard_name", "")).lower())


def _by_axis(coordinate: xr.DataArray) -> str | None:
    axis = str(coordinate.attrs.get("axis", "")).upper()
    if axis not in ("X", "Y") or coordinate.attrs.get("standard_name") in _ROTATED:
        return None
    units = _units(coordinate)
    if units in _METRES:
        return axis.lower()
    angular = units in _NORTH | _EAST | _RADIANS or units.startswith("degree")
    return {"Y": "lat", "X": "lon"}[axis] if angular else None


def _by_units(coordinate: xr.DataArray) -> str | None:
    units = _units(coordinate)
    return "lat" if units in _NORTH else "lon" if units in _EAST else None


def _by_name(coordinate: xr.DataArray) -> str | None:
    if coordinate.attrs.get("standard_name") in _ROTATED:  # whatever the variable is called
        return None
    return _NAMES.get(str(coordinate.name).lower())


_SIGNS: tuple[_Sign, ...] = (_by_standard_name, _by_axis, _by_units, _by_name)


def _units(coordinate: xr.DataArray) -> str:
    return str(coordinate.attrs.get("units", "")).strip().lower()


def _named(coordinate: xr.DataArray | None) -> str:
    return "missing" if coordinate is None else repr(str(coordinate.name))


def _radians(coordinate: xr.DataArray) -> FloatArray:
    values = _numbers(coordinate)
    units = _units(coordinate)
    if units in _RADIANS:
        return values
    if units and not units.startswith("degree"):
        raise GridError(
            f"`{coordinate.name}` has units {units!r}, which must be degrees or radians"
        )
    return np.deg2rad(values)


def _metres(coordinate: xr.DataArray) -> FloatArray:
    units = _units(coordinate)
    if units not in _METRES:
        given, role = repr(units) if units else "missing", _by_name(coordinate)
        degrees = "degrees_east" if role == "x" else "degrees_north"
        raise GridError(
            f"`{coordinate.name}` has units {given}, which must be 'm' or 'km' on a projected grid "
            f"and {degrees!r} where it is in degrees; set attrs['units']"
        )
    return _numbers(coordinate) * _METRES[units]


def _numbers(coordinate: xr.DataArray) -> FloatArray:
    if coordinate.dtype.kind not in "fiu":
        raise GridError(f"`{coordinate.name}` (dtype {coordinate.dtype}) must hold numbers")
    return np.asarray(coordinate.values, dtype=np.float64)


def _curvilinear(lat: xr.DataArray, lon: xr.DataArray, remedy: str = "") -> GridError:
    dims = tuple(dict.fromkeys((*lat.dims, *lon.dims)))
    if len(dims) > 2:  # as of WRF, whose grid may move
        more = list(map(str, dims[:-2]))
        first = ", ".join(f"{dim}=0" for dim in more)
        single = ", ".join(
            f"{c.name}=data[{c.name!r}].isel({first}, drop=True)" for c in (lat, lon)
        )
        return GridError(
            f"`data`: latitude {lat.name!r} {lat.dims} and longitude {lon.name!r} {lon.dims} are "
            f"told along {more} too; where they are all alike, take the first: "
            f"data.assign_coords({single})"
        )
    return GridError(
        f"`data`: latitude {lat.name!r} {lat.dims} and longitude {lon.name!r} {lon.dims} must be "
        "one-dimensional; stack the two dims into one for a curvilinear grid: "
        f"data.stack(cell={dims}, create_index=False){remedy}"
    )


def _projected(
    y: xr.DataArray, x: xr.DataArray, lat: xr.DataArray | None, lon: xr.DataArray | None
) -> ProjectedGrid:
    if y.ndim != 1 or x.ndim != 1 or y.dims == x.dims:
        raise GridError(
            f"`data`: projection y {y.name!r} {y.dims} and x {x.name!r} {x.dims} must lie on a dim "
            "of their own each"
        )
    plane = {y.dims[0], x.dims[0]}
    if lat is None or lon is None or set(lat.dims) != plane or set(lon.dims) != plane:
        return ProjectedGrid(_metres(y), _metres(x))
    if not _units(y) and not _units(x):  # an index, not distances
        raise _curvilinear(lat, lon, f"; set units of {y.name!r} and {x.name!r} if projected")
    order = (y.dims[0], x.dims[0])
    fields = [_radians(f.transpose(*order)) for f in (lat, lon)]
    # As of cells off the disk that a satellite sees; the plane has its distances without them.
    if not np.isfinite(fields).all() or np.abs(fields[0]).max(initial=0.0) > _POLE:
        fields = []
    return ProjectedGrid(_metres(y), _metres(x), None, *fields)
