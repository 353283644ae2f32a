"""Winter days over Iberia: a climate model, its scenario, and a reanalysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import xarray as xr

from scisparse.datasets import cf

__all__ = ["ScenarioData", "read_cnrm_iberia"]

_VARIABLES = {
    "tas": ("air_temperature", "air temperature near the surface", "degC"),
    "pr": ("lwe_precipitation_rate", "precipitation", "mm day-1"),
    "psl": ("air_pressure_at_mean_sea_level", "air pressure at mean sea level", "Pa"),
    "ta850": ("air_temperature", "air temperature at 850 hPa", "K"),
    "hus850": ("specific_humidity", "specific humidity at 850 hPa", "kg kg-1"),
}


@dataclass(frozen=True, eq=False)
class ScenarioData:
    """What a bias correction needs: a model's past, its future, and what was observed.

    Parts are attributes and items: ``data.observed`` is ``data["observed"]``, and
    ``xarray.DataTree.from_dict(dict(data))`` makes a tree of them.

    Parameters
    ----------
    historical
        Model, the observed period; for `cnrm_iberia` with the observed days.
    scenario
        Model, a later period, on the grid of `historical`.
    observed
        Observations of the variables at the surface: ``tas`` and ``pr`` for `cnrm_iberia`.
    observed_upper_air
        Observations that have a grid of their own: ``psl``, ``ta850`` and ``hus850``.
    """

    historical: xr.Dataset
    scenario: xr.Dataset
    observed: xr.Dataset
    observed_upper_air: xr.Dataset

    def keys(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(field.name for field in fields(self))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, name: str) -> xr.Dataset:
        if name not in self.keys():
            raise KeyError(name)
        part: xr.Dataset = getattr(self, name)
        return part

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {dict(self[name].sizes)}" for name in self.keys())
        return f"ScenarioData({sizes})"

    def with_attributes(self, attributes: Mapping[str, str]) -> ScenarioData:
        """Return the same data with global attributes set on every part."""
        return replace(self, **{name: self[name].assign_attrs(attributes) for name in self})


def read_cnrm_iberia(paths: Mapping[str, Path]) -> ScenarioData:
    """Read daily winter means of CNRM-CM5 and the NCEP reanalysis.

    Parameters
    ----------
    paths
        Path of each file by its name.

    Returns
    -------
    ScenarioData
        ``historical`` and ``scenario`` ``(time, lat 8, lon 11)``, ``observed`` ``(time, lat 6,
        lon 8)`` and ``observed_upper_air`` ``(time, lat 5, lon 7)``.
    """
    reanalysis = _read(paths["ncep_r1_djf.nc"])
    # One file holds two grids; a Dataset with one each has plain `lat` and `lon`.
    upper = reanalysis[["psl", "ta850", "hus850"]].rename(lat_pl="lat", lon_pl="lon")
    surface = reanalysis[["tas", "pr"]]
    # The packing of the reanalysis leaves dry days at -1e-5 mm.
    surface["pr"] = surface["pr"].clip(min=0.0, keep_attrs=True)
    return ScenarioData(
        historical=_described(_read(paths["cnrm_cm5_historical_djf.nc"])),
        scenario=_described(_read(paths["cnrm_cm5_rcp85_djf.nc"])),
        observed=_described(surface),
        observed_upper_air=_described(upper),
    )


def _read(path: Path) -> xr.Dataset:
    with xr.open_dataset(path) as data:
        return data.load()


def _described(data: xr.Dataset) -> xr.Dataset:
    variables = {}
    for name, variable in data.data_vars.items():
        standard_name, long_name, units = _VARIABLES[str(name)]
        attrs = {
            "standard_name": standard_name,
            "long_name": long_name,
            "units": units,
            "cell_methods": "time: mean",
        }
        variables[name] = (variable.dims, variable.values, attrs)
    return xr.Dataset(
        variables,
        coords={
            "time": cf.valid_time(data["time"].values, "day (December to February only)"),
            "lat": cf.latitude(data["lat"].values),
            "lon": cf.longitude(data["lon"].values),
        },
    )
