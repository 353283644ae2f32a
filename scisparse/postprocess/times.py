"""Cases that forecast and observation share: the same times, the same values of further dims."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import Axes, find_axes, has_role
from scisparse.coordinates import check_scalars, rounded
from scisparse.errors import DataError
from scisparse.postprocess.samples import Forecast
from scisparse.times import calendar_name, check_stamps, check_starts, warn_months

__all__ = ["align", "calendar_of", "check_times", "usable"]

FloatArray = NDArray[np.float64]
_Object = xr.DataArray | xr.Dataset
_NAMES = ("the forecast", "the observation")
_FEWEST_TIMES = 3


def align(
    forecast: _Object, field: xr.DataArray, observed: xr.DataArray
) -> tuple[_Object, xr.DataArray]:
    """Keep the times that both have, in rising order; the dims of the forecast name both.

    Parameters
    ----------
    forecast
        Forecast with all its predictors.
    field
        The target in it.
    observed
        The truth; it may lack dims of the forecast other than time.

    Raises
    ------
    DataError
        There is no time dim, a time repeats, calendars or kinds of time differ, the forecast has
        starts and the observation valid times, no time is common or some nearly match, a coordinate
        of one value differs, or one has dims of its own; all values are named. Of the forecast,
        lead times may be.

    Warns
    -----
    UserWarning
        One has a time a month and the other as many as days.
    """
    axes = find_axes(field), find_axes(observed)
    first, second = (_time_dim(a, what) for a, what in zip(axes, _NAMES, strict=True))
    check_starts(field, observed, _NAMES)
    check_stamps(field, observed, _NAMES)
    warn_months(field, observed, _NAMES)
    parts = [data.coords.to_dataset() for data in (field, observed)]
    check_scalars(parts, _NAMES, [axis.member for axis in axes if axis.member is not None])
    indexes = [
        _index(data, dim, what)
        for data, dim, what in zip((field, observed), (first, second), _NAMES, strict=True)
    ]
    common = indexes[0].intersection(indexes[1]).sort_values()
    if len(common) == 0:
        ranges = [f"{len(index)} from {index.min()} to {index.max()}" for index in indexes]
        raise DataError(
            f"no common times: the forecast has {ranges[0]}, the observation {ranges[1]}; select "
            "overlapping periods, and give both the same stamps (of day or month)"
        )
    _check_own(field, axes[0].extra, observed)
    observed = observed.isel({second: indexes[1].get_indexer(common)})
    if first != second:
        observed = observed.drop_vars(first, errors="ignore").rename({second: first})
    forecast = forecast.isel({first: indexes[0].get_indexer(common)})
    return forecast, _match_extra(observed, axes[1].extra, field)


def usable(cases: Forecast, truth: FloatArray, target: str) -> tuple[Forecast, FloatArray]:
    """Cases that have a forecast and an observation somewhere.

    Raises
    ------
    DataError
        They are of fewer than 3 times.
    """
    usable = (np.isfinite(truth) & np.isfinite(cases.mean).all(1)).any(1)
    times = len(np.unique(cases.time[usable]))
    if times < _FEWEST_TIMES:
        raise DataError(
            f"forecast and observation of {target!r} are both there at {times} common times; at "
            f"least {_FEWEST_TIMES} are needed: train on more times"
        )
    return cases.take(np.flatnonzero(usable)), truth[usable]


def calendar_of(field: xr.DataArray) -> str | None:
    """Calendar of the times of a field; ``None`` where there are none, or they are no dates."""
    dim = find_axes(field).time
    if dim is None or dim not in field.indexes:
        return None
    index = field.indexes[dim]
    name = str(getattr(index, "calendar", "standard" if index.dtype.kind == "M" else ""))
    return calendar_name(name) or None


def check_times(field: xr.DataArray, expected: str | None) -> None:
    """Raise unless times differ and have the calendar of the training, as far as both are known.

    Raises
    ------
    DataError
        A time repeats, or the calendars differ; both are named.
    """
    dim = find_axes(field).time
    if dim is not None and dim in field.indexes:
        _check_repeats(field.indexes[dim], dim, "the forecast")
    given = calendar_of(field)
    if given is not None and expected is not None and given != expected:
        options = [repr(expected)] + ([] if dim == "time" else [f"dim={dim!r}"])
        options += ["align_on='date'"] if "360_day" in (given, expected) else []
        raise DataError(
            f"the forecast is on calendar {given!r} but the model was trained on {expected!r}; "
            f"convert it with .convert_calendar({', '.join(options)})"
        )


def _time_dim(axes: Axes, what: str) -> str:
    if axes.time is None:
        raise DataError(
            f"{what} has no time dim among {[*axes.extra, *axes.space]}; name it 'time', or "
            "'init_time' where it holds starts, or give its coordinate the CF attribute axis='T'"
        )
    return axes.time


def _index(data: xr.DataArray, dim: str, what: str) -> Any:
    if data.sizes[dim] == 0:
        raise DataError(f"{what} has no times along {dim!r}; check the selection")
    if dim not in data.indexes:
        crossed = f" but one along {list(data[dim].dims)}" if dim in data.coords else ""
        dates = [str(name) for name, c in data.coords.items() if _is_dates(c, dim)]
        source = f"data[{dates[0]!r}].values" if len(dates) == 1 else "times"
        raise DataError(
            f"{what} has no coordinate for its time dim {dim!r} alone{crossed}; assign one, with "
            f".assign_coords({dim}={source})"
        )
    index = data.indexes[dim]
    if index.hasnans:
        raise DataError(f"{what} has missing times along {dim!r}; drop them with .dropna({dim!r})")
    _check_repeats(index, dim, what)
    return index


def _is_dates(coordinate: xr.DataArray, dim: str) -> bool:
    return coordinate.dims == (dim,) and coordinate.dtype.kind == "M"


def _check_repeats(index: Any, dim: str, what: str) -> None:
    if index.has_duplicates:
        repeated = index[index.duplicated()][0]
        raise DataError(
            f"time {repeated} repeats in {what}; keep one of each, for example with "
            f".drop_duplicates({dim!r})"
        )


def _check_own(field: xr.DataArray, extra: tuple[str, ...], observed: xr.DataArray) -> None:
    """Raise when dims of the forecast alone are no lead times: they may number members."""
    for dim in extra:
        if dim in observed.dims or field.sizes[dim] == 1:
            continue
        if not (has_role(field[dim], "time") or has_role(field[dim], "lead")):
            raise DataError(
                f"the forecast has a dim {dim!r} that the observation lacks and whose meaning is "
                f"not known: rename it if it numbers members, with .rename({dim}='member'), or "
                f"lead times, {dim}='lead_time'; else give it to the observation, with "
                f".expand_dims({dim}=forecast[{dim!r}])"
            )


def _match_extra(
    observed: xr.DataArray, extra: tuple[str, ...], field: xr.DataArray
) -> xr.DataArray:
    """Observation at the forecast's values of the further dims that both have."""
    foreign = [dim for dim in extra if dim not in field.dims]
    if foreign:
        raise DataError(
            f"the observation has dims {foreign} that the forecast lacks; select one value of "
            "each, for example with .isel"
        )
    for dim in extra:
        observed = rounded(field, observed, dim, _NAMES)
        given, needed = observed.indexes.get(dim), field.indexes.get(dim)
        if given is not None and needed is not None:
            missing = needed[~needed.isin(given)]
            if len(missing):
                raise DataError(
                    f"dim {dim!r} of the observation lacks {missing[0]}, one of {len(missing)} "
                    "values that only the forecast has; select the same values in both"
                )
            observed = observed.sel({dim: needed})
        elif observed.sizes[dim] != field.sizes[dim]:
            raise DataError(
                f"dim {dim!r} has {observed.sizes[dim]} values in the observation but "
                f"{field.sizes[dim]} in the forecast; select the same values in both"
            )
    return observed
