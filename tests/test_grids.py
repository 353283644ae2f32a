"""Grids: areas, periodicity, poles, masks, equality, and errors that say what to do."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scisparse import grids
from scisparse.errors import GridError
from scisparse.grids import (
    EARTH_RADIUS,
    Grid,
    LatLonGrid,
    ProjectedGrid,
    UnstructuredGrid,
    grid_from_dict,
    icosahedral,
)
from scisparse.grids.base import unit_vectors
from scisparse.grids.gaussian import gaussian_latitudes
from scisparse.grids.unstructured import voronoi_areas

SPHERE = 4 * np.pi * EARTH_RADIUS**2


def random_points(count: int, seed: int) -> UnstructuredGrid:
    z, lon = np.random.default_rng(seed).uniform(-1, 1, (2, count))
    return UnstructuredGrid(np.arcsin(z), np.pi * lon)


def some_grids() -> dict[str, Grid]:
    rng = np.random.default_rng(0)
    lat, lon = np.sort(rng.uniform(-90, 90, 7)), np.sort(rng.uniform(-180, 180, 9))
    y, x = np.sort(rng.normal(size=(2, 4)), axis=1) * 1e5
    return {
        "regular": LatLonGrid.regular(5, 8),
        "masked": LatLonGrid.regular(5, 8).with_mask(rng.random((5, 8)) < 0.5),
        "uneven": LatLonGrid.from_degrees(lat[::-1], lon),
        "one point": LatLonGrid([0.1], [0.2]),
        "projected": ProjectedGrid(y, x, rng.random((4, 4)) < 0.5),
        "projected with lat": ProjectedGrid(y, x, None, *rng.normal(0, 0.5, (2, 4, 4))),
        "points": random_points(11, 1).with_mask(rng.random(11) < 0.5),
        "points with areas": UnstructuredGrid([0.1, 0.2], [1, 2], areas=[3, 4.5], dims=("cell",)),
        "healpix": grids.healpix(2),
    }


GLOBAL_GRIDS: dict[str, Callable[[], Grid]] = {
    "pole rows": lambda: LatLonGrid.regular(19, 36),
    "cell centres": lambda: LatLonGrid.regular(18, 35, poles=False),
    "two rows": lambda: LatLonGrid.regular(2, 2, poles=False),
    "-180 to 180": lambda: LatLonGrid.from_degrees(np.arange(-89, 90, 2), np.arange(-180, 180, 3)),
    "longitude falls": lambda: LatLonGrid.from_degrees([90, 0, -90], np.arange(350, -10, -10)),
    "date line": lambda: LatLonGrid.from_degrees([-45, 45], (np.arange(0, 360, 30) + 190) % 360),
    "uneven": lambda: LatLonGrid.from_degrees([-80, -20, 0, 30, 70], [0, 50, 110, 200, 280]),
    "Gaussian": lambda: LatLonGrid(gaussian_latitudes(64)[0], np.arange(128) * np.pi / 64),
    "O8": lambda: grids.reduced_gaussian("O8"),
    "O96": lambda: grids.reduced_gaussian("O96"),
    "rows": lambda: grids.reduced_gaussian([3, 8, 9, 4]),
    "healpix": lambda: grids.healpix(16),
    "healpix ring": lambda: grids.healpix(3, "ring"),
    "icosahedral 0": lambda: grids.icosahedral(0),
    "icosahedral 4": lambda: grids.icosahedral(4),
    "random": lambda: random_points(300, 2),
}


@pytest.mark.parametrize("name", GLOBAL_GRIDS)
def test_areas_of_the_sphere_sum_to_its_surface(name: str) -> None:
    areas = GLOBAL_GRIDS[name]().areas
    assert areas.min() > 0
    assert areas.sum() == pytest.approx(SPHERE, rel=1e-12)


def test_areas_of_cells_have_their_closed_form() -> None:
    grid = LatLonGrid.from_degrees([10, 11, 13], [20, 21, 22])
    rows = np.diff(np.sin(np.deg2rad([9.5, 10.5, 12, 14])))
    expected = EARTH_RADIUS**2 * np.deg2rad(1) * np.repeat(rows, 3)
    np.testing.assert_allclose(grid.areas, expected, rtol=1e-13)


@pytest.mark.parametrize("rows", [2, 48, 320])
@pytest.mark.parametrize("decimals", [3, 12])
def test_rows_at_gaussian_latitudes_have_areas_of_gaussian_weights(
    rows: int, decimals: int
) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(rows)
    lat, quarter = np.rad2deg(np.arcsin(nodes)).round(decimals), EARTH_RADIUS**2 * np.pi / 2
    for part in (slice(None), slice(None, None, -1), slice(rows // 2 + 1), slice(rows - 2, None)):
        grid = LatLonGrid.from_degrees(lat[part], [0, 90, 180, 270])
        expected = quarter * np.repeat(weights[part], 4)
        np.testing.assert_allclose(grid.areas, expected, rtol=1e-9)
        back = LatLonGrid(grid.lat_axis[::-1], grid.lon_axis)
        assert np.array_equal(back.areas.reshape(-1, 4)[::-1].ravel(), grid.areas)


def test_area_stops_half_a_step_before_a_pole_that_has_room_for_a_row() -> None:
    grid = LatLonGrid.from_degrees(np.arange(88, -90, -2), np.arange(0, 360, 2))
    assert grid.pole_ends == (False, False)
    assert grid.areas.sum() == pytest.approx(SPHERE * np.sin(np.deg2rad(89)), rel=1e-12)


def test_areas_turn_with_the_axes() -> None:
    rng = np.random.default_rng(3)
    lat, lon = np.sort(rng.uniform(-1.5, 1.5, 6)), np.sort(rng.uniform(0, 5, 7))
    areas = LatLonGrid(lat, lon).areas.reshape(6, 7)
    flipped = LatLonGrid(lat[::-1], lon[::-1]).areas.reshape(6, 7)
    np.testing.assert_allclose(flipped[::-1, ::-1], areas, rtol=1e-14)
    np.testing.assert_allclose(LatLonGrid(lat, lon - np.pi).areas, areas.ravel(), rtol=1e-12)


def test_a_single_row_or_column_is_as_wide_as_the_other_step() -> None:
    square = EARTH_RADIUS**2 * np.deg2rad(2) * 2 * np.sin(np.deg2rad(1))
    np.testing.assert_allclose(LatLonGrid.from_degrees([0], [3, 5]).areas, square, rtol=1e-12)
    np.testing.assert_allclose(LatLonGrid.from_degrees([0, 2], [3]).areas[0], square, rtol=1e-12)
    np.testing.assert_allclose(ProjectedGrid([7], [1, 4]).areas, 9)
    with pytest.raises(GridError, match="areas` of a grid of one point"):
        _ = LatLonGrid([0.0], [0.0]).areas


def test_projected_areas_are_products_of_steps() -> None:
    grid = ProjectedGrid([0, 10, 30], [5, 4])
    np.testing.assert_allclose(grid.areas, [10, 10, 15, 15, 20, 20])
    assert not grid.spherical
    np.testing.assert_array_equal(grid.positions()[:3], [[5, 0], [4, 0], [5, 10]])


@pytest.mark.parametrize(
    ("lon", "periodic", "uniform"),
    [
        (np.arange(0, 360, 1.5), True, True),
        (np.arange(-180, 180, 45), True, True),
        (np.arange(179.5, -180, -1), True, True),
        (np.arange(0, 360, 0.1).astype(np.float32), True, True),
        (np.arange(0, 359, 1.0), False, True),
        (np.arange(60, 101), False, True),
        ([350, 355, 0, 5], False, True),
        ([0, 100, 180, 260], True, False),
        ([0, 180], True, True),
        ([0, 120, 240], True, True),
        ([12], False, True),
        # Gaps side by side.
        ([0, 150], False, True),
        ([0, 200], False, True),
        ([0, 10, 180], False, False),
        ([0, 1, 2, 3, 4, 180], False, False),
        # Nested resolutions.
        ([*range(20), *range(20, 360, 10)], True, False),
    ],
)
def test_longitude_closes_where_the_ends_meet(lon: Any, periodic: bool, uniform: bool) -> None:
    grid = LatLonGrid.from_degrees([0, 1], lon)
    assert grid.periodic == (False, periodic)
    assert grid.uniform_longitude is uniform


@pytest.mark.parametrize("seed", range(4))
def test_a_region_with_an_isolated_column_does_not_close(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.uniform(1.0, 1.4, rng.integers(12, 40))
    steps *= rng.uniform(80.0, 200.0) / steps.sum()
    to_column = rng.uniform(0.42, 0.58) * (360.0 - steps.sum())
    lon = rng.uniform(0.0, 360.0) + np.cumsum([0.0, *steps, to_column])
    for start in range(lon.size):
        axis = np.roll(lon, start) % 360.0
        for way in (1, -1):
            assert LatLonGrid.from_degrees([0, 1], axis[::way]).periodic == (False, False)


@pytest.mark.parametrize(
    ("lat", "ends"),
    [
        ([90, 0, -90], (True, True)),
        ([-89.5, -88.5, -87.5], (True, False)),
        ([0.5, 1.5, 89.5], (False, True)),
        ([89, 88, 87], (False, False)),
        (np.rad2deg(gaussian_latitudes(10)[0]), (True, True)),
        ([10], (False, False)),
    ],
)
def test_pole_ends(lat: Any, ends: tuple[bool, bool]) -> None:
    assert LatLonGrid.from_degrees(lat, [0, 1]).pole_ends == ends


def test_points_of_a_product_grid_run_along_longitude_first() -> None:
    grid = LatLonGrid([0.1, 0.2], [1, 2, 3])
    np.testing.assert_array_equal(grid.lat, [0.1, 0.1, 0.1, 0.2, 0.2, 0.2])
    np.testing.assert_array_equal(grid.lon, [1, 2, 3, 1, 2, 3])
    np.testing.assert_allclose(np.linalg.norm(grid.positions(), axis=1), 1)
    np.testing.assert_allclose(grid.positions()[:, 2], np.sin(grid.lat))


@pytest.mark.parametrize("name", some_grids())
def test_grids_survive_every_kind_of_copy(name: str) -> None:
    grid = some_grids()[name]
    copies = [
        pickle.loads(pickle.dumps(grid)),
        copy.deepcopy(grid),
        grid_from_dict(json.loads(json.dumps(grid.to_dict()))),
        grid.with_mask(grid.mask),
    ]
    for other in copies:
        assert other == grid
        assert hash(other) == hash(grid)
        assert other.dims == grid.dims
        np.testing.assert_array_equal(other.positions(), grid.positions())


def test_grids_differ_when_their_content_does() -> None:
    all_grids = list(some_grids().values())
    assert len(set(all_grids)) == len(all_grids)
    assert LatLonGrid([0.0], [-0.0]) == LatLonGrid([-0.0], [0.0])
    assert LatLonGrid([0.0], [0.0]) != "a grid"
    named = UnstructuredGrid([0.1], [0.2], dims=("cell",))
    assert named == UnstructuredGrid([0.1], [0.2])


def test_grids_cannot_be_changed() -> None:
    axis = np.array([0.1, 0.2])
    grid = LatLonGrid(axis, axis, np.ones((2, 2), dtype=bool))
    axis[0] = 9
    assert grid.lat_axis[0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        grid.lat_axis[0] = 0
    assert grid.mask is not None
    with pytest.raises(ValueError, match="read-only"):
        grid.mask[0, 0] = False
    with pytest.raises(AttributeError):
        grid.mask = None  # type: ignore[misc]


def test_mask_is_kept_in_shape_and_counts_valid_points() -> None:
    mask = np.array([[True, False, True], [False, False, True]])
    grid = LatLonGrid([0.1, 0.2], [0.1, 0.2, 0.3]).with_mask(mask)
    np.testing.assert_array_equal(grid.valid, mask.ravel())
    assert repr(grid).endswith("50 % valid)")
    assert grid.with_mask(None).valid.all()
    assert grid.with_mask(None) != grid


@pytest.mark.parametrize("first", [-10.0, 350.0, -370.0])
def test_regions_across_greenwich_print_as_one_range(first: float) -> None:
    lon = first + 10.0 * np.arange(5)
    text = "lon -10 to 30)" if first != -370.0 else "lon -370 to -330)"
    assert repr(LatLonGrid.from_degrees([0.0, 1.0], lon)).endswith(text)
    assert "lon 30 to -10" in repr(LatLonGrid.from_degrees([0.0], 390.0 - 10.0 * np.arange(5)))
    jumping = LatLonGrid.from_degrees([0.0, 1.0], (lon + 360.0) % 360.0)
    assert repr(jumping).endswith("lon -10 to 30)")


# -- Voronoi cells -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 5, 50, 700])
def test_voronoi_areas_agree_with_scipy(count: int) -> None:
    spatial = pytest.importorskip("scipy.spatial")
    rng = np.random.default_rng(count)
    tetrahedron = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    points = rng.normal(size=(count - 4, 3))
    points = np.concatenate([tetrahedron, points / np.linalg.norm(points, axis=1, keepdims=True)])
    expected = spatial.SphericalVoronoi(points).calculate_areas()
    np.testing.assert_allclose(voronoi_areas(points, radius=1.0), expected, rtol=1e-9, atol=1e-12)


def test_areas_of_points_are_computed_once_and_follow_a_new_mask() -> None:
    grid = random_points(40, 5)
    assert grid.areas is grid.areas
    np.testing.assert_array_equal(grid.with_mask(np.ones(40, dtype=bool)).areas, grid.areas)


def test_areas_need_points_around_the_sphere() -> None:
    region = UnstructuredGrid(*np.random.default_rng(0).uniform(0, 0.5, (2, 30)))
    with pytest.raises(GridError, match=r"hole of .* degrees radius .* give `areas`"):
        _ = region.areas
    given = UnstructuredGrid(region.lat, region.lon, areas=np.full(30, 2.0))
    assert given.areas.sum() == 60
    with pytest.raises(GridError, match="areas` of 3 points cannot be derived"):
        _ = random_points(3, 0).areas
    world = icosahedral(4)
    north = world.lat > np.deg2rad(-70)
    with pytest.raises(GridError, match=r"hole of 2\d\.?\d* degrees radius"):
        _ = UnstructuredGrid(world.lat[north], world.lon[north]).areas
    assert random_points(20_000, 0).areas.min() > 0


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_points_that_coincide_share_their_cell(noise: float) -> None:
    once = random_points(200, 1)
    lat = np.append(once.lat, once.lat[:3] + noise)
    areas = UnstructuredGrid(lat, np.append(once.lon, once.lon[:3])).areas
    np.testing.assert_allclose(areas[:3] + areas[200:], once.areas[:3], rtol=1e-5)
    np.testing.assert_allclose(areas[3:200], once.areas[3:], rtol=1e-5)
    if not noise:
        np.testing.assert_allclose(areas[:3], areas[200:], rtol=1e-12)
    poles = LatLonGrid.regular(19, 36)
    np.testing.assert_allclose(UnstructuredGrid(poles.lat, poles.lon).areas, poles.areas, rtol=5e-3)


# -- builders ----------------------------------------------------------------------------------


NAN = float("nan")
ERRORS: dict[str, tuple[Any, str]] = {
    "empty": (lambda: LatLonGrid([], [0]), r"`lat_axis` \(shape \(0,\)\) must be one-dimensional"),
    "two axes": (lambda: LatLonGrid([[0.0]], [0]), r"`lat_axis` \(shape \(1, 1\)\)"),
    "text": (lambda: ProjectedGrid(["a"], [0]), "`y_axis` must hold numbers"),
    "nan": (lambda: LatLonGrid([0, NAN], [0]), "`lat_axis` must be finite: value 1 is nan"),
    "unsorted": (lambda: LatLonGrid([0, 2, 1], [0]), "values 1 and 2 are 2 and 1; sort the axis"),
    "repeated": (lambda: ProjectedGrid([0], [3, 3]), "`x_axis` must strictly rise"),
    "degrees": (lambda: LatLonGrid([0, 45], [0]), "use LatLonGrid.from_degrees"),
    "beyond": (lambda: LatLonGrid.from_degrees([91], [0]), r"`lat` \(91\) must lie between -90"),
    "overlap": (lambda: LatLonGrid.from_degrees([0], range(361)), "repeats the first meridian"),
    "small": (lambda: LatLonGrid.regular(1, 4), r"`nlat`, `nlon` \(=1, 4\) must both be"),
    "mask shape": (lambda: LatLonGrid([0], [0], [True]), r"`mask` \(shape \(1,\)\) must have"),
    "mask dtype": (lambda: LatLonGrid([0], [0], [[1.0]]), r"`mask` \(dtype float64\) must be bool"),
    "lat alone": (lambda: ProjectedGrid([0], [0], lat=[[0]]), "must be given together"),
    "lat shape": (lambda: ProjectedGrid([0], [0], None, [0, 1], [0, 1]), r"`lat` \(shape \(2,\)\)"),
    "no lat": (lambda: ProjectedGrid([0], [0]).lat, r"`lat` of ProjectedGrid\(1 x 1.* not known"),
    "no lon": (lambda: ProjectedGrid([0], [0]).lon, "`lon` of ProjectedGrid.* build the grid with"),
    "sizes": (lambda: UnstructuredGrid([0, 1], [0]), r"`lon` \(1 values\) must have as many"),
    "points in degrees": (lambda: UnstructuredGrid([45], [0]), "`lat`.* convert degrees"),
    "areas size": (lambda: UnstructuredGrid([0], [0], areas=[1, 2]), r"`areas` \(2 values\)"),
    "areas sign": (lambda: UnstructuredGrid([0], [0], areas=[-1]), "must not be negative"),
    "dims": (lambda: UnstructuredGrid([0], [0], dims=("a", "b")), "`dims` .* must name one axis"),
    "kind": (lambda: grid_from_dict({"kind": "moon"}), "`kind` .='moon'. must be one of"),
    "entry": (lambda: grid_from_dict({"kind": "lat_lon"}), "must have an entry 'lat_axis'"),
    "order": (lambda: grids.healpix(2, "spiral"), "`order` .='spiral'. must be 'nested'"),
    "nside": (lambda: grids.healpix(3), "`nside` .=3. must be at least 1, and a power of two"),
    "float nside": (lambda: grids.healpix(2.0), "`nside` .=2.0. must be an integer"),  # type: ignore[arg-type]
    "float rows": (lambda: LatLonGrid.regular(4.0, 8), "`nlat` .=4.0. must be an integer"),  # type: ignore[arg-type]
    "float level": (lambda: grids.icosahedral(1.0), "`level` .=1.0. must be an integer"),  # type: ignore[arg-type]
    "float row": (lambda: grids.reduced_gaussian([4.5, 4.5]), "`name` .dtype float64. must be"),  # type: ignore[list-item]
    "no rows": (lambda: grids.reduced_gaussian([]), "must give an even number of rows"),
    "classic": (lambda: grids.reduced_gaussian("N320"), "`name` .='N320'. must be an octahedral"),
    "odd rows": (lambda: grids.reduced_gaussian([4, 4, 4]), "must give an even number of rows"),
    "level": (lambda: grids.icosahedral(-1), "`level` .=-1. must lie between 0 and 10"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_value_rule_and_remedy(case: str) -> None:
    build, message = ERRORS[case]
    with pytest.raises(GridError, match=message):
        build()


def test_sizes_are_integers_of_any_kind() -> None:
    # 12 * 64**2 pixels are more than 16 bits number.
    assert grids.healpix(np.int16(64)) == grids.healpix(64)  # type: ignore[arg-type]
    assert grids.icosahedral(np.uint8(2)) == grids.icosahedral(2)  # type: ignore[arg-type]
    assert LatLonGrid.regular(np.int64(4), np.int8(6)) == LatLonGrid.regular(4, 6)  # type: ignore[arg-type]


def test_float32_poles_are_accepted() -> None:
    pole = float(np.float32(np.pi / 2))
    assert pole > np.pi / 2
    assert LatLonGrid([pole, -pole], [0, 1]).lat_axis[0] == np.pi / 2
    np.testing.assert_allclose(
        unit_vectors(np.array([np.pi / 2]), np.zeros(1))[0], [0, 0, 1], atol=1e-15
    )
