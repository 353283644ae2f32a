"""What every grid has: points, areas, an optional mask, and equality by content."""

from __future__ import annotations

import base64
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scisparse.errors import GridError
from scisparse.grids.masks import in_order_of, is_data_array

__all__ = ["EARTH_RADIUS", "BoolArray", "FloatArray", "Grid"]

#: Mean radius of the Earth in metres, used for every distance and area on the sphere.
EARTH_RADIUS = 6_371_000.0

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Grid(ABC):
    """Immutable points in a fixed order, with areas and an optional mask.

    Two grids are equal when they are of one class and hold the same coordinates, areas and mask;
    names of dims do not count.

    Parameters
    ----------
    shape
        Points along each axis.
    mask
        Array of booleans of that shape, true at valid points; ``None`` when all are valid. A
        DataArray is matched by its coordinates: dims and axes may run in any order, longitudes
        start anywhere, and it may hold more points than the grid.

    Raises
    ------
    GridError
        If the mask has another shape, is not boolean, or is a DataArray whose coordinates are not
        known or lack points of the grid.
    """

    #: Name of the class in :meth:`to_dict`.
    kind: ClassVar[str]

    def __init__(self, shape: tuple[int, ...], mask: ArrayLike | None) -> None:
        self._shape = shape
        self._mask: BoolArray | None = None
        self._mask = _checked_mask(mask, self)
        self._fingerprint: str | None = None

    @property
    @abstractmethod
    def dims(self) -> tuple[str, ...]:
        """Name of each axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis."""
        return self._shape

    @property
    def size(self) -> int:
        """Number of points, masked ones included."""
        return int(np.prod(self._shape))

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Whether each axis closes on itself."""
        return (False,) * len(self._shape)

    @property
    def spherical(self) -> bool:
        """Whether distances between points are great circles."""
        return True

    @property
    def has_lat_lon(self) -> bool:
        """Whether latitude and longitude of the points are known."""
        return True

    @property
    @abstractmethod
    def lat(self) -> FloatArray:
        """Latitude of each point in radians, ``[size]``."""

    @property
    @abstractmethod
    def lon(self) -> FloatArray:
        """Longitude of each point in radians, ``[size]``."""

    @property
    @abstractmethod
    def areas(self) -> FloatArray:
        """Area of each cell in square metres, ``[size]``; masked cells count too."""

    @property
    def mask(self) -> BoolArray | None:
        """True at valid points, of shape :attr:`shape`; ``None`` when all are valid."""
        return self._mask

    @property
    def valid(self) -> BoolArray:
        """True at valid points, ``[size]``; a copy."""
        if self._mask is None:
            return np.ones(self.size, dtype=np.bool_)
        return self._mask.flatten()

    def positions(self) -> FloatArray:
        """Give unit vectors ``[size, 3]``, or metres (x, y) ``[size, 2]`` when projected."""
        return unit_vectors(self.lat, self.lon)

    @abstractmethod
    def with_mask(self, mask: ArrayLike | None) -> Grid:
        """Give the same points with another mask: an array, or a DataArray by its coordinates."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Write the grid as values that JSON can hold; :func:`grid_from_dict` reads it back."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """Read what :meth:`to_dict` wrote."""

    @abstractmethod
    def _arrays(self) -> tuple[NDArray[Any] | None, ...]:
        """Arrays that define the grid, in the order the constructor takes them."""

    @abstractmethod
    def _describe(self) -> str:
        """Size and extent, for the repr."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, as hexadecimal digits."""
        if self._fingerprint is None:
            digest = hashlib.sha256(self.kind.encode())
            for array in self._arrays():
                digest.update(
                    b"none" if array is None else f"{array.dtype.str}{array.shape}".encode()
                )
                if array is not None:
                    # Adding zero turns -0.0 into 0.0: equal values must have equal bytes.
                    digest.update(
                        np.ascontiguousarray(
                            array + 0 if array.dtype.kind == "f" else array
                        ).tobytes()
                    )
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self is other or (
            type(self) is type(other) and self.fingerprint == other.fingerprint
        )

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        masked = "" if self._mask is None else f", {100 * self._mask.mean():.3g} % valid"
        return f"{type(self).__name__}({self._describe()}{masked})"


def unit_vectors(lat: FloatArray, lon: FloatArray) -> FloatArray:
    """Turn latitude and longitude in radians ``[size]`` into unit vectors ``[size, 3]``."""
    cos_lat = np.cos(lat)
    return np.stack([cos_lat * np.cos(lon), cos_lat * np.sin(lon), np.sin(lat)], axis=-1)


def float_axis(name: str, values: ArrayLike) -> FloatArray:
    """Copy values into a read-only, finite, one-dimensional float64 array."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GridError(f"`{name}` must hold numbers: {error}") from error
    if array.ndim != 1 or array.size == 0:
        raise GridError(f"`{name}` (shape {array.shape}) must be one-dimensional and not empty")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise GridError(
            f"`{name}` must be finite: value {index} is {array[index]}; drop missing coordinates"
        )
    array.setflags(write=False)
    return array


def check_monotonic(name: str, axis: FloatArray) -> None:
    """Raise unless the axis strictly rises or strictly falls."""
    steps = np.diff(axis)
    if steps.size and not ((steps > 0).all() or (steps < 0).all()):
        index = int(np.flatnonzero(np.sign(steps) != np.sign(steps[0]))[0] if steps[0] else 0)
        raise GridError(
            f"`{name}` must strictly rise or strictly fall: values {index} and {index + 1} are "
            f"{axis[index]:.9g} and {axis[index + 1]:.9g}; sort the axis"
        )


def axis_bounds(axis: FloatArray, fallback_step: float | None) -> FloatArray:
    """Midpoints between values, and half a step beyond either end: ``[n + 1]``."""
    if axis.size == 1:
        if fallback_step is None:
            raise GridError(
                "`areas` of a grid of one point are not defined: give a grid of at least two points"
            )
        return np.array([axis[0] - fallback_step / 2, axis[0] + fallback_step / 2])
    middle = (axis[:-1] + axis[1:]) / 2
    return np.concatenate([[2 * axis[0] - middle[0]], middle, [2 * axis[-1] - middle[-1]]])


def pack_floats(array: FloatArray) -> str:
    """Write floats as base64 of their little-endian bytes: exact, and smaller than digits."""
    return base64.b64encode(array.astype("<f8").tobytes()).decode()


def unpack_floats(text: str) -> FloatArray:
    """Read what :func:`pack_floats` wrote."""
    return np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64)


def pack_mask(mask: BoolArray | None) -> str | None:
    """Write a mask as base64 of its bits."""
    return None if mask is None else base64.b64encode(np.packbits(mask).tobytes()).decode()


def unpack_mask(text: str | None, shape: tuple[int, ...]) -> BoolArray | None:
    """Read what :func:`pack_mask` wrote."""
    if text is None:
        return None
    bits = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(np.bool_).reshape(shape)


def _checked_mask(mask: ArrayLike | None, grid: Grid) -> BoolArray | None:
    if mask is None:
        return None
    array = np.array(in_order_of(grid, mask) if is_data_array(mask) else mask)
    if array.dtype != np.bool_:
        raise GridError(
            f"`mask` (dtype {array.dtype}) must be boolean, true at valid points; compare first"
        )
    if array.shape != grid.shape:
        raise GridError(f"`mask` (shape {array.shape}) must have the grid's shape {grid.shape}")
    array.setflags(write=False)
    return array
