"""Times that a model was trained on, and which times of a forecast are among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import find_axes
from scisparse.coordinates import is_start, single_time, valid_times
from scisparse.errors import DataError
from scisparse.times import calendar_name, holds_starts

__all__ = ["SeenTimes"]

_Object = xr.DataArray | xr.Dataset
# scisparse.verification reads it: scores of such times are too good.
_NAME = "in_training"
_ATTRS = {"long_name": "whether the model was trained on the truth of this time"}
_EPOCH = "microseconds since 1970-01-01"


@dataclass(frozen=True)
class SeenTimes:
    """Times of the cases of a training.

    Attributes
    ----------
    values
        Each once, rising: microseconds since 1970 of dates, numbers as they are. Empty where times
        are neither.
    starts
        Whether they are starts of forecasts, or else valid times.
    scale
        Calendar of dates, or units of numbers: times of another one are not compared.
    """

    values: NDArray[Any]
    starts: bool
    scale: str

    @classmethod
    def of(cls, field: xr.DataArray, numbers: NDArray[np.int64]) -> Self:
        """Times of `field` at these places along its dim of times."""
        dim = str(find_axes(field).time)
        values, scale = _numbered(field[dim].isel({dim: np.unique(numbers)}))
        return cls(np.unique(values), holds_starts(field, dim), scale)

    def mark(self, forecast: _Object, target: str) -> _Object:
        """Give a forecast the coordinate ``in_training``, where times of `target` can be compared.

        What is marked stays so: such a forecast is the prediction of another model.
        """
        field = forecast[target] if isinstance(forecast, xr.Dataset) else forecast
        times = _stamps(field, self.starts)
        if times is None or times.isnull().any():
            return forecast
        values, scale = _numbered(times)
        if scale != self.scale or not values.size:
            return forecast
        seen = xr.Variable(times.dims, np.isin(values, self.values))
        if _NAME in field.coords:
            seen = seen | (field[_NAME].variable == 1)
        return forecast.assign_coords({_NAME: (seen.dims, seen.values, _ATTRS)})

    def to_dict(self) -> dict[str, Any]:
        """Tell in JSON what the values are."""
        return {"starts": self.starts, "scale": self.scale}

    @classmethod
    def from_parts(cls, values: NDArray[Any], told: Mapping[str, Any]) -> Self:
        """Join values and what :meth:`to_dict` told of them.

        Raises
        ------
        DataError
            No training leaves such times.
        """
        rising = values.ndim == 1 and bool((values[1:] > values[:-1]).all())
        types = type(told["starts"]), type(told["scale"]), str(values.dtype)
        if not rising or types not in [(bool, str, kind) for kind in ("int64", "float64")]:
            raise DataError(
                f"times of the training are {values.dtype} of shape {values.shape}, {dict(told)}; "
                "they must be numbers that rise, and say whether they are starts, and on what scale"
            )
        return cls(values, told["starts"], told["scale"])


def _stamps(field: xr.DataArray, starts: bool) -> xr.DataArray | None:
    """Starts of a forecast, or else its valid times, where they are known."""
    dim = find_axes(field).time
    if dim is None:
        time = single_time(field)
        told = time is not None and is_start(time)
    else:
        time = field[dim] if dim in field.coords else None
        told = time is not None and holds_starts(field, dim)
    if time is None or starts:
        return time if told else None
    valid = valid_times(field)
    if told:  # several starts stand in for valid times that are not known
        return None if valid is None or valid.name == time.name else valid
    return time if valid is None else valid


def _numbered(times: xr.DataArray) -> tuple[NDArray[Any], str]:
    """Times as numbers, none where they are no dates or numbers, and their scale."""
    if times.dtype.kind == "M":
        return times.values.astype("datetime64[us]").astype(np.int64), "standard"
    if times.dtype.kind in "iuf":
        return times.values.astype(np.float64), str(times.attrs.get("units", ""))
    calendars = {getattr(time, "calendar", None) for time in times.values.flat}
    if len(calendars) != 1 or None in calendars:
        return np.empty(0), ""
    import cftime

    numbers = np.asarray(cftime.date2num(times.values, _EPOCH), dtype=np.int64)
    return numbers, calendar_name(str(calendars.pop()))
