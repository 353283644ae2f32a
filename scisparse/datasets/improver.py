"""UK weather: MOGREPS-UK ensemble forecasts with the UKV analysis, on a 2 km projected grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from scisparse.datasets import cf
from scisparse.errors import DataError

__all__ = ["read_improver_uk"]

_AXES = {"projection_y_coordinate": "Y", "projection_x_coordinate": "X"}
_PROJECTION = "lambert_azimuthal_equal_area"
_START = "forecast_reference_time"


def read_improver_uk(paths: Mapping[str, Path]) -> xr.Dataset:
    """Read the forecasts, one case a file, with the analyses of the same times.

    Parameters
    ----------
    paths
        Path of each file by its name.

    Returns
    -------
    xarray.Dataset
        ``temperature`` [K] and ``wind_speed`` [m s-1] ``(time, realization, y, x)``,
        ``temperature_observed`` and ``wind_speed_observed`` ``(time, y, x)``, ``land`` and
        ``roughness`` ``(y, x)``, on axes in metres.
    """
    air, wind = "air temperature at 1.5 m", "wind speed at 10 m"
    fields = {
        "temperature": _cases(paths, "temp_fc", "air_temperature", air),
        "wind_speed": _cases(paths, "wind_fc", "wind_speed", wind),
        "temperature_observed": _cases(paths, "temp_truth", "air_temperature", f"analysed {air}"),
        "wind_speed_observed": _cases(paths, "wind_truth", "wind_speed", f"analysed {wind}"),
    }
    started = fields["temperature"][_START]
    with xr.open_dataset(paths["landmask.nc"]) as data:
        land = data["land_binary_mask"].load() == 1
        projection = xr.Variable((), np.int32(0), data[_PROJECTION].attrs)
    land.attrs = {"standard_name": "land_binary_mask", "long_name": "land"}
    with xr.open_dataset(paths["roughness_length.nc"]) as data:
        roughness = data["vegetative_roughness_length"].load()
    roughness.attrs = {"long_name": "roughness length of the vegetation", "units": "m"}
    everything = fields | {"land": land, "roughness": roughness}
    result = _on_one_grid({name: _bare(field) for name, field in everything.items()})
    return result.assign_coords(
        {
            "time": cf.valid_time(result["time"].values),
            _START: cf.reference_time(started.values),
            _PROJECTION: projection,
        }
    )


def _cases(paths: Mapping[str, Path], kind: str, variable: str, long_name: str) -> xr.DataArray:
    """Stack the cases of one kind in order of time."""
    cases = [_case(path, variable) for name, path in paths.items() if name.startswith(kind)]
    cases.sort(key=lambda case: str(case["time"].values[0]))
    field = xr.concat(cases, "time", coords="minimal", compat="override", join="override")
    units = cases[0].attrs["units"]
    field.attrs = {"standard_name": variable, "long_name": long_name, "units": units}
    return field


def _case(path: Path, variable: str) -> xr.DataArray:
    """Read one file's field and give it a time dim."""
    with xr.open_dataset(path) as data:
        field = data[variable].load().expand_dims("time")
    return field.assign_coords({_START: ("time", field[_START].values.reshape(1))})


def _bare(field: xr.DataArray) -> xr.DataArray:
    """Leave the axes alone: heights and starts differ between the variables."""
    field = field.reset_coords(drop=True)
    field.attrs["grid_mapping"] = _PROJECTION
    field.encoding = {}
    return field


def _on_one_grid(fields: Mapping[str, xr.DataArray]) -> xr.Dataset:
    try:
        xr.align(*fields.values(), join="exact", copy=False)
    except xr.AlignmentError as error:
        raise DataError(
            "the files of improver_uk have different grids, members or times; replace them by "
            "those of its origin"
        ) from error
    data = xr.Dataset(fields)
    axes = {
        name: (name, data[name].values.astype(np.float64), _axis_attributes(name, axis, "m"))
        for name, axis in _AXES.items()
    }
    member = data["realization"].values
    axes["realization"] = ("realization", member, _axis_attributes("realization", "E", "1"))
    return data.assign_coords(axes)


def _axis_attributes(standard_name: str, axis: str, units: str) -> dict[str, str]:
    return {"standard_name": standard_name, "axis": axis, "units": units}
