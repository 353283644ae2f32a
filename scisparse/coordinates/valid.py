"""Times at which values hold, however a file tells them: as such, or as start and lead time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from scisparse.arrays import find_dim, has_role, tells_valid_time
from scisparse.coordinates.numbers import in_seconds, is_duration, number_values

__all__ = [
    "START",
    "START_NAMES",
    "at_single_time",
    "compared_times",
    "is_ahead",
    "is_beside_starts",
    "is_date",
    "is_start",
    "later",
    "lead_of",
    "single_time",
    "start_beside",
    "valid_times",
]

_Object = xr.Dataset | xr.DataArray
START = "forecast_reference_time"
# In small letters; S is that of the NMME archive, init of climpred, sdate of startR.
START_NAMES = (START, "init_time", "init", "start_time", "start_date", "sdate", "s")
# Seasonal forecasts count months from 1, that of the start: its mean has the stamp of the start.
_MONTHS = ("forecastmonth", "leadtime_month")


def compared_times(first: _Object, second: _Object) -> tuple[xr.DataArray, xr.DataArray] | None:
    """Times that must be the same in both, where one has a single time; ``None`` if not known.

    These are the valid times, as a forecast and its truth start at different times. Starts are
    compared where valid times are not known and lead times are alike.
    """
    valid = valid_times(first), valid_times(second)
    if valid[0] is not None and valid[1] is not None and 0 in (valid[0].ndim, valid[1].ndim):
        return (valid[0], valid[1]) if _one_origin(valid[0], valid[1]) else None
    starts = _start(first), _start(second)
    if starts[0] is None or starts[1] is None or is_start(starts[0]) != is_start(starts[1]):
        return None
    dated = starts[0].ndim and starts[1].ndim  # they are matched by their dim
    if dated or not _alike(lead_of(first), lead_of(second)):
        return None
    return (starts[0], starts[1]) if _one_origin(starts[0], starts[1]) else None


def at_single_time(first: _Object, second: xr.Dataset) -> xr.Dataset:
    """Give `second` at the one time of `first`, where that has no dim of times and it is there."""
    times, dim = compared_times(first, second), find_dim(second, "time")
    if times is None or times[0].ndim or times[1].dims != (dim,):
        return second
    lead = lead_of(second)
    if is_start(times[1]) and not is_start(times[0]) and (lead is None or is_ahead(lead)):
        return second  # its valid times are not known
    same = np.flatnonzero(times[1].values == times[0].values)
    return second.isel({dim: int(same[0])}) if same.size else second


def is_date(coordinate: xr.DataArray) -> bool:
    """Whether a coordinate holds dates, decoded or not, or times by its name."""
    if coordinate.dtype.kind == "O":
        return any(hasattr(value, "calendar") for value in coordinate.values.flat)
    dated = coordinate.dtype.kind == "M" or " since " in str(coordinate.attrs.get("units", ""))
    return dated or has_role(coordinate, "time")


def lead_of(data: _Object) -> xr.DataArray | None:
    """Coordinate of lead times."""
    for name, coordinate in data.coords.items():
        if has_role(coordinate, "lead") and coordinate.dtype.kind in "fium":
            return data[name]
    return None


def is_beside_starts(lead: xr.DataArray) -> bool:
    """Whether files that have lead times of this name call the start ``time``."""
    name = str(lead.name).lower()
    # That of cfgrib; a step that is no duration may only count.
    if name == "step":
        return is_duration(number_values(lead))
    return name in (*_MONTHS, "prediction_timedelta")


def is_ahead(lead: xr.DataArray) -> bool:
    """Whether any lead time is of later than the start."""
    first = int(str(lead.name).lower() in _MONTHS)
    return bool((lead != np.full((), first, lead.dtype)).any())


def start_beside(data: _Object, dim: str) -> bool:
    """Whether another coordinate than `dim` holds the starts."""
    return any(is_start(coord) for name, coord in data.coords.items() if name != dim)


def is_start(coordinate: xr.DataArray) -> bool:
    """Whether a coordinate says that it holds starts of forecasts."""
    told = coordinate.attrs.get("standard_name")
    return told == START or (told != "time" and str(coordinate.name).lower() in START_NAMES)


def valid_times(data: _Object) -> xr.DataArray | None:
    """Valid times; also several starts where these are all that is known."""
    lead = lead_of(data)
    dim = find_dim(data, "time")
    along = [c for c in _stated(data) if c.ndim]
    single = [c for c in _stated(data) if not c.ndim]
    if along or (dim is None and single):
        return (along or single)[0]
    time = data[dim] if dim is not None and dim in data.coords else single_time(data)
    if time is None:
        return None
    ahead = lead is not None and is_ahead(lead)
    # Unless it says that it is the start, a dim of times is taken for valid times elsewhere too.
    if not is_start(time) and (time.ndim or not ahead):
        return time
    if lead is not None and not ahead:
        return time
    elapsed = None if lead is None else _elapsed(lead)
    after = None if elapsed is None else later(time, elapsed)
    if after is not None:
        return after
    return time if time.size > 1 else None


def later(time: xr.DataArray, lead: xr.DataArray) -> xr.DataArray | None:
    """Dates plus durations, also of cftime, to which xarray adds none; ``None`` of numbers."""
    if time.dtype.kind == "M":
        return time + lead
    if lead.dtype.kind != "m" or time.dtype.kind != "O" or not is_date(time):
        return None
    starts, leads = xr.broadcast(time, lead)
    after = starts.values + leads.values.astype("m8[us]").astype(object)
    return starts.copy(data=np.asarray(after, dtype=object)).rename(None)


def _stated(data: _Object) -> Iterator[xr.DataArray]:
    """Coordinates that say that they are valid times."""
    for coordinate in data.coords.values():
        if tells_valid_time(coordinate) and not coordinate.isnull().any():
            yield coordinate


def _start(data: _Object) -> xr.DataArray | None:
    """Times of the time dim, or else a single one."""
    dim = find_dim(data, "time")
    return data[dim] if dim is not None and dim in data.coords else single_time(data)


def single_time(data: _Object) -> xr.DataArray | None:
    """A single time without a dim, the start where there is one."""
    found = [c for c in data.coords.values() if not c.ndim and has_role(c, "time")]
    return min(found, key=lambda c: not is_start(c), default=None)


def _elapsed(lead: xr.DataArray) -> xr.DataArray | None:
    """Lead times as durations; of numbers only where there is one, in a unit of time."""
    if lead.dtype.kind == "m":
        return lead
    seconds = None if lead.ndim else in_seconds(number_values(lead))
    return None if seconds is None else xr.DataArray(np.timedelta64(round(seconds * 1e9), "ns"))


def _alike(first: xr.DataArray | None, second: xr.DataArray | None) -> bool:
    """Whether lead times are one dim of both, one value, or there are none."""
    if first is None or second is None:
        return first is second
    if first.ndim or second.ndim:
        return first.dims == second.dims
    return first.dtype.kind == second.dtype.kind and bool(first.values == second.values)


def _one_origin(first: xr.DataArray, second: xr.DataArray) -> bool:
    """Whether times, where they are not decoded, count from one date."""
    undecoded = [each for each in (first, second) if each.dtype.kind in "iuf"]
    return len({each.attrs.get("units") for each in undecoded}) < 2
