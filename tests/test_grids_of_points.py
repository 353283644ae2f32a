"""Octahedral, Gaussian, HEALPix and icosahedral grids: points of formulas and of the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scisparse import grids
from scisparse.grids import EARTH_RADIUS, UnstructuredGrid
from scisparse.grids.gaussian import gaussian_latitudes
from scisparse.grids.same import order_of

SWAPPED = [1, 0, 2, 3]
SPHERE = 4 * np.pi * EARTH_RADIUS**2


def test_octahedral_positions_equal_the_file(data_dir: Path) -> None:
    xr = pytest.importorskip("xarray")
    grid = grids.reduced_gaussian("O96")
    with xr.open_dataset(data_dir / "masks" / "lsm_O96.nc") as file:
        np.testing.assert_allclose(np.rad2deg(grid.lat), file["lat"], atol=2e-5)
        np.testing.assert_allclose(np.rad2deg(grid.lon), file["lon"], atol=2e-5)
        assert grids.reduced_gaussian(file["pl"].values) == grid


@pytest.mark.parametrize("rows", [2, 4, 50, 640])
def test_gaussian_latitudes_agree_with_numpy(rows: int) -> None:
    nodes, expected = np.polynomial.legendre.leggauss(rows)
    lat, weight = gaussian_latitudes(rows)
    np.testing.assert_allclose(np.sin(lat), nodes[::-1], atol=1e-14)
    np.testing.assert_allclose(weight, expected[::-1], rtol=1e-8)


def test_octahedral_grids_have_the_points_of_their_formula() -> None:
    for n in (1, 2, 320):
        assert grids.reduced_gaussian(f"O{n}").size == 4 * n * (n + 9)


def test_healpix_positions_equal_the_file(data_dir: Path) -> None:
    xr = pytest.importorskip("xarray")
    grid = grids.healpix(32)
    with xr.open_dataset(data_dir / "unstructured" / "tas-healpix2.nc") as file:
        np.testing.assert_allclose(grid.lat, file["lat"], atol=1e-14)
        np.testing.assert_allclose(grid.lon, file["lon"], atol=1e-14)


@pytest.mark.parametrize("nside", [1, 2, 8])
def test_both_orders_of_healpix_hold_the_same_pixels(nside: int) -> None:
    nested, ring = (grids.healpix(nside, order).positions() for order in ("nested", "ring"))
    distance = np.linalg.norm(nested[:, None] - ring[None], axis=-1)
    np.testing.assert_allclose(distance.min(axis=0), 0, atol=1e-14)
    assert len(set(distance.argmin(axis=0))) == 12 * nside**2


def test_ring_order_runs_south_and_then_east() -> None:
    grid = grids.healpix(5, "ring")
    lat, lon = np.round(grid.lat, 12), grid.lon
    np.testing.assert_array_equal(np.lexsort((lon, -lat)), np.arange(grid.size))


def test_nested_pixels_lie_around_their_parent() -> None:
    parent, children = grids.healpix(4).positions(), grids.healpix(8).positions()
    middle = children.reshape(-1, 4, 3).mean(axis=1)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    nearest = np.linalg.norm(middle[:, None] - parent[None], axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(nearest, np.arange(len(parent)))


@pytest.mark.parametrize("level", range(5))
def test_icosahedral_meshes_have_the_counts_of_theory(level: int) -> None:
    grid, faces = grids.icosahedral(level), grids.icosahedral_faces(level)
    assert grid.size == 10 * 4**level + 2
    assert faces.shape == (20 * 4**level, 3)
    edges = np.unique(np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
    assert len(edges) == 30 * 4**level
    degree = np.bincount(edges.ravel())
    assert sorted(set(degree)) == ([5] if level == 0 else [5, 6])
    assert (degree == 5).sum() == 12


def test_icosahedral_faces_are_anticlockwise_and_cover_the_sphere() -> None:
    points, faces = grids.icosahedral(3).positions(), grids.icosahedral_faces(3)
    a, b, c = (points[faces[:, k]] for k in range(3))
    volume = np.einsum("fk,fk->f", a, np.cross(b, c))
    assert volume.min() > 0
    dots = 1 + sum(np.einsum("fk,fk->f", u, v) for u, v in ((a, b), (b, c), (c, a)))
    assert (2 * np.arctan2(volume, dots)).sum() == pytest.approx(4 * np.pi, rel=1e-12)


def test_levels_of_icosahedral_meshes_are_nested() -> None:
    coarse, fine = grids.icosahedral(2).positions(), grids.icosahedral(3).positions()
    np.testing.assert_allclose(fine[: len(coarse)], coarse, atol=1e-15)


# -- errors ------------------------------------------------------------------------------------


def single(grid: UnstructuredGrid) -> UnstructuredGrid:
    lat, lon = (np.rad2deg(axis).astype("f4").astype("f8") for axis in (grid.lat, grid.lon))
    return UnstructuredGrid(np.deg2rad(lat), np.deg2rad(lon))


@pytest.mark.parametrize("make", [lambda: grids.healpix(16), lambda: grids.reduced_gaussian("O32")])
def test_points_known_by_their_number_need_no_search(
    make: Callable[[], UnstructuredGrid], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make()

    def search(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("scipy.spatial.cKDTree", search)
    order = order_of(single(grid), grid)
    np.testing.assert_array_equal(order, np.arange(grid.size))


@pytest.mark.parametrize("apart", [1e-8, 1e-6, 1e-4])
def test_neighbours_that_changed_places_are_found(apart: float) -> None:
    """Within the rounding of single precision by their number, farther off by their place."""
    lat = np.deg2rad([10.0, 10.0 + apart, 30.0, -50.0])
    grid, swapped = (UnstructuredGrid(lat[order], np.zeros(4)) for order in ([0, 1, 2, 3], SWAPPED))
    np.testing.assert_array_equal(order_of(grid, swapped), SWAPPED)
    np.testing.assert_array_equal(order_of(swapped, grid), SWAPPED)
