"""Data sets to try things on: real ones by name, and a simulated one that needs no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, overload

import xarray as xr

from scisparse.datasets.atmosphere import Physics as Physics
from scisparse.datasets.cnrm import ScenarioData as ScenarioData
from scisparse.datasets.cnrm import read_cnrm_iberia
from scisparse.datasets.ersst import read_ersst
from scisparse.datasets.improver import read_improver_uk
from scisparse.datasets.nmme import read_nmme_south_asia
from scisparse.datasets.registry import SOURCES, source_named
from scisparse.datasets.simulate import simulated_ensemble as simulated_ensemble
from scisparse.datasets.store import DATA_VARIABLE as DATA_VARIABLE
from scisparse.datasets.store import locate

__all__ = [
    "DATA_VARIABLE",
    "Physics",
    "ScenarioData",
    "available",
    "load",
    "simulated_ensemble",
]

_READERS: dict[str, Callable[[Mapping[str, Path]], xr.Dataset]] = {
    "nmme_south_asia": read_nmme_south_asia,
    "improver_uk": read_improver_uk,
    "ersst": read_ersst,
}


def available() -> dict[str, str]:
    """List the real data sets: a line about each, by name.

    Examples
    --------
    >>> print(*available(), sep=", ")
    nmme_south_asia, improver_uk, cnrm_iberia, ersst
    """
    return {name: source.summary for name, source in SOURCES.items()}


@overload
def load(name: Literal["nmme_south_asia", "improver_uk", "ersst"]) -> xr.Dataset: ...
@overload
def load(name: Literal["cnrm_iberia"]) -> ScenarioData: ...
@overload
def load(name: str) -> xr.Dataset | ScenarioData: ...
def load(name: str) -> xr.Dataset | ScenarioData:
    """Load a real data set, cleaned, with CF attributes, source, references and licence.

    Files come from the folder that the environment variable ``SCISPARSE_DATA_DIR`` names, or else
    are downloaded once from their public origin and kept in the user's cache. Either way their
    SHA-256 checksums are verified.

    Parameters
    ----------
    name
        One of `available`:

        - ``"nmme_south_asia"``: June to August rainfall [mm per season] of 30 years, forecast in
          May: ``precipitation(time, member 30, lat 34, lon 39)`` with ``model(member)``,
          ``observed(time, lat, lon)``, NaN where less than half of the cell is land, and
          ``land(lat, lon)``. ``time`` is the 1 June of each year as datetime64.
        - ``"improver_uk"``: ``temperature`` [K] and ``wind_speed`` [m s-1] ``(time 3,
          realization 12, projection_y_coordinate 200, projection_x_coordinate 200)``,
          ``temperature_observed``, ``wind_speed_observed``, ``land``, ``roughness`` [m].
        - ``"cnrm_iberia"``: a `ScenarioData` of daily winter means: tas [degC], pr [mm day-1],
          psl [Pa], ta850 [K], hus850 [kg kg-1].
        - ``"ersst"``: ``sst(time 128, lat 89, lon 180)`` [degC], NaN over land, ``land(lat, lon)``.

    Returns
    -------
    xarray.Dataset or ScenarioData
        Everything in memory; latitudes ascend.

    Raises
    ------
    OptionError
        If there is no such data set.
    DataError
        If a file is neither here nor to be had, or is damaged.
    MissingDependencyError
        If a download is needed and pooch is not installed.

    Examples
    --------
    >>> rain = load("nmme_south_asia")  # doctest: +SKIP
    >>> int(rain.land.sum())  # doctest: +SKIP
    643
    """
    source = source_named(name)
    paths = {Path(file.path).name: locate(file, source) for file in source.files}
    if name == "cnrm_iberia":
        return read_cnrm_iberia(paths).with_attributes(source.attributes())
    return _READERS[name](paths).assign_attrs(source.attributes())
