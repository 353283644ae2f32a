"""Times of a forecast and of what it is compared with: whether the two can be paired."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import find_dim, tells_valid_time
from scisparse.coordinates import (
    START,
    START_NAMES,
    check_near,
    compared_times,
    is_ahead,
    is_beside_starts,
    is_start,
    later,
    lead_of,
    single_time,
    start_beside,
    valid_times,
)
from scisparse.errors import DataError

__all__ = ["calendar_name", "check_stamps", "check_starts", "holds_starts", "warn_months"]

_Object = xr.DataArray | xr.Dataset
_Names = tuple[str, str]
_FEWEST_MONTHS, _FEWEST_DAYS = 3, 20
_STANDARD = ("standard", "gregorian", "proleptic_gregorian")


def check_stamps(first: _Object, second: _Object, names: _Names) -> None:
    """Raise when times cannot be compared, or nearly match.

    Times match when they are equal. Rounding, as of times in single precision, must not lose cases
    without a word. Of single times without a dim only calendar and kind are compared here.

    Parameters
    ----------
    first, second
        Objects with times; without coordinates of them nothing is checked.
    names
        Their names for errors.

    Raises
    ------
    DataError
        Times are a stack of several coordinates, calendars or kinds of time differ, or times of
        `first` lie less than a tenth of the smallest step from one of `second` and are not equal.
    """
    dims = [find_dim(data, "time") for data in (first, second)]
    found = [
        data.indexes[dim] for data, dim in zip((first, second), dims, strict=True)
        if dim is not None and dim in data.indexes
    ]  # fmt: skip
    for index, dim, name in zip(found, dims, names, strict=False):
        if index.nlevels > 1:
            raise DataError(
                f"times {dim!r} of {name} are a stack of {list(index.names)}; unstack it first, "
                f"with .unstack({dim!r})"
            )
    if len(found) < 2:
        _check_single_kinds(first, second, names)
        return
    kinds = [_kind(index) for index in found]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"times of {names[0]} are {kinds[0]} but of {names[1]} {kinds[1]}; "
            f"{_conversion(found, dims, names)}"
        )
    _check_origins(first[dims[0]], second[dims[1]], names)
    check_near(found[0], found[1], dims, names)


def _check_origins(first: xr.DataArray, second: xr.DataArray, names: _Names) -> None:
    """Raise where times that are not decoded count from other dates, or in other steps."""
    told = [each.attrs for each in (first, second) if " since " in str(each.attrs.get("units", ""))]
    if len(told) < 2 or _first_dates(told[0]) == _first_dates(told[1]):
        return
    ours, theirs = (
        " in calendar ".join(repr(attrs[name]) for name in ("units", "calendar") if name in attrs)
        for attrs in told
    )
    raise DataError(
        f"times of {names[0]} are numbers of {ours} but of {names[1]} of {theirs}; decode both to "
        "dates, with xr.decode_cf"
    )


def _first_dates(attrs: Mapping[Hashable, Any]) -> list[Any]:
    """Calendar, and the dates that 0 and 1 stand for, or units where xarray cannot tell."""
    units = attrs["units"]
    try:
        decoded = xr.decode_cf(xr.Dataset({"time": ("time", [0, 1], {"units": units})}))
    except ValueError:  # as of "months since", which have no one length
        dates = [units]
    else:
        dates = list(decoded["time"].values)
    return [calendar_name(attrs.get("calendar", "standard")), *dates]


def calendar_name(calendar: str) -> str:
    """Give calendars of one meaning one name."""
    return "standard" if calendar in _STANDARD else calendar


def _check_single_kinds(first: _Object, second: _Object, names: _Names) -> None:
    times = compared_times(first, second)
    if times is None:
        return
    found = [xr.Variable("time", time.values.ravel()).to_index() for time in times]
    kinds = [_kind(index) for index in found]
    if kinds[0] != kinds[1]:
        single = [not time.ndim for time in times]
        told = [None if time.name is None else str(time.name) for time in times]
        raise DataError(
            f"times of {names[0]} are {kinds[0]} but of {names[1]} {kinds[1]}; "
            f"{_conversion(found, told, names, single)}"
        )


def warn_months(first: _Object, second: _Object, names: _Names) -> None:
    """Warn where one has a time a month, on the same day, and the other as many as days or more.

    Means over months would meet single days in silence; but these may be what is meant.

    Warns
    -----
    UserWarning
        They have times in common; names the remedy of both.
    """
    dims = [find_dim(data, "time") for data in (first, second)]
    both = zip((first, second), dims, strict=True)
    indexes = [data.indexes[dim] for data, dim in both if dim in data.indexes]
    if len(indexes) < 2 or not all(map(_are_dates, indexes)):
        return
    for coarse, fine in ((0, 1), (1, 0)):
        one, many = indexes[coarse], indexes[fine]
        often = len(many) / max(len(np.unique(_months(many))), 1)
        if _is_monthly(one) and often >= _FEWEST_DAYS and one.isin(many).any():
            data, other = (names[place].removeprefix("the ") for place in (fine, coarse))
            warnings.warn(
                f"{names[coarse]} has one time a month and {names[fine]} {often:.0f}, of which the "
                f"same alone are used: if {names[coarse]} is of means over months, take those of "
                f"{names[fine]}, with {data}.resample({dims[fine]}='MS').mean() or other stamps; "
                f"else select its times, with "
                f"{data}.sel({dims[fine]}={data}[{dims[fine]!r}].isin({other}[{dims[coarse]!r}]))",
                UserWarning,
                stacklevel=4,
            )


def _is_monthly(index: Any) -> bool:
    """Whether times are one a month, always on the same day or on the last one."""
    if len(index) < _FEWEST_MONTHS or len(np.unique(_months(index))) < len(index):
        return False
    day = np.asarray(index.day)
    return bool((day == day[0]).all() or (day == np.asarray(index.days_in_month)).all())


def _months(index: Any) -> NDArray[np.int64]:
    return np.asarray(12 * np.asarray(index.year) + np.asarray(index.month))


def _are_dates(index: Any) -> bool:
    return hasattr(index, "calendar") or index.dtype.kind == "M"


def check_starts(forecast: _Object, observed: _Object, names: _Names) -> None:
    """Raise when the forecast is stamped with its starts, and the observation with its own times.

    A forecast has starts where the ``standard_name`` or the name of its time says so, or a
    coordinate of valid times differs from it.

    Parameters
    ----------
    forecast, observed
        Objects with times; a forecast without any is not checked.
    names
        Their names for errors.

    Raises
    ------
    DataError
        Truth of the start would be compared with a forecast for later, or that of all times with
        one forecast whose valid time is not known.
    """
    first, second = find_dim(forecast, "time"), find_dim(observed, "time")
    if first is None and second is not None:
        _check_one_time(forecast, observed, second, names)
    if first is None or second is None:
        return
    lead = find_dim(forecast, "lead")
    shared = lead is not None and lead in observed.dims
    leads = [] if lead is None or shared or forecast.sizes[lead] == 1 else [lead]
    stated = _standard_name(forecast, first) == START
    valid = _valid_time(forecast, first)
    starts = stated or first.lower() in START_NAMES or _is_beside_lead(forecast, first)
    later = valid is not None or (starts and _has_lead(forecast))
    both = _of_starts(observed, second)
    told = stated and not _is_analysis(forecast, first)
    unlike = (told and _standard_name(observed, second) == "time") or (later and not shared)
    repeated = bool(leads) and (starts or valid is not None)
    if not repeated and (both or not unlike):
        return
    later_by = "a lead time" if valid is None else f"coordinate {valid!r}"
    sign = f"standard_name {START!r}" if stated else f"{later_by} tells of later times"
    remedy = _with_starts((forecast, first), (observed, second), valid, names)
    ours, held = names[0].removeprefix("the "), lead_of(forecast)
    if valid is not None and not leads:
        remedy += f", or give {names[0]} its valid times: {ours}.swap_dims({first}={valid!r})"
    elif valid is None and held is not None and first.lower() not in START_NAMES and not stated:
        name = str(held.name)
        remedy += f", or, if {first!r} is the valid time, drop {name!r}: {ours}.drop_vars({name!r})"
    raise DataError(
        f"dim {first!r} of {names[0]} holds starts ({sign}) but {second!r} of {names[1]} does not; "
        f"give {names[1]} the same starts{f' and dims {leads}' if leads else ''}: {remedy}"
    )


def holds_starts(data: _Object, dim: str) -> bool:
    """Whether times along a dim are starts, by what they or coordinates beside them say."""
    told = is_start(data[dim]) or _is_beside_lead(data, dim)
    return told or _valid_time(data, dim) is not None


def _check_one_time(forecast: _Object, observed: _Object, dim: str, names: _Names) -> None:
    """Raise where a forecast of one time would meet all of the observed times."""
    time, valid = single_time(forecast), valid_times(forecast)
    count = observed.sizes[dim]
    if time is None or count == 1 or compared_times(forecast, observed) is not None:
        return
    if valid is not None and valid.ndim:  # a run, whose lead times say which
        return
    ours = names[0].removeprefix("the ")
    value = xr.Variable("time", time.values.ravel()).to_index()[0]
    raise DataError(
        f"{names[0]} is of one time, {str(time.name)!r} {value}, that does not tell which of the "
        f"{count} times {dim!r} of {names[1]} it is for; give it its valid time, with "
        f"{ours}.assign_coords(valid_time=time)"
    )


def _with_starts(
    forecast: tuple[_Object, str], observed: tuple[_Object, str], valid: str | None, names: _Names
) -> str:
    """Write the expression that gives the observation, each with its time dim, the starts."""
    (data, first), (seen, second) = forecast, observed
    ours, theirs = (name.removeprefix("the ") for name in names)
    lead = lead_of(data)
    times: xr.DataArray | None = None
    written = "valid_times"
    if valid is not None:
        times, written = data[valid], f"{ours}[{valid!r}]"
    elif lead is not None and lead.dtype.kind == "m":
        times = later(data[first], lead)
    if valid is None and lead is not None and times is not None:
        written = _sum(data[first], lead, ours)
    drop = lead_of(seen)
    known = theirs if drop is None or drop.ndim else f"{theirs}.drop_vars({drop.name!r})"
    index = seen.indexes.get(second)
    if times is not None and index is not None and _lacks(index, times):
        # Times that the observation lacks are missing then, where .sel would raise.
        known += f".reindex({second}=sorted({{*{written}.values.ravel()}}))"
    text = f"{known}.sel({second}={written}).assign_coords({first}={ours}[{first!r}])"
    told = (
        "" if times is not None else f", where valid_times are those of {names[0]}, along its dims"
    )
    return text + told


def _sum(starts: xr.DataArray, lead: xr.DataArray, data: str) -> str:
    """Write the expression of valid times; xarray adds no durations to cftime dates."""
    parts = f"{data}[{starts.name!r}]", f"{data}[{lead.name!r}]"
    if starts.dtype.kind == "M":
        return f"({parts[0]} + {parts[1]})"
    steps = f"{parts[1]}.values.astype('m8[us]').astype(object)"
    add = "np.add" if {*lead.dims} & {*starts.dims} else "np.add.outer"
    dims = [*dict.fromkeys([*starts.dims, *lead.dims])]
    return f"xr.DataArray({add}({parts[0]}.values, {steps}), dims={dims})"


def _lacks(index: Any, times: xr.DataArray) -> bool:
    return index.is_unique and bool((index.get_indexer(times.values.ravel()) < 0).any())


def _standard_name(data: _Object, dim: str) -> object:
    return data[dim].attrs.get("standard_name")


def _of_starts(data: _Object, dim: str) -> bool:
    """Whether times of an observation are starts: it says so, and is no analysis of its time."""
    if _valid_time(data, dim) is not None:
        return True
    told = _standard_name(data, dim) == START or dim.lower() in START_NAMES
    return told and not _is_analysis(data, dim)


def _is_analysis(data: _Object, dim: str) -> bool:
    """Whether times are valid ones too: a coordinate beside them says so, or leads of 0."""
    lead = lead_of(data)
    stated = _valid_time(data, dim) is None and next(_valid_times(data, dim), None) is not None
    return stated or (lead is not None and not _has_lead(data))


def _valid_time(data: _Object, dim: str) -> str | None:
    """Name of a coordinate along the times that says that they are not the valid ones."""
    for coord in _valid_times(data, dim):
        if bool(((coord != data[dim]) & coord.notnull()).any()):
            return str(coord.name)
    return None


def _valid_times(data: _Object, dim: str) -> Iterator[xr.DataArray]:
    """Coordinates of valid times along the time dim, of the same kind as its times."""
    for name, coord in data.coords.items():
        told = tells_valid_time(coord)
        # Of any resolution: files of one archive decode to several.
        if told and name != dim and dim in coord.dims and coord.dtype.kind == data[dim].dtype.kind:
            yield coord


def _is_beside_lead(data: _Object, dim: str) -> bool:
    """Whether lead times tell that `dim`, which does not say that it is of valid times, is not."""
    lead = lead_of(data)
    told = dim.lower() == "valid_time" or _standard_name(data, dim) == "time"
    return lead is not None and is_beside_starts(lead) and not (told or start_beside(data, dim))


def _has_lead(data: _Object) -> bool:
    """Whether a coordinate of lead times is there and tells of later than the start."""
    lead = lead_of(data)
    return lead is not None and is_ahead(lead)


def _conversion(
    found: Sequence[Any],
    dims: Sequence[str | None],
    names: _Names,
    single: Sequence[bool] = (False, False),
) -> str:
    """Remedy for times of two kinds; single ones have no dim, which xarray needs to convert."""
    for index, dim, name in zip(found, dims, names, strict=True):
        if dim is not None and getattr(index, "tz", None) is not None:
            data = name.removeprefix("the ")
            times = f"{data}.indexes[{dim!r}].tz_convert(None)"
            return f"convert to UTC without a zone: {data}.assign_coords({dim}={times})"
    if None in dims:
        return "bring both to one calendar, with .convert_calendar"
    if not all(map(_are_dates, found)):
        return "give both dates, for example with xr.decode_cf, or both numbers"
    calendars = [getattr(index, "calendar", "standard") for index in found]
    # What is no cftime stays so; else the first is brought to the calendar of the second.
    change = 1 if not hasattr(found[0], "calendar") else 0
    target, cftime = calendars[1 - change], hasattr(found[1 - change], "calendar")
    name = names[change].removeprefix("the ")
    options = [repr(target), f"use_cftime={cftime}"]
    options += [f"dim={dims[change]!r}"] if dims[change] != "time" else []
    options += ["align_on='date'"] if "360_day" in calendars else []
    call = f"convert_calendar({', '.join(options)})"
    if single[change]:
        call = f"expand_dims({dims[change]!r}).{call}.squeeze({dims[change]!r})"
    return f"convert one: {name}.{call}"


def _kind(index: Any) -> str:
    """Say what times are; two indexes of one kind can be compared."""
    if hasattr(index, "calendar"):
        return f"cftime dates of calendar {index.calendar!r}"
    if getattr(index, "tz", None) is not None:
        return f"dates of time zone {index.tz}"
    kind = index.dtype.kind
    return "datetime64 dates" if kind == "M" else "numbers" if kind in "iuf" else str(index.dtype)
