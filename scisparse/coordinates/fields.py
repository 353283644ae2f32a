"""Which variables of a file are fields, and which say something of the others."""

from __future__ import annotations

import xarray as xr

__all__ = ["field_names", "told_names"]

# Attributes of CF by which a variable names others.
_NAMING = ("bounds", "climatology", "grid_mapping")


def field_names(data: xr.Dataset) -> list[str]:
    """Names of all variables but bounds of cells and projections; of all where there are no others.

    Examples
    --------
    >>> lat = xr.Variable("lat", [1.0, 3.0], {"bounds": "lat_bnds"})
    >>> bounds = ("lat", "bnds"), [[0.0, 2.0], [2.0, 4.0]]
    >>> field_names(xr.Dataset({"t2m": ("lat", [280.0, 281.0]), "lat_bnds": bounds}, {"lat": lat}))
    ['t2m']
    """
    names, told = [str(name) for name in data.data_vars], told_names(data)
    return [name for name in names if name not in told] or names


def told_names(data: xr.Dataset) -> set[str]:
    """Names of bounds and projections that variables tell, there or not."""
    told = [
        variable.attrs.get(key, variable.encoding.get(key))
        for variable in data.variables.values()
        for key in _NAMING
    ]
    # A projection may come with the coordinates that it is of: "crs: x y".
    return {word.rstrip(":") for each in told if isinstance(each, str) for word in each.split()}
