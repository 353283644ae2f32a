"""Seasonal rainfall over South Asia: NMME hindcasts and CHIRPS, on common 1-degree cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.datasets import cf
from scisparse.errors import DataError

__all__ = ["MODELS", "coarsen_to", "read_nmme_south_asia", "season_start"]

MODELS = {"CCSM4": "CCSM4.PRCP.nc", "CanSIPS-IC3": "CanSIPSIC3.PRCP.nc"}
"""Models in the order of their members, and their files."""

_LEAST_COVERAGE = 0.5
_SEASON = "start of the season (1 June; the season is June to August)"
# The files say mm/day; the values are totals of the season.
_RAIN = {
    "standard_name": "lwe_thickness_of_precipitation_amount",
    "units": "mm",
}


def read_nmme_south_asia(paths: Mapping[str, Path]) -> xr.Dataset:
    """Read hindcasts and observations of June to August rainfall.

    Parameters
    ----------
    paths
        Path of each file by its name.

    Returns
    -------
    xarray.Dataset
        ``precipitation(time, member, lat, lon)`` and ``observed(time, lat, lon)`` [mm per season],
        ``land(lat, lon)``; time is the first day of the season.
    """
    hindcasts = {model: _read(paths[name], "prec") for model, name in MODELS.items()}
    rain = _read(paths["UCSB.PRCP.nc"], "prcp").squeeze("M", drop=True)
    starts = {model: season_start(data["S"], _middle(data)) for model, data in hindcasts.items()}
    times = season_start(rain["T"], np.array(0.0))
    for model, found in starts.items():
        if not np.array_equal(found, times):
            raise DataError(f"{model} and CHIRPS hold different seasons; check {MODELS[model]}")
    first = next(iter(hindcasts.values()))
    observed, land = coarsen_to(rain, first["Y"].values, first["X"].values)
    inside = {"Y": observed["Y"], "X": observed["X"]}
    # The two models order their dims differently, so dims go by name.
    parts = [
        data.squeeze("L", drop=True).sel(inside).transpose("S", "M", "Y", "X")
        for data in hindcasts.values()
    ]
    dims = ("time", "member", "lat", "lon")
    attrs = {"long_name": "June to August rainfall, forecast", "cell_methods": "time: sum"}
    observed_attrs = {
        "long_name": "June to August rainfall, observed by CHIRPS",
        "cell_methods": "time: sum lat: lon: mean",
    }
    values = np.concatenate([part.values for part in parts], axis=1, dtype=np.float32)
    return xr.Dataset(
        {
            "precipitation": (dims, values, _RAIN | attrs),
            "observed": (
                ("time", "lat", "lon"),
                observed.transpose("T", "Y", "X").values.astype(np.float32),
                _RAIN | observed_attrs,
            ),
            "land": cf.land_mask(
                ("lat", "lon"),
                land.transpose("Y", "X").values,
                "cells of which at least half is land",
            ),
        },
        coords={
            "time": cf.valid_time(times, _SEASON),
            "forecast_reference_time": cf.reference_time(_months(first["S"])),
            "member": cf.members(values.shape[1]),
            "model": _model_of_member(parts),
            "lat": cf.latitude(observed["Y"].values),
            "lon": cf.longitude(observed["X"].values),
        },
    )


def season_start(axis: xr.DataArray, lead: NDArray[np.floating]) -> NDArray[np.datetime64]:
    """First day of the 3-month seasons whose middle is `lead` months after an axis of months.

    The axis counts months since 1960-01-01 in a 360-day calendar, as the IRI data library writes
    it. The first of a month exists in every calendar, so that the result is plain datetime64.
    """
    return _months(axis + (lead - 1.5))


def coarsen_to(
    rain: xr.DataArray, lat: NDArray[np.floating], lon: NDArray[np.floating]
) -> tuple[xr.DataArray, xr.DataArray]:
    """Average fine cells over the 1-degree cells that they cover completely.

    Parameters
    ----------
    rain
        Fine field with dims ``Y``, ``X`` (0.25 degrees) and any others; NaN over sea.
    lat, lon
        Centres of the 1-degree cells; those that reach beyond the fine field are dropped.

    Returns
    -------
    tuple of xarray.DataArray
        The mean over the fine cells that are not NaN, NaN where they are fewer than half; and the
        mask of the cells where they are not fewer.

    Raises
    ------
    DataError
        If the coarse cells are not made of whole fine cells.
    """
    inner_lat, inner_lon = _interior(lat, rain["Y"].values), _interior(lon, rain["X"].values)
    fine = rain.astype(np.float64).sel(
        Y=slice(inner_lat[0] - 0.5, inner_lat[-1] + 0.5),
        X=slice(inner_lon[0] - 0.5, inner_lon[-1] + 0.5),
    )
    if (fine.sizes["Y"], fine.sizes["X"]) != (4 * inner_lat.size, 4 * inner_lon.size):
        raise DataError(
            f"the 1-degree cells hold {fine.sizes['Y']} x {fine.sizes['X']} fine cells, not "
            f"{4 * inner_lat.size} x {4 * inner_lon.size}; each must hold 4 x 4"
        )
    blocks = fine.coarsen(Y=4, X=4)
    coverage = fine.notnull().coarsen(Y=4, X=4).mean()
    enough = coverage >= _LEAST_COVERAGE
    mean = blocks.mean().where(enough)
    land = enough.all([dim for dim in enough.dims if dim not in ("Y", "X")])
    centres = {"Y": inner_lat, "X": inner_lon}
    return mean.assign_coords(centres), land.assign_coords(centres)


def _interior(coarse: NDArray[np.floating], fine: NDArray[np.floating]) -> NDArray[np.floating]:
    """Centres of the 1-degree cells that lie inside an ascending 0.25-degree axis."""
    low, high = fine[0] - 0.125, fine[-1] + 0.125
    kept: NDArray[np.floating] = coarse[(coarse - 0.5 >= low) & (coarse + 0.5 <= high)]
    if kept.size == 0:
        raise DataError(f"no 1-degree cell lies between {low} and {high} degrees; check the axes")
    return kept


def _read(path: Path, variable: str) -> xr.DataArray:
    # The axes' calendar is called "360", which no decoder knows.
    with xr.open_dataset(path, decode_times=False) as data:
        return data[variable].load()


def _middle(data: xr.DataArray) -> NDArray[np.floating]:
    """Lead of the middle of the season in months; the files hold one."""
    lead: NDArray[np.floating] = data["L"].values
    return lead[:1]


def _months(axis: xr.DataArray) -> NDArray[np.datetime64]:
    counts = np.rint(axis.values)
    if not np.allclose(counts, axis.values, atol=1e-3):
        raise DataError(
            f"{axis.name} is not at the start of a month: {axis.values[0]} months since 1960-01-01"
        )
    days: NDArray[np.datetime64] = np.datetime64("1960-01", "M") + counts.astype("timedelta64[M]")
    return days.astype("datetime64[ns]")


def _model_of_member(parts: list[xr.DataArray]) -> xr.Variable:
    names = [name for name, part in zip(MODELS, parts, strict=True) for _ in range(part.sizes["M"])]
    return xr.Variable("member", np.array(names), {"long_name": "forecast model of the member"})
