"""Forecasts and observations as arrays: one row a case, one column a grid point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import Axes, Frame, check_object, find_axes
from scisparse.coordinates import field_names
from scisparse.errors import DataError
from scisparse.grids import Grid
from scisparse.units import check_no_fill, check_units, check_unpacked, warn_scale

__all__ = [
    "Forecast",
    "as_field",
    "case_dims",
    "cell_areas",
    "compare_scales",
    "predictor_units",
    "quoted",
    "read_forecast",
    "read_observed",
    "refuse_truth",
    "same_units",
]

FloatArray = NDArray[np.float64]
_Object = xr.Dataset | xr.DataArray
# Values that moments are taken of at once: some copies of them fit into the cache.
_BLOCK = 2**17


def cell_areas(grid: Grid) -> FloatArray:
    """Areas of the cells ``[P]``; 1 for a single point, whose area is not known."""
    return grid.areas if grid.size > 1 else np.ones(1)


@dataclass(frozen=True)
class Forecast:
    """An ensemble forecast, reduced to what post-processing reads.

    Attributes
    ----------
    mean, variance
        Mean and variance (n - 1) over the members of each group, ``[S, G, P]``: S cases (times and
        extra dims), G groups of members, P points. NaN where no member has a value; the variance
        also where only one has.
    extra
        Other predictors, ``[S, F, P]``.
    names
        Names of groups and other predictors, by which a later forecast must match.
    time
        Number of the time of each case, rising, ``[S]``: cases of one time are not independent.
    leading
        Dims of the cases, with their lengths.
    """

    mean: FloatArray
    variance: FloatArray
    extra: FloatArray
    names: tuple[str, ...]
    time: NDArray[np.int64]
    leading: dict[str, int]

    def take(self, cases: NDArray[np.int64]) -> Forecast:
        """Forecast of some cases."""
        return Forecast(
            self.mean[cases],
            self.variance[cases],
            self.extra[cases],
            self.names,
            self.time[cases],
            {"case": len(cases)},
        )

    def at(self, points: NDArray[np.int64]) -> Forecast:
        """Forecast at some points."""
        return Forecast(
            self.mean[..., points],
            self.variance[..., points],
            self.extra[..., points],
            self.names,
            self.time,
            self.leading,
        )

    def where(self, kept: NDArray[np.bool_]) -> Forecast:
        """Forecast with NaN where a case and point, ``[S, P]``, is not kept."""
        mean, variance, extra = (
            np.where(kept[:, None], values, np.nan)
            for values in (self.mean, self.variance, self.extra)
        )
        return Forecast(mean, variance, extra, self.names, self.time, self.leading)


def as_field(data: _Object, target: str, what: str, *, any_name: bool = False) -> xr.DataArray:
    """Pick variable `target` of a Dataset, or take a DataArray of that name, or of none.

    Parameters
    ----------
    data
        Dataset or DataArray.
    target
        Name of the variable.
    what
        Name of `data` for errors.
    any_name
        Whether another name will do, where there is but one variable.

    Raises
    ------
    DataError
        There is no such variable (the error lists those there are), or its values are not numbers.
    """
    check_object(data, what)
    field = data if isinstance(data, xr.DataArray) else data.get(target)
    names = field_names(data) if isinstance(data, xr.Dataset) else []
    if field is None and any_name and len(names) == 1:
        field = data[names[0]]
    if field is None:
        listed = ", ".join(map(repr, names)) or "none"
        raise DataError(f"{what} has no variable {target!r} among {listed}; name or select one")
    if not any_name and field.name not in (None, target):
        raise DataError(
            f"{what} is {str(field.name)!r} but {target!r} is needed; give that variable, or "
            "rename this one"
        )
    return _checked_type(field, target if field.name is None else str(field.name), what)


def read_forecast(forecast: _Object, target: str, frame: Frame, groups: str | None) -> Forecast:
    """Reduce a forecast to the canonical grid of `frame`.

    Parameters
    ----------
    forecast
        Variable `target` and, in a Dataset, further predictors with the same dims, with or without
        members and times.
    target
        Name of the variable to correct.
    frame
        Where the forecast lies.
    groups
        Coordinate along the members whose values tell groups apart, such as the models of a
        multi-model ensemble.

    Raises
    ------
    DataError
        Values are infinite or all missing, or a predictor has dims of its own.
    """
    field = as_field(forecast, target, "the forecast")
    axes = find_axes(field)
    leading = case_dims(axes)
    sizes = {dim: field.sizes[dim] for dim in leading}
    labels = np.asarray(_group_labels(field, axes, groups))
    cases = _members(field, axes, leading, frame, target)
    # Sorted by name: the order of members and variables in a file means nothing.
    parts = {label: _moments(cases, labels == label) for label in sorted(set(labels))}
    names = [f"{target}[{label}]" if label else target for label in parts]
    extra = {
        name: _predictor(other, leading, frame, sizes)
        for name, other in _others(forecast, target, frame)
    }
    count, times = len(cases), 1 if axes.time is None else sizes[axes.time]
    return Forecast(
        mean=np.stack([mean for mean, _ in parts.values()], 1),
        variance=np.stack([variance for _, variance in parts.values()], 1),
        extra=np.stack(list(extra.values()), 1) if extra else np.empty((count, 0, frame.grid.size)),
        names=(*names, *extra),
        time=np.repeat(np.arange(times), count // times),
        leading=sizes,
    )


def read_observed(
    observed: xr.DataArray, target: str, frame: Frame, leading: dict[str, int]
) -> FloatArray:
    """Observations ``[S, P]`` on the canonical grid, repeated along the dims they do not have.

    Raises
    ------
    DataError
        Values are infinite or all missing.
    """
    axes = find_axes(observed)
    if axes.member is not None:
        raise DataError(
            f"the observation has members along {axes.member!r}; select one, or take their mean"
        )
    name = target if observed.name is None else str(observed.name)
    values = frame.values(observed, list(leading))
    _check_finite(values, name, "the observation", observed.attrs.get("units"))
    values = np.broadcast_to(values, (*leading.values(), *frame.grid.shape))
    return values.reshape(-1, frame.grid.size)


def compare_scales(
    cases: Forecast, truth: FloatArray, field: xr.DataArray, seen: xr.DataArray
) -> None:
    """Warn where one tells units of temperature or pressure and the other has another scale.

    No error, as anomalies, in kelvin too, predict temperatures as well as temperatures do.

    Warns
    -----
    UserWarning
        Means differ as kelvin and degrees Celsius do, or pascals and hectopascals.
    """

    def means() -> tuple[float, float]:
        return float(np.nanmean(truth)), float(np.nanmean(cases.mean))

    told = seen.attrs.get("units"), field.attrs.get("units")
    warn_scale(f"the observation{quoted(seen)}", *told, means, stacklevel=3)


def refuse_truth(cases: Forecast, truth: FloatArray, forecast: _Object, seen: xr.DataArray) -> None:
    """Refuse a predictor that is the observation under another name, up to rounding.

    Raises
    ------
    DataError
        There is one; it is named.
    """
    known = np.isfinite(truth)
    count = cases.extra.shape[1]
    names = cases.names[len(cases.names) - count :]
    for name, values in zip(names, cases.extra.swapaxes(0, 1), strict=True):
        kinds = [data.dtype for data in (forecast[name], seen) if data.dtype.kind == "f"]
        rounding = max((float(np.finfo(kind).eps) for kind in kinds), default=0.0)
        if np.allclose(values[known], truth[known], rtol=rounding, atol=0.0):
            raise DataError(
                f"variable {name!r} of the forecast has the values of the observation; the truth "
                f"cannot be a predictor of itself: drop it with forecast.drop_vars({name!r})"
            )


def case_dims(axes: Axes) -> list[str]:
    """Dims that number the cases: time first, the others by name."""
    return [*([] if axes.time is None else [axes.time]), *sorted(axes.extra)]


def same_units(field: xr.DataArray, observed: xr.DataArray) -> str | None:
    """Units of the target, the same in forecast and observation; ``None`` when neither tells.

    Raises
    ------
    DataError
        They differ; both are named.
    """
    expected, units = (data.attrs.get("units") for data in (field, observed))
    check_units(f"the observation{quoted(observed)}", units, expected)
    known = units if expected is None else expected
    return None if known is None else str(known)


def predictor_units(forecast: _Object, names: Sequence[str]) -> dict[str, str]:
    """Units of those variables of `names` that tell them."""
    if isinstance(forecast, xr.DataArray):
        return {}
    found = {name: forecast[name].attrs.get("units") for name in names if name in forecast}
    return {name: str(units) for name, units in found.items() if units is not None}


def _group_labels(field: xr.DataArray, axes: Axes, groups: str | None) -> list[str]:
    if axes.member is None:
        if groups is not None:
            raise DataError(
                f"`groups` is {groups!r} but the forecast has no members; leave `groups` out"
            )
        return [""]
    size = field.sizes[axes.member]
    if size == 0:
        raise DataError(f"the forecast has no members along {axes.member!r}; select at least one")
    if groups is None:
        return [""] * size
    if groups not in field.coords or field[groups].dims != (axes.member,):
        names = [str(name) for name, c in field.coords.items() if c.dims == (axes.member,)]
        raise DataError(
            f"`groups` is {groups!r} but the forecast has no such coordinate along its members; "
            f"along {axes.member!r} it has {names}"
        )
    return [str(value) for value in field[groups].values]


def _members(
    field: xr.DataArray, axes: Axes, leading: Sequence[str], frame: Frame, name: str
) -> FloatArray:
    """Values ``[S, R, P]``, where dims of `leading` that `field` lacks have length 1."""
    member = [] if axes.member is None else [axes.member]
    values = frame.values(field, [*leading, *member])
    _check_finite(values, name, "the forecast", field.attrs.get("units"))
    count = field.sizes[member[0]] if member else 1
    return values.reshape(-1, count, frame.grid.size)


def _moments(members: FloatArray, chosen: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Mean and variance over chosen members that have a value, ``[S, R, P]`` to ``[S, P]`` each."""
    rows = max(1, _BLOCK // members[0].size)
    parts = [
        _moments_of(members[start : start + rows, chosen]) for start in range(0, len(members), rows)
    ]
    mean, variance = (np.concatenate(each) for each in zip(*parts, strict=True))
    return mean, variance


def _moments_of(members: FloatArray) -> tuple[FloatArray, FloatArray]:
    present = np.isfinite(members)
    count = present.sum(1)
    total = np.where(present, members, 0.0).sum(1)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    squares = np.where(present, members - mean[:, None], 0.0) ** 2
    variance = np.divide(
        squares.sum(1), count - 1, out=np.full(total.shape, np.nan), where=count > 1
    )
    return mean, variance


def _others(forecast: _Object, target: str, frame: Frame) -> Iterator[tuple[str, xr.DataArray]]:
    """Every other variable on the grid, by name; bounds of coordinates are none."""
    if isinstance(forecast, xr.DataArray):
        return
    for name in sorted({*field_names(forecast)} - {target}):
        if set(frame.space) <= set(forecast[name].dims):
            yield name, _checked_type(forecast[name], name, "the forecast")


def _predictor(
    other: xr.DataArray, leading: Sequence[str], frame: Frame, sizes: dict[str, int]
) -> FloatArray:
    """Mean over members ``[S, P]``, repeated along the dims that it does not have."""
    axes = find_axes(other)
    foreign = sorted({*case_dims(axes)} - {*leading})
    if foreign:
        raise DataError(
            f"predictor {str(other.name)!r} has dims {foreign} that the target lacks; reduce or "
            "drop it"
        )
    members = _members(other, axes, leading, frame, str(other.name))
    mean = _moments(members, np.ones(members.shape[1], dtype=bool))[0]
    own = [other.sizes.get(dim, 1) for dim in leading]
    repeated = np.broadcast_to(mean.reshape(*own, -1), (*sizes.values(), frame.grid.size))
    return repeated.reshape(-1, frame.grid.size)


def _checked_type(field: xr.DataArray, name: str, what: str) -> xr.DataArray:
    if field.dtype.kind not in "fiub":
        raise DataError(
            f"variable {name!r} of {what} has dtype {field.dtype}; it must hold numbers: convert "
            "or drop it"
        )
    check_unpacked(f"variable {name!r} of {what}", field.attrs, lambda: field.values)
    return field


def _check_finite(values: FloatArray, name: str, what: str, units: object) -> None:
    if values.size == 0:
        raise DataError(
            f"variable {name!r} of {what} is empty, of shape {values.shape}; check the selection"
        )
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise DataError(
            f"variable {name!r} of {what} has {infinite} infinite values; mark missing values as "
            "NaN"
        )
    if np.isnan(values).all():
        raise DataError(f"variable {name!r} of {what} is NaN everywhere; check file and selection")
    check_no_fill(f"variable {name!r} of {what}", values, units)


def quoted(field: xr.DataArray) -> str:
    """Name of a field for errors, after a space; nothing where it has none."""
    return "" if field.name is None else f" {str(field.name)!r}"
