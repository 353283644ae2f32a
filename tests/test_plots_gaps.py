"""Cells keep their size beside columns and rows that a regular grid leaves out."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh
from numpy.typing import NDArray

from scisparse import plots

FloatArray = NDArray[np.float64]


def cells(field: xr.DataArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Ends of columns and of rows, and what is drawn between them."""
    axes = plots.map_field(field).axes[0]
    (mesh,) = [child for child in axes.get_children() if isinstance(child, QuadMesh)]
    corners = np.asarray(mesh.get_coordinates())
    values: FloatArray = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan)
    return corners[0, :, 0], corners[:, 0, 1], values


def field_at(lat: FloatArray, lon: FloatArray) -> xr.DataArray:
    values = np.random.default_rng(lon.size).normal(size=(lat.size, lon.size))
    return xr.DataArray(values, {"lat": lat, "lon": lon}, ("lat", "lon"), "t")


@pytest.mark.parametrize("seed", range(5))
def test_cells_of_a_regular_grid_keep_their_size(seed: int) -> None:
    """A part of a grid is drawn as the whole grid with the rest missing."""
    rng = np.random.default_rng(seed)
    lat, lon = np.arange(-37.5, 40.0, 5.0), np.arange(10.0, 150.0, 7.0)
    rows, columns = (np.sort(rng.permutation(n)[: n - 3]) for n in (lat.size, lon.size))
    part = field_at(lat, lon)[rows, columns]
    right, top, values = cells(part)
    for row, north in enumerate(part["lat"].values):
        for column, east in enumerate(part["lon"].values):
            place = np.searchsorted(top, north) - 1, np.searchsorted(right, east) - 1
            assert top[place[0]] == pytest.approx(north - 2.5)
            assert top[place[0] + 1] == pytest.approx(north + 2.5)
            assert right[place[1]] == pytest.approx(east - 3.5)
            assert right[place[1] + 1] == pytest.approx(east + 3.5)
            assert values[place] == part.values[row, column]
    assert np.isfinite(values).sum() == part.size


@pytest.mark.parametrize(
    "lat",
    [
        np.array([0.0, 1.0, 3.0, 7.0, 15.0]),
        np.array([0.0, 30.0]),
        np.degrees(np.arcsin([-0.5, 0, 0.5])),
    ],
)
def test_cells_of_an_uneven_grid_touch(lat: FloatArray) -> None:
    part = field_at(lat, np.array([0.0, 10.0, 20.0]))
    _, top, values = cells(part)
    np.testing.assert_allclose(top[1:-1], 0.5 * (lat[1:] + lat[:-1]))
    np.testing.assert_array_equal(values, part.values)
