"""Forecasts and observations as arrays: one row a case, one column a grid point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import Axes, Frame, check_units, find_axes
from scisparse.errors import DataError

__all__ = ["Forecast", "align", "as_field", "read_forecast", "read_observed"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Forecast:
    """An ensemble forecast, reduced to what post-processing reads.

    Attributes
    ----------
    mean, variance
        Mean and variance (n - 1) over the members of each group, ``[S, G, P]``: S cases (times and extra dims), G groups of
        members, P points. The variance of one member is 0. NaN where no member has a value.
    extra
        Other predictors, ``[S, F, P]``.
    names
        Names of groups and other predictors, by which a later forecast must match.
    leading
        Dims of the cases, with their lengths.
    """

    mean: FloatArray
    variance: FloatArray
    extra: FloatArray
    names: tuple[str, ...]
    leading: dict[str, int]

    def take(self, cases: NDArray[np.int64]) -> Forecast:
        """Forecast of some cases."""
        return Forecast(
            self.mean[cases],
            self.variance[cases],
            self.extra[cases],
            self.names,
            {"case": len(cases)},
        )

    def at(self, points: NDArray[np.int64]) -> Forecast:
        """Forecast at some points."""
        return Forecast(
            self.mean[..., points],
            self.variance[..., points],
            self.extra[..., points],
            self.names,
            self.leading,
        )


def as_field(
    data: xr.Dataset | xr.DataArray, target: str, what: str, *, only: bool = False
) -> xr.DataArray:
    """Pick variable `target` of a Dataset, or take a DataArray as it is.

    Raises
    ------
    DataError
        The Dataset has no such variable; those that it has are named.
    """
    if isinstance(data, xr.DataArray):
        return data
    if only and target not in data and len(data.data_vars) == 1:
        return data[next(iter(data.data_vars))]
    if target not in data:
        names = ", ".join(repr(str(name)) for name in data.data_vars) or "none"
        raise DataError(f"{what} has no variable {target!r}; it has {names}: pass target=")
    return data[target]


def read_forecast(
    forecast: xr.Dataset | xr.DataArray, target: str, frame: Frame, groups: str | None
) -> Forecast:
    """Reduce a forecast to the canonical grid of `frame`.

    Parameters
    ----------
    forecast
        Variable `target` and, in a Dataset, further predictors with the same dims, with or without members and times.
    target
        Name of the variable to correct.
    frame
        Where the forecast lies.
    groups
        Coordinate along the members whose values tell groups apart, such as the models of a multi-model ensemble.

    Raises
    ------
    DataError
        Values are infinite or all missing, or a predictor has dims of its own.
    """
    field = as_field(forecast, target, "the forecast")
    axes = find_axes(field)
    leading = case_dims(axes)
    member = [] if axes.member is None else [axes.member]
    values = _finite(frame.values(field, [*leading, *member]), target, "the forecast")
    points = values.reshape(*values.shape[: len(leading)], -1 if member else 1, frame.grid.size)
    cases = points.reshape(-1, *points.shape[-2:])
    labels = _group_labels(field, axes, groups)
    names, parts = [], []
    for label in dict.fromkeys(labels):
        names.append(f"{target}[{label}]" if label else target)
        parts.append(_moments(cases[:, np.asarray(labels) == label]))
    extra_names, extra = _predictors(forecast, target, frame, leading, field)
    return Forecast(
        mean=np.stack([mean for mean, _ in parts], 1),
        variance=np.stack([variance for _, variance in parts], 1),
        extra=extra,
        names=(*names, *extra_names),
        leading={dim: field.sizes.get(dim, 1) for dim in leading},
    )


def read_observed(
    observed: xr.Dataset | xr.DataArray, target: str, frame: Frame, leading: dict[str, int]
) -> FloatArray:
    """Observations ``[S, P]`` on the canonical grid, repeated along the dims they do not have.

    Raises
    ------
    DataError
        Values are infinite or all missing.
    """
    field = as_field(observed, target, "the observation", only=True)
    axes = find_axes(field)
    if axes.member is not None:
        raise DataError(
            f"the observation has members along {axes.member!r}; select one, or take their mean, first"
        )
    values = _finite(frame.values(field, list(leading)), target, "the observation")
    values = np.broadcast_to(values, (*leading.values(), *frame.grid.shape))
    return values.reshape(-1, frame.grid.size)


def align(
    forecast: xr.Dataset | xr.DataArray, observed: xr.Dataset | xr.DataArray
) -> tuple[xr.Dataset | xr.DataArray, xr.Dataset | xr.DataArray]:
    """Keep the times that both have, in rising order; the time dim of the forecast names both.

    Raises
    ------
    DataError
        There is no time dim, a time repeats, calendars differ, or no time is common; both ranges are named.
    """
    dims = [find_axes(data).time for data in (forecast, observed)]
    for what, dim in zip(("the forecast", "the observation"), dims, strict=True):
        if dim is None:
            raise DataError(
                f"{what} has no time dim; give its time coordinate the CF attribute axis='T'"
            )
    indexes = [
        _times(data, str(dim), what)
        for data, dim, what in zip(
            (forecast, observed), dims, ("the forecast", "the observation"), strict=True
        )
    ]
    if type(indexes[0]) is not type(indexes[1]):
        kinds = [_calendar(index) for index in indexes]
        raise DataError(
            f"the forecast is on calendar {kinds[0]} and the observation on {kinds[1]}; convert one with "
            ".convert_calendar"
        )
    common = indexes[0].intersection(indexes[1]).sort_values()
    if len(common) == 0:
        ranges = [f"{index.min()} to {index.max()}" if len(index) else "empty" for index in indexes]
        raise DataError(
            f"no common times: the forecast covers {ranges[0]} and the observation {ranges[1]}; select overlapping periods"
        )
    first = forecast.isel({dims[0]: indexes[0].get_indexer(common)})
    second = observed.isel({dims[1]: indexes[1].get_indexer(common)})
    if dims[0] != dims[1]:
        second = second.rename({dims[1]: dims[0]})
    return first, second


def case_dims(axes: Axes) -> list[str]:
    """Dims that number the cases: time first."""
    return [*([] if axes.time is None else [axes.time]), *axes.extra]


def _times(data: xr.Dataset | xr.DataArray, dim: str, what: str) -> pd.Index:
    if dim not in data.indexes:
        raise DataError(f"{what} has no coordinate for its time dim {dim!r}; assign one")
    index: pd.Index = data.indexes[dim]
    if index.has_duplicates:
        repeated = index[index.duplicated()][0]
        raise DataError(
            f"time {repeated} repeats in {what}; keep one of each, for example with .drop_duplicates({dim!r})"
        )
    return index


def _calendar(index: pd.Index) -> str:
    return str(getattr(index, "calendar", "standard" if index.dtype.kind == "M" else index.dtype))


def _group_labels(field: xr.DataArray, axes: Axes, groups: str | None) -> list[str]:
    if axes.member is None:
        return [""]
    size = field.sizes[axes.member]
    if size == 0:
        raise DataError(f"the forecast has no members along {axes.member!r}; select at least one")
    if groups is None:
        return [""] * size
    if groups not in field.coords or field[groups].dims != (axes.member,):
        raise DataError(
            f"`groups` is {groups!r} but the forecast has no such coordinate along {axes.member!r}; it has "
            f"{[str(name) for name, c in field.coords.items() if c.dims == (axes.member,)]}"
        )
    return [str(value) for value in field[groups].values]


def _moments(members: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and variance over the members that have a value, ``[S, R, P]`` to ``[S, P]`` each."""
    present = np.isfinite(members)
    count = present.sum(1)
    total = np.where(present, members, 0.0).sum(1)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    squares = np.where(present, members - mean[:, None], 0.0) ** 2
    variance = squares.sum(1) / np.maximum(count - 1, 1)
    return mean, np.where(count > 0, variance, np.nan)


def _predictors(
    forecast: xr.Dataset | xr.DataArray,
    target: str,
    frame: Frame,
    leading: Sequence[str],
    field: xr.DataArray,
) -> tuple[list[str], FloatArray]:
    """Every other variable on the grid: its mean over members, repeated along the dims it does not have."""
    names, parts = [], []
    sizes = tuple(field.sizes.get(dim, 1) for dim in leading)
    others = [] if isinstance(forecast, xr.DataArray) else [str(n) for n in forecast.data_vars]
    for name in others:
        other = forecast[name]
        if name == target or not set(frame.space) <= set(other.dims):
            continue
        axes = find_axes(other)
        foreign = set(axes.extra) - set(leading)
        if foreign:
            raise DataError(
                f"predictor {name!r} has dims {sorted(foreign)} that {target!r} lacks; reduce or drop it"
            )
        member = [] if axes.member is None else [axes.member]
        values = _finite(
            frame.values(other.astype(np.float64), [*leading, *member]), name, "the forecast"
        )
        values = values.reshape(*values.shape[: len(leading)], -1 if member else 1, frame.grid.size)
        mean = _moments(values.reshape(-1, *values.shape[-2:]))[0]
        mean = np.broadcast_to(
            mean.reshape(*values.shape[: len(leading)], -1), (*sizes, frame.grid.size)
        )
        names.append(name)
        parts.append(mean.reshape(-1, frame.grid.size))
    cases = int(np.prod(sizes))
    return names, np.stack(parts, 1) if parts else np.empty((cases, 0, frame.grid.size))


def _finite(values: FloatArray, name: str, what: str) -> FloatArray:
    if values.size == 0:
        raise DataError(
            f"variable {name!r} of {what} is empty, of shape {values.shape}; check the selection"
        )
    if np.isinf(values).any():
        raise DataError(
            f"variable {name!r} of {what} has {int(np.isinf(values).sum())} infinite values; mark missing values as NaN"
        )
    if np.isnan(values).all():
        raise DataError(f"variable {name!r} of {what} is NaN everywhere; check file and selection")
    return values


def check_same_units(
    forecast: xr.Dataset | xr.DataArray, observed: xr.Dataset | xr.DataArray, target: str
) -> str | None:
    """Units of the target, the same in forecast and observation; ``None`` when neither tells."""
    expected = as_field(forecast, target, "the forecast").attrs.get("units")
    units = as_field(observed, target, "the observation", only=True).attrs.get("units")
    check_units("the observation", units, expected)
    return expected if expected is not None else units
