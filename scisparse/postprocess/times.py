"""Cases that forecast and observation share: the same times, the same values of further dims."""

from __future__ import annotations

from typing import Any

import xarray as xr

from scisparse.arrays import Axes, find_axes, find_dim
from scisparse.errors import DataError

__all__ = ["align", "calendar_of", "check_calendar"]

_Object = xr.DataArray | xr.Dataset
_NAMES = ("the forecast", "the observation")
_STANDARD = ("standard", "gregorian", "proleptic_gregorian")
_START = "forecast_reference_time"


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
        There is no time dim, a time repeats, calendars or kinds of time differ, no time is common,
        or one has dims of its own; all values are named. Of the forecast, lead times may be.
    """
    axes = find_axes(field), find_axes(observed)
    first, second = (_time_dim(a, what) for a, what in zip(axes, _NAMES, strict=True))
    indexes = [
        _index(data, dim, what)
        for data, dim, what in zip((field, observed), (first, second), _NAMES, strict=True)
    ]
    _check_starts(field, observed, *axes)
    kinds = [_kind(index) for index in indexes]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"times of the forecast are {kinds[0]} but of the observation {kinds[1]}; convert one, "
            "for example with .convert_calendar('standard', use_cftime=False)"
        )
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


def calendar_of(field: xr.DataArray) -> str | None:
    """Calendar of the times of a field; ``None`` where there are none, or they are no dates."""
    dim = find_axes(field).time
    if dim is None or dim not in field.indexes:
        return None
    index = field.indexes[dim]
    name = str(getattr(index, "calendar", "standard" if index.dtype.kind == "M" else ""))
    return "standard" if name in _STANDARD else name or None


def check_calendar(field: xr.DataArray, expected: str | None) -> None:
    """Raise unless the forecast has the calendar of the training, as far as both are known.

    Raises
    ------
    DataError
        They differ; both are named.
    """
    given = calendar_of(field)
    if given is not None and expected is not None and given != expected:
        raise DataError(
            f"the forecast is on calendar {given!r} but the model was trained on {expected!r}; "
            f"convert it with .convert_calendar({expected!r})"
        )


def _time_dim(axes: Axes, what: str) -> str:
    if axes.time is None:
        raise DataError(
            f"{what} has no time dim among {[*axes.extra, *axes.space]}; name it 'time', or give "
            "its coordinate the CF attribute axis='T'"
        )
    return axes.time


def _index(data: xr.DataArray, dim: str, what: str) -> Any:
    if data.sizes[dim] == 0:
        raise DataError(f"{what} has no times along {dim!r}; check the selection")
    if dim not in data.indexes:
        raise DataError(f"{what} has no coordinate for its time dim {dim!r}; assign one")
    index = data.indexes[dim]
    if index.hasnans:
        raise DataError(f"{what} has missing times along {dim!r}; drop them with .dropna({dim!r})")
    if index.has_duplicates:
        repeated = index[index.duplicated()][0]
        raise DataError(
            f"time {repeated} repeats in {what}; keep one of each, for example with "
            f".drop_duplicates({dim!r})"
        )
    return index


def _kind(index: Any) -> str:
    """Say what times are; two indexes of one kind can be compared."""
    if hasattr(index, "calendar"):
        return f"cftime dates of calendar {index.calendar!r}"
    kind = index.dtype.kind
    return "datetime64 dates" if kind == "M" else "numbers" if kind in "iuf" else str(index.dtype)


def _check_starts(field: xr.DataArray, observed: xr.DataArray, first: Axes, second: Axes) -> None:
    """Raise when the forecast is stamped with its start, and the observation with its own time."""
    mine, other = (
        data[axes.time].attrs.get("standard_name")
        for data, axes in ((field, first), (observed, second))
    )
    lead = find_dim(field, "lead")
    leads = [] if lead is None or lead in second.extra or field.sizes[lead] == 1 else [lead]
    if mine == _START and (other == "time" or leads):
        raise DataError(
            f"dim {first.time!r} of the forecast holds starts (standard_name {_START!r}) but "
            f"{second.time!r} of the observation does not; give the observation the same starts"
            f"{f' and dims {leads}' if leads else ''}, for example with .sel(time=valid_times)"
        )


def _check_own(field: xr.DataArray, extra: tuple[str, ...], observed: xr.DataArray) -> None:
    """Raise when dims of the forecast alone are no lead times: they may number members."""
    for dim in extra:
        if dim in observed.dims or field.sizes[dim] == 1:
            continue
        alone = field.isel({other: 0 for other in field.dims if other != dim}, drop=True)
        if find_dim(alone, "lead") is None and find_dim(alone, "time") is None:
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
