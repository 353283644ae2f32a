"""Times of a forecast and of what it is compared with: whether the two can be paired."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import find_dim
from scisparse.errors import DataError

__all__ = ["check_stamps", "check_starts"]

_Object = xr.DataArray | xr.Dataset
_START = "forecast_reference_time"
# In small letters; S is that of the NMME archive.
_START_NAMES = (_START, "init_time", "s")
# Share of the smallest step: nearer times are one time, written in two ways.
_NEAR = 0.1


def check_stamps(first: _Object, second: _Object, names: tuple[str, str]) -> None:
    """Raise when times cannot be compared, or nearly match.

    Times match when they are equal. Rounding, as of times in single precision, must not lose cases
    without a word.

    Parameters
    ----------
    first, second
        Objects with times; without a time dim, or a coordinate of it, nothing is checked.
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
        return
    kinds = [_kind(index) for index in found]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"times of {names[0]} are {kinds[0]} but of {names[1]} {kinds[1]}; convert one, for "
            "example with .convert_calendar('standard', use_cftime=False)"
        )
    _check_near(found[0], found[1], str(dims[0]), names)


def check_starts(forecast: _Object, observed: _Object, names: tuple[str, str]) -> None:
    """Raise when the forecast is stamped with its starts, and the observation with its own times.

    A forecast has starts where the ``standard_name`` or the name of its time says so, or a
    coordinate of valid times differs from it.

    Parameters
    ----------
    forecast, observed
        Objects with times; without a time dim nothing is checked.
    names
        Their names for errors.

    Raises
    ------
    DataError
        Truth of the start would be compared with a forecast for later.
    """
    first, second = find_dim(forecast, "time"), find_dim(observed, "time")
    if first is None or second is None:
        return
    lead = find_dim(forecast, "lead")
    shared = lead is not None and lead in observed.dims
    leads = [] if lead is None or shared or forecast.sizes[lead] == 1 else [lead]
    stated = _standard_name(forecast, first) == _START
    valid = _valid_time(forecast, first)
    starts = stated or first.lower() in _START_NAMES
    later = valid is not None or (starts and _has_lead(forecast))
    both = (
        _standard_name(observed, second) == _START
        or second.lower() in _START_NAMES
        or _valid_time(observed, second) is not None
    )
    unlike = (stated and _standard_name(observed, second) == "time") or (later and not shared)
    repeated = bool(leads) and (starts or valid is not None)
    if not repeated and (both or not unlike):
        return
    later_by = "a lead time" if valid is None else f"coordinate {valid!r}"
    sign = f"standard_name {_START!r}" if stated else f"{later_by} tells of later times"
    remedy = f"observation.sel({second}=valid_times)"
    if valid is not None and not leads:
        remedy += f", or give the forecast its valid times: .swap_dims({first}={valid!r})"
    raise DataError(
        f"dim {first!r} of {names[0]} holds starts ({sign}) but {second!r} of {names[1]} does not; "
        f"give {names[1]} the same starts{f' and dims {leads}' if leads else ''}, with "
        f"standard_name {_START!r}, for example with {remedy}"
    )


def _standard_name(data: _Object, dim: str) -> object:
    return data[dim].attrs.get("standard_name")


def _valid_time(data: _Object, dim: str) -> str | None:
    """Name of a coordinate along the times that says that they are not the valid ones."""
    for name, coord in data.coords.items():
        told = name == "valid_time" or coord.attrs.get("standard_name") == "time"
        if not told or name == dim or dim not in coord.dims or coord.dtype != data[dim].dtype:
            continue
        if bool(((coord != data[dim]) & coord.notnull()).any()):
            return str(name)
    return None


def _has_lead(data: _Object) -> bool:
    """Whether a coordinate of lead times is there and not 0."""
    for name, coord in data.coords.items():
        alone = xr.DataArray([0], {name: (name, [0], coord.attrs)}, (name,))
        if find_dim(alone, "lead") == name and coord.dtype.kind in "fium":
            return bool((coord != np.zeros((), coord.dtype)).any())
    return False


def _kind(index: Any) -> str:
    """Say what times are; two indexes of one kind can be compared."""
    if hasattr(index, "calendar"):
        return f"cftime dates of calendar {index.calendar!r}"
    kind = index.dtype.kind
    return "datetime64 dates" if kind == "M" else "numbers" if kind in "iuf" else str(index.dtype)


def _check_near(first: Any, second: Any, dim: str, names: tuple[str, str]) -> None:
    """Raise when times nearly match; both are of one kind."""
    equal = first.isin(second)
    if equal.all() or first.hasnans or second.hasnans or second.empty:
        return
    if not hasattr(first, "calendar") and first.dtype.kind not in "Miuf":
        return
    start = second[0]
    ours, theirs = _since(first, start), np.sort(_since(second, start))
    steps = np.concatenate([np.diff(np.unique(times)) for times in (ours, theirs)])
    after = np.searchsorted(theirs, ours).clip(1, max(len(theirs) - 1, 1))
    nearest = np.stack([theirs[after - 1], theirs[after.clip(max=len(theirs) - 1)]])
    distance = np.abs(nearest - ours).min(0)
    near = ~equal & (distance < _NEAR * steps.min(initial=np.inf))
    if not near.any():
        return
    one = first[int(np.argmax(near))]
    other = second[int(np.abs(_since(second, start) - _since(first[near][:1], start)).argmin())]
    raise DataError(
        f"{near.sum()} of {len(first)} times of {names[0]} nearly match a time of {names[1]}, such "
        f"as {one} and {other}, and {equal.sum()} match; round both to the same stamps, for "
        f"example with .assign_coords({dim}=data[{dim!r}].dt.round('h'))"
    )


def _since(index: Any, start: Any) -> NDArray[np.float64]:
    """Times since `start`, in seconds where they are dates."""
    elapsed = np.asarray(index - start)
    if elapsed.dtype.kind == "m":
        elapsed = elapsed / np.timedelta64(1, "s")
    return elapsed.astype(np.float64)
