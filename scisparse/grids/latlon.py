"""Regular product of a latitude and a longitude axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scisparse.errors import GridError
from scisparse.grids.base import (
    EARTH_RADIUS,
    FloatArray,
    Grid,
    axis_bounds,
    check_monotonic,
    float_axis,
    pack_mask,
    unpack_mask,
)
from scisparse.grids.gaussian import gaussian_bounds
from scisparse.grids.integers import integer

__all__ = ["LatLonGrid"]

# Coordinates often come as float32: 90 degrees may then exceed pi / 2 by a little.
_ANGLE_TOLERANCE = 1e-6
_STEP_TOLERANCE = 1e-3
# So many times as wide as what lies beside it is a gap; stretched axes change more slowly.
_GAP = 1.5


class LatLonGrid(Grid):
    r"""Points on every pair of a latitude and a longitude, latitude varying slowest.

    A cell reaches halfway to its neighbours. Its area is

    .. math:: R^2 \, (\sin\phi_\mathrm{north} - \sin\phi_\mathrm{south}) \, \Delta\lambda .

    The outermost rows end at the pole where no further row would fit before it, else half a step
    on; so do the columns beside the widest gap of longitudes that are not all around, wherever the
    axis starts. Rows at Gaussian latitudes, all of them or those from a pole on, reach so far that
    their areas are the Gaussian weights.

    Parameters
    ----------
    lat_axis
        Latitudes in radians ``[nlat]``, rising or falling.
    lon_axis
        Longitudes in radians ``[nlon]``, rising or falling, in any convention (0 to 2 pi,
        -pi to pi, or jumping by 2 pi at the date line).
    mask
        Booleans ``[nlat, nlon]``, true at valid points.

    Raises
    ------
    GridError
        If an axis is empty, not finite, not monotonic, beyond the poles or longer than the circle.

    Examples
    --------
    >>> from scisparse.grids import LatLonGrid
    >>> grid = LatLonGrid.from_degrees([60, 0, -60], [0, 90, 180, 270])
    >>> grid
    LatLonGrid(3 x 4, lat 60 to -60, lon 0 to 270, periodic)
    >>> grid.periodic
    (False, True)
    """

    kind = "lat_lon"

    def __init__(
        self, lat_axis: ArrayLike, lon_axis: ArrayLike, mask: ArrayLike | None = None
    ) -> None:
        lat, lon = float_axis("lat_axis", lat_axis), float_axis("lon_axis", lon_axis)
        self._lat_axis = _checked_latitudes(lat)
        self._lon_axis = lon
        self._unwrapped_lon = _checked_longitudes(lon)
        super().__init__((lat.size, lon.size), mask)

    @classmethod
    def from_degrees(
        cls, lat: ArrayLike, lon: ArrayLike, mask: ArrayLike | None = None
    ) -> LatLonGrid:
        """Build from axes in degrees."""
        lat_axis, lon_axis = float_axis("lat", lat), float_axis("lon", lon)
        if np.abs(lat_axis).max() > 90.0001:
            raise GridError(
                f"`lat` ({np.abs(lat_axis).max():.6g}) must lie between -90 and 90 degrees"
            )
        return cls(np.deg2rad(lat_axis), np.deg2rad(lon_axis), mask)

    @classmethod
    def regular(cls, nlat: int, nlon: int, *, poles: bool = True) -> LatLonGrid:
        """Build an evenly spaced global grid, north first, from the prime meridian eastward.

        Parameters
        ----------
        nlat, nlon
            Rows and columns, two or more of each.
        poles
            Whether the first and last rows lie on the poles (else half a step from them).

        Examples
        --------
        >>> LatLonGrid.regular(180, 360, poles=False)
        LatLonGrid(180 x 360, lat 89.5 to -89.5, lon 0 to 359, periodic)
        """
        nlat, nlon = integer("nlat", nlat, GridError), integer("nlon", nlon, GridError)
        if nlat < 2 or nlon < 2:
            raise GridError(f"`nlat`, `nlon` (={nlat}, {nlon}) must both be at least 2")
        edge = 90.0 if poles else 90.0 - 90.0 / nlat
        return cls.from_degrees(np.linspace(edge, -edge, nlat), np.arange(nlon) * (360.0 / nlon))

    @property
    def dims(self) -> tuple[str, ...]:
        """Always ``("lat", "lon")``."""
        return ("lat", "lon")

    @property
    def lat_axis(self) -> FloatArray:
        """Latitude of each row in radians, ``[nlat]``."""
        return self._lat_axis

    @property
    def lon_axis(self) -> FloatArray:
        """Longitude of each column in radians, ``[nlon]``, as given."""
        return self._lon_axis

    @property
    def lat(self) -> FloatArray:
        """Latitude of each point in radians, ``[size]``."""
        return np.repeat(self._lat_axis, self._lon_axis.size)

    @property
    def lon(self) -> FloatArray:
        """Longitude of each point in radians, ``[size]``."""
        return np.tile(self._lon_axis, self._lat_axis.size)

    @property
    def periodic(self) -> tuple[bool, ...]:
        """``(False, closes)``: longitude closes when no step around the circle is a gap.

        A gap is at least 1.5 times as wide as both steps beside it; so is each of the two steps
        beside an isolated column. Two columns close when they lie opposite each other.
        """
        around = self._steps_around()
        if around.size <= 2:
            off = np.abs(around - np.pi).max()
            return (False, around.size == 2 and bool(off <= _STEP_TOLERANCE * np.pi))
        before, after = np.roll(around, 1), np.roll(around, -1)
        single = around >= _GAP * np.maximum(before, after)
        double = np.minimum(around, after) >= _GAP * np.maximum(before, np.roll(around, -2))
        return (False, not bool(single.any() or double.any()))

    @property
    def uniform_longitude(self) -> bool:
        """Whether all steps in longitude are equal, the one over the closing edge included."""
        around = self._steps_around()
        steps = around if self.periodic[1] else around[:-1]
        if steps.size == 0:
            return True
        return bool(np.ptp(steps) <= _STEP_TOLERANCE * steps.mean() + _ANGLE_TOLERANCE)

    @property
    def pole_ends(self) -> tuple[bool, bool]:
        """Whether the first and the last row are the last ones before a pole (or on it)."""
        if self._lat_axis.size == 1:
            return (False, False)
        step = np.abs(np.diff(self._lat_axis))[[0, -1]]
        on_pole = np.abs(self._lat_axis[[0, -1]]) >= np.pi / 2 - _ANGLE_TOLERANCE
        next_row_fits = np.abs(self._lat_axis[[0, -1]]) + step <= np.pi / 2 + _ANGLE_TOLERANCE
        # The sign tells the end that points to its pole from the end of a one-hemisphere grid at
        # the equator.
        outward = np.array(
            [self._lat_axis[0] - self._lat_axis[1], self._lat_axis[-1] - self._lat_axis[-2]]
        )
        ends = (on_pole | ~next_row_fits) & (np.sign(outward) == np.sign(self._lat_axis[[0, -1]]))
        return (bool(ends[0]), bool(ends[1]))

    @property
    def areas(self) -> FloatArray:
        """Area of each cell in square metres, ``[size]``; masked cells count too."""
        bounds, widths = self.lat_bounds, self.column_widths
        bands = np.abs(np.diff(np.sin(bounds)))
        return (EARTH_RADIUS**2 * np.outer(bands, widths)).reshape(-1)

    @property
    def lat_bounds(self) -> FloatArray:
        """Latitudes between the rows and at the outer ends, in radians, ``[nlat + 1]``."""
        gaussian = gaussian_bounds(self._lat_axis)
        if gaussian is not None:
            return gaussian
        widths = self._lon_steps()
        bounds = axis_bounds(self._lat_axis, None if widths is None else widths.mean())
        for end, index in zip(self.pole_ends, (0, -1), strict=True):
            if end:
                bounds[index] = np.copysign(np.pi / 2, self._lat_axis[index])
        return np.clip(bounds, -np.pi / 2, np.pi / 2)

    @property
    def column_widths(self) -> FloatArray:
        """Extent of each column in longitude, in radians, ``[nlon]``."""
        widths = self._lon_steps()
        return np.abs(np.diff(self.lat_bounds))[:1] if widths is None else widths

    def check_columns_in_order(self) -> None:
        """Raise when columns that follow each other are not neighbours on the sphere.

        Raises
        ------
        GridError
            The widest gap of longitudes that are not all around lies inside the axis, as where a
            region across Greenwich is sorted from 0 to 360.
        """
        around = self._steps_around()
        gap = self._end(around)
        if self.periodic[1] or gap == around.size - 1:
            return
        before, after = np.rad2deg(self._lon_axis[[gap, gap + 1]])
        raise GridError(
            f"longitudes of {self!r} jump from {before:.6g} to {after:.6g}, so that columns beside "
            "each other are no neighbours; start them after the jump, where their dim is 'lon' "
            f"with data.roll(lon={around.size - 1 - gap}, roll_coords=True)"
        )

    def _steps_around(self) -> FloatArray:
        """Steps from each longitude to the next, and from the last to the first: ``[nlon]``."""
        steps = np.abs(np.diff(self._unwrapped_lon))
        return np.append(steps, 2 * np.pi - steps.sum())

    def _end(self, around: FloatArray) -> int:
        """Place of the widest step: the last one unless another one is wider by more than noise."""
        widest = int(around.argmax())
        wider = around[widest] > around[-1] * (1 + _STEP_TOLERANCE)
        return widest if wider else around.size - 1

    def _lon_steps(self) -> FloatArray | None:
        after = self._steps_around()
        if after.size == 1:
            return None
        before = np.roll(after, 1)
        if not self.periodic[1]:
            gap = self._end(after)
            beyond = (gap + 1) % after.size
            before[beyond], after[gap] = after[beyond], before[gap]
        return np.asarray((before + after) / 2, dtype=np.float64)

    def with_mask(self, mask: ArrayLike | None) -> LatLonGrid:
        """Give the same points with another mask: an array, or a DataArray by its coordinates."""
        return LatLonGrid(self._lat_axis, self._lon_axis, mask)

    def to_dict(self) -> dict[str, Any]:
        """Write the grid as values that JSON can hold."""
        return {
            "kind": self.kind,
            "lat_axis": self._lat_axis.tolist(),
            "lon_axis": self._lon_axis.tolist(),
            "mask": pack_mask(self._mask),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatLonGrid:
        """Read what :meth:`to_dict` wrote."""
        shape = (len(values["lat_axis"]), len(values["lon_axis"]))
        return cls(values["lat_axis"], values["lon_axis"], unpack_mask(values["mask"], shape))

    def _arrays(self) -> tuple[NDArray[Any] | None, ...]:
        return (self._lat_axis, self._lon_axis, self._mask)

    def __reduce__(self) -> tuple[Any, ...]:
        return (LatLonGrid, self._arrays())

    def _describe(self) -> str:
        lat, lon = np.rad2deg(self._lat_axis[[0, -1]]), np.rad2deg(self._unwrapped_lon[[0, -1]])
        lon -= 360.0 * max(0.0, np.ceil(lon.max() / 360.0 - 1.0))  # -10 to 30, not 350 to 390
        extent = f"lat {lat[0]:.6g} to {lat[1]:.6g}, lon {lon[0]:.6g} to {lon[1]:.6g}"
        return (
            f"{self.shape[0]} x {self.shape[1]}, {extent}{', periodic' if self.periodic[1] else ''}"
        )


def _checked_latitudes(lat: FloatArray) -> FloatArray:
    check_monotonic("lat_axis", lat)
    largest = float(np.abs(lat).max())
    if largest > np.pi / 2 + _ANGLE_TOLERANCE:
        raise GridError(
            f"`lat_axis` ({largest:.6g}) must lie between -pi/2 and pi/2 radians; "
            "use LatLonGrid.from_degrees for degrees"
        )
    clipped = np.clip(lat, -np.pi / 2, np.pi / 2)
    clipped.setflags(write=False)
    return clipped


def _checked_longitudes(lon: FloatArray) -> FloatArray:
    steps = np.diff(lon)
    monotonic = bool((steps > 0).all() or (steps < 0).all())
    unwrapped = lon if monotonic else np.unwrap(lon)
    check_monotonic("lon_axis", unwrapped)
    span = float(abs(unwrapped[-1] - unwrapped[0]))
    if span >= 2 * np.pi - _ANGLE_TOLERANCE:
        raise GridError(
            f"`lon_axis` (spans {np.rad2deg(span):.6g} degrees) must be shorter than the circle; "
            "drop the column that repeats the first meridian"
        )
    return unwrapped
