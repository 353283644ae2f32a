"""Regular product of two axes in metres."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scisparse.errors import GridError
from scisparse.grids.base import (
    FloatArray,
    Grid,
    axis_bounds,
    check_monotonic,
    float_axis,
    pack_floats,
    pack_mask,
    unpack_floats,
    unpack_mask,
)

__all__ = ["ProjectedGrid"]


class ProjectedGrid(Grid):
    """Points on every pair of a y and an x coordinate in metres, y varying slowest.

    Distances and areas are those of the plane. Latitude and longitude are carried only when given:
    they let the grid exchange edges with a grid on the sphere.

    Parameters
    ----------
    y_axis, x_axis
        Coordinates in metres ``[ny]`` and ``[nx]``, rising or falling.
    mask
        Booleans ``[ny, nx]``, true at valid points.
    lat, lon
        Latitude and longitude of each point in radians, ``[ny, nx]``; both or neither.

    Raises
    ------
    GridError
        If an axis is empty, not finite or not monotonic, or ``lat`` and ``lon`` do not fit.

    Examples
    --------
    >>> from scisparse.grids import ProjectedGrid
    >>> ProjectedGrid([0, 2000], [0, 2000, 4000])
    ProjectedGrid(2 x 3, y 0 to 2000 m, x 0 to 4000 m)
    """

    kind = "projected"

    def __init__(
        self,
        y_axis: ArrayLike,
        x_axis: ArrayLike,
        mask: ArrayLike | None = None,
        lat: ArrayLike | None = None,
        lon: ArrayLike | None = None,
    ) -> None:
        self._y_axis, self._x_axis = float_axis("y_axis", y_axis), float_axis("x_axis", x_axis)
        check_monotonic("y_axis", self._y_axis)
        check_monotonic("x_axis", self._x_axis)
        super().__init__((self._y_axis.size, self._x_axis.size), mask)
        if (lat is None) != (lon is None):
            raise GridError("`lat` and `lon` must be given together, or neither")
        self._lat = None if lat is None else _field("lat", lat, self.shape)
        self._lon = None if lon is None else _field("lon", lon, self.shape)

    @property
    def dims(self) -> tuple[str, ...]:
        """Always ``("y", "x")``."""
        return ("y", "x")

    @property
    def y_axis(self) -> FloatArray:
        """Coordinate of each row in metres, ``[ny]``."""
        return self._y_axis

    @property
    def x_axis(self) -> FloatArray:
        """Coordinate of each column in metres, ``[nx]``."""
        return self._x_axis

    @property
    def spherical(self) -> bool:
        """False: distances are those of the plane."""
        return False

    @property
    def has_lat_lon(self) -> bool:
        """Whether latitude and longitude were given."""
        return self._lat is not None

    @property
    def lat(self) -> FloatArray:
        """Latitude of each point in radians, ``[size]``; an error when not given."""
        if self._lat is None:
            raise GridError(f"`lat` of {self!r} is not known: build the grid with lat= and lon=")
        return self._lat

    @property
    def lon(self) -> FloatArray:
        """Longitude of each point in radians, ``[size]``; an error when not given."""
        if self._lon is None:
            raise GridError(f"`lon` of {self!r} is not known: build the grid with lat= and lon=")
        return self._lon

    @property
    def areas(self) -> FloatArray:
        """Area of each cell in square metres, ``[size]``; masked cells count too."""
        y_step = np.abs(np.diff(self._y_axis)).mean() if self._y_axis.size > 1 else None
        x_step = np.abs(np.diff(self._x_axis)).mean() if self._x_axis.size > 1 else None
        heights = np.abs(np.diff(axis_bounds(self._y_axis, x_step)))
        widths = np.abs(np.diff(axis_bounds(self._x_axis, y_step)))
        return np.outer(heights, widths).reshape(-1)

    def positions(self) -> FloatArray:
        """Coordinates (x, y) of each point in metres, ``[size, 2]``."""
        x, y = np.broadcast_arrays(self._x_axis[None, :], self._y_axis[:, None])
        return np.stack([x.reshape(-1), y.reshape(-1)], axis=-1)

    def with_mask(self, mask: ArrayLike | None) -> ProjectedGrid:
        """Give the same points with another mask: an array, or a DataArray by its coordinates."""
        return ProjectedGrid(self._y_axis, self._x_axis, mask, self._lat, self._lon)

    def to_dict(self) -> dict[str, Any]:
        """Write the grid as values that JSON can hold."""
        return {
            "kind": self.kind,
            "y_axis": self._y_axis.tolist(),
            "x_axis": self._x_axis.tolist(),
            "mask": pack_mask(self._mask),
            "lat": None if self._lat is None else pack_floats(self._lat),
            "lon": None if self._lon is None else pack_floats(self._lon),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProjectedGrid:
        """Read what :meth:`to_dict` wrote."""
        shape = (len(values["y_axis"]), len(values["x_axis"]))
        lat, lon = (None if values[k] is None else unpack_floats(values[k]) for k in ("lat", "lon"))
        return cls(values["y_axis"], values["x_axis"], unpack_mask(values["mask"], shape), lat, lon)

    def _arrays(self) -> tuple[NDArray[Any] | None, ...]:
        return (self._y_axis, self._x_axis, self._mask, self._lat, self._lon)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ProjectedGrid, self._arrays())

    def _describe(self) -> str:
        y, x = self._y_axis[[0, -1]], self._x_axis[[0, -1]]
        extent = f"y {y[0]:.9g} to {y[1]:.9g} m, x {x[0]:.9g} to {x[1]:.9g} m"
        return f"{self.shape[0]} x {self.shape[1]}, {extent}"


def _field(name: str, values: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.size != np.prod(shape):
        raise GridError(f"`{name}` (shape {array.shape}) must have the grid's shape {shape}")
    return float_axis(name, array.reshape(-1))
