"""Bring predictions and observations onto shared coordinates, and find the areas of cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from scisparse.arrays import Frame, find_dim, has_role
from scisparse.coordinates import (
    at_single_time,
    axes_of,
    check_places,
    check_points,
    check_scalars,
    described,
    grid_of,
    other_grid,
    rounded,
    snapped,
)
from scisparse.errors import DataError, GridError, OptionError
from scisparse.grids import from_xarray
from scisparse.grids.discovery import grid_dims, has_grid
from scisparse.grids.same import labels_of, order_of, same_points
from scisparse.times import check_stamps

__all__ = ["area_weights", "check_meaning", "check_repeated", "match", "place_weights"]


def match(
    base: xr.Dataset, others: Sequence[xr.Dataset], names: Sequence[str], own: Sequence[str]
) -> list[xr.Dataset]:
    """Return all on the coordinates that all share; of others the one time that `base` may have.

    Parameters
    ----------
    base
        Data whose names of dims, and whose form of coordinates, the others get.
    others
        Other data.
    names
        Names for errors, of `base` and of the others.
    own
        Dims that are not shared, such as members.

    Raises
    ------
    DataError
        Coordinates have nothing in common, each of two has dims that the other lacks, grids without
        axes or coordinates of one value differ, or times nearly match; both are named.
    """
    for other, name in zip(others, names[1:], strict=True):
        check_stamps(base, other, (names[0], name))
    others = [at_single_time(base, other) for other in others]
    check_scalars([base, *others], names, own)
    placed = [
        _onto(base, other, names[0], name) for other, name in zip(others, names[1:], strict=True)
    ]
    for other, name in zip(placed, names[1:], strict=True):
        _check_dims(base, other, (names[0], name), own)
        for dim in set(base.dims) & set(other.dims) - set(own):
            _check_overlap(str(dim), base, other, names[0], name)
    aligned = xr.align(base, *placed, join="inner", exclude=list(own))
    if any(size == 0 for data in aligned for size in data.sizes.values()):
        raise DataError(
            f"{', '.join(names)} overlap in pairs, but have no coordinates all in common"
        )
    return list(aligned)


def check_meaning(
    data: xr.Dataset, observed: xr.DataArray | xr.Dataset, what: str, own: str | None
) -> None:
    """Raise where a dim of a prediction alone is no lead time and may number members.

    Members that are not known as such would each be scored as a forecast of their own.

    Parameters
    ----------
    data, observed
        Prediction and observations.
    what, own
        Name of the prediction for errors, and its dim of members or the like.

    Raises
    ------
    DataError
        There is such a dim.
    """
    grid = grid_dims(data) if grid_of(data) is not None else ()
    for dim in map(str, data.dims):
        if dim in (own, *grid, *observed.dims) or data.sizes[dim] == 1:
            continue
        if not _is_time(data[dim]):
            raise DataError(
                f"{what} has a dim {dim!r} that the observation lacks and whose meaning is not "
                f"known: rename it if it numbers members, with .rename({dim}='member'); else name "
                "in `dims` what to average over"
            )


def check_repeated(data: xr.Dataset, observed: xr.DataArray, what: str) -> None:
    """Raise where a dim of the observation alone is no time: as of levels, or versions of it.

    One prediction would be scored against the truth of each. A climatology is one of all times.

    Parameters
    ----------
    data, observed
        Prediction and observations, matched.
    what
        Name of the prediction for errors.

    Raises
    ------
    DataError
        There is such a dim.
    """
    whole = observed.to_dataset(name="observed")
    grid = grid_dims(whole) if grid_of(whole) is not None else ()
    for dim in map(str, observed.dims):
        if dim in (*grid, *data.dims) or observed.sizes[dim] == 1 or _is_time(observed[dim]):
            continue
        raise DataError(
            f"the observation has a dim {dim!r} of {observed.sizes[dim]} values that {what} lacks, "
            f"which would be compared with each; select one, with .isel({dim}=0), or name in "
            "`dims` what to average over"
        )


def _is_time(dim: xr.DataArray) -> bool:
    """Whether a coordinate is of times or lead times."""
    return has_role(dim, "time") or has_role(dim, "lead")


def area_weights(data: xr.Dataset, what: str) -> xr.DataArray | None:
    """Areas of the grid's cells, of mean 1; ``None`` when they are not known.

    There may be no grid, a curvilinear one, one point, or points such as stations that do not cover
    the sphere.

    Raises
    ------
    GridError
        Coordinates of a grid break its rules: units, order, or a longitude that repeats.
    """
    try:
        if not has_grid(data):
            return None
        frame = _frame(data, what)
    except GridError as error:
        raise GridError(f"{error}; or give weights=None to weigh all points alike") from error
    try:
        areas = frame.grid.areas
    except GridError:
        return None
    placed = frame.wrap((areas / areas.mean()).reshape(frame.grid.shape), [], data)
    return placed.reset_coords(drop=True)


def _frame(data: xr.Dataset, what: str) -> Frame:
    """Frame on the canonical grid, so that a region across Greenwich is one however it is sorted.

    Points keep their own grid: Frame.of takes equal areas where they leave gaps.
    """
    try:
        space = grid_dims(data)
        if len(space) == 1:
            grid = from_xarray(data)
            return Frame(grid, space, (np.arange(grid.size),))
    except GridError as error:
        raise GridError(f"{what}: {error}") from error
    return Frame.of(data, what)


def place_weights(weights: xr.DataArray, base: xr.Dataset) -> xr.DataArray:
    """Return the caller's weights on the coordinates of `base`.

    Raises
    ------
    OptionError
        They have other dims.
    DataError
        They are negative or missing somewhere.
    """
    data = _onto(base, weights.to_dataset(name="weights"), "the prediction", "`weights`")
    extra = [str(dim) for dim in data.dims if dim not in base.dims]
    if extra:
        raise OptionError(
            f"`weights` has dims {extra}; the scores have {list(map(str, base.dims))}"
        )
    data = data.reindex({dim: base.indexes[dim] for dim in data.dims if dim in data.indexes})
    placed = data["weights"].astype(np.float64).compute()
    bad = int((~(placed >= 0)).sum())
    if bad or not bool((placed > 0).any()):
        raise DataError(
            f"`weights` is negative or missing at {bad} of {placed.size} points, and must be at "
            "least 0 on all points of the prediction, not all 0; fill or select them"
        )
    return placed


def _onto(base: xr.Dataset, other: xr.Dataset, base_name: str, name: str) -> xr.Dataset:
    """Give `other` the names of dims of `base`, and its coordinates where they differ by rounding.

    Coordinates of grids count as equal when they are so in units of the grid, longitudes also when
    they differ by whole turns; what differs comes in the units of `base`.
    """
    grid, their_grid = grid_of(base), grid_of(other)
    pairs = [(find_dim(other, "time"), find_dim(base, "time"))]
    if grid is not None and their_grid is not None:
        if type(grid) is not type(their_grid):
            raise other_grid(grid, their_grid, base_name, name)
        pairs += list(zip(grid_dims(other), grid_dims(base), strict=True))
    renamed = {old: new for old, new in pairs if old and new and old != new}
    # A coordinate beside a dim may have the name that the dim gets, as starts beside valid times.
    beside = [n for n in renamed.values() if n in other.coords and n not in other.dims]
    other = other.drop_vars([name for name in beside if name not in renamed]).rename(renamed)
    for dim in {*map(str, base.dims)} - {new for _, new in pairs}:
        other = rounded(base, other, dim, (base_name, name))
    if grid is None or their_grid is None:
        check_places(base, other, (base_name, name))
        return other
    axes = list(zip(axes_of(grid), axes_of(their_grid), strict=True))
    for number, dim in enumerate(grid_dims(base)):
        indexed = dim in base.indexes and dim in other.indexes
        if indexed and axes:
            names = (dim, base_name, name)
            values = snapped(base[dim].values, *axes[number], names)
            other = other.assign_coords({dim: (dim, values, base[dim].attrs)})
        elif (order := order_of(their_grid, grid, (labels_of(other), labels_of(base)))) is not None:
            other = other.isel({dim: order}).drop_vars(dim, errors="ignore")
            other = other.assign_coords({dim: base[dim]} if dim in base.indexes else {})
        elif indexed:  # some of the points, known by their index
            check_points(base, other, dim, (base_name, name))
        elif base.sizes[dim] != other.sizes[dim] or not same_points(grid, their_grid):
            raise other_grid(grid, their_grid, base_name, name)
    return other


def _check_dims(
    base: xr.Dataset, other: xr.Dataset, names: tuple[str, str], own: Sequence[str]
) -> None:
    """Raise when both have dims that the other lacks: all values of one would meet all others."""
    dims = [{*map(str, data.dims)} - {*own} for data in (base, other)]
    alone = [sorted(dims[0] - dims[1]), sorted(dims[1] - dims[0])]
    if all(alone):
        text = f"{names[0]} has dims {alone[0]} that {names[1]} lacks, which has {alone[1]}; "
        for data, name, dim in zip((base, other), names, (alone[0][0], alone[1][0]), strict=True):
            if "valid_time" in data.coords and data["valid_time"].dims == (dim,):
                call = f"{name.removeprefix('the ')}.swap_dims({dim}='valid_time')"
                raise DataError(f"{text}give {name} its valid times: {call}")
        raise DataError(f"{text}rename those that are the same, select one value of the others")


def _check_overlap(
    dim: str, base: xr.Dataset, other: xr.Dataset, base_name: str, name: str
) -> None:
    if dim not in base.indexes or dim not in other.indexes:
        if base.sizes[dim] != other.sizes[dim]:
            raise DataError(
                f"{dim!r} has {base.sizes[dim]} points in {base_name} and {other.sizes[dim]} in "
                f"{name}, and no coordinate to match them by; assign one"
            )
        return
    indexes = base.indexes[dim], other.indexes[dim]
    if not indexes[0].isin(indexes[1]).any():
        ranges = [described(index) for index in indexes]
        raise DataError(
            f"{dim!r} is {ranges[0]} in {base_name} and {ranges[1]} in {name}, with no value in "
            "common; select or shift one of them"
        )
