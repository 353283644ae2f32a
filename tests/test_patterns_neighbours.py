"""Neighbours by distance: all pairs by brute force, masks, poles, the date line, the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scisparse import grids
from scisparse.errors import GridError, OptionError, PatternError
from scisparse.grids import EARTH_RADIUS, Grid, LatLonGrid, ProjectedGrid, UnstructuredGrid
from scisparse.pattern import Pattern, geometry
from scisparse.patterns import nearest, neighbours, radius

pytest.importorskip("scipy")


def distances(sites: Grid, sources: Grid) -> NDArray[np.float64]:
    """Metres between every site and source, by another formula than the one under test."""
    a, b = sites.positions(), sources.positions()
    if not sites.spherical:
        return np.asarray(np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)))
    crossed = np.linalg.norm(np.cross(a[:, None], b[None]), axis=-1)
    return np.asarray(EARTH_RADIUS * np.arctan2(crossed, a @ b.T))


def bearings(pattern: Pattern, sites: Grid, sources: Grid) -> NDArray[np.float64]:
    """Initial bearing of every edge, by the formula of spherical trigonometry."""
    i, j = pattern.rows().numpy(), pattern.col.numpy()
    turn = sources.lon[j] - sites.lon[i]
    east = np.sin(turn) * np.cos(sources.lat[j])
    north = np.cos(sites.lat[i]) * np.sin(sources.lat[j])
    north = north - np.sin(sites.lat[i]) * np.cos(sources.lat[j]) * np.cos(turn)
    return np.asarray(np.arctan2(east, north))


def random_points(count: int, seed: int) -> UnstructuredGrid:
    z, lon = np.random.default_rng(seed).uniform(-1, 1, (2, count))
    return UnstructuredGrid(np.arcsin(z), np.pi * lon)


def masked(grid: Grid, seed: int) -> Grid:
    return grid.with_mask(np.random.default_rng(seed).random(grid.shape) < 0.6)


PLANE = ProjectedGrid(np.arange(9) * 1e5, np.cumsum(np.arange(11)) * 3e4)
GRIDS: dict[str, Grid] = {
    "poles": LatLonGrid.regular(13, 24),
    "-180 to 180, south first": LatLonGrid.from_degrees(range(-85, 90, 10), range(-180, 180, 15)),
    "masked": masked(LatLonGrid.regular(13, 24), 0),
    "healpix": grids.healpix(4),
    "O8": grids.reduced_gaussian("O8"),
    "random": random_points(200, 1),
    "one point": UnstructuredGrid([0.3], [2.0]),
    "plane": PLANE,
    "masked plane": masked(PLANE, 1),
}
PAIRS = [(a, a) for a in GRIDS] + [
    ("healpix", "poles"), ("masked", "O8"), ("one point", "random"), ("random", "one point"),
    ("masked plane", "plane"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "site"), PAIRS)
@pytest.mark.parametrize("metres", [0.0, 9e5, 2.5e6, 1.4e7, 3e7])
def test_radius_finds_every_pair(source: str, site: str, metres: float) -> None:
    sources, sites = GRIDS[source], GRIDS[site]
    pattern = radius(sources, metres, sites=sites).validate()
    apart = distances(sites, sources)
    expected = (apart <= metres + 1e-3) & sites.valid[:, None] & sources.valid
    assert torch.equal(pattern.to_dense(), torch.from_numpy(expected))
    assert pattern.site_grid is sites
    assert pattern.source_grid is sources
    assert pattern.distance is not None
    edges = apart[pattern.rows(), pattern.col]
    # Near the antipode a straight distance tells metres only to the square root of rounding.
    np.testing.assert_allclose(pattern.distance, edges, rtol=2e-7, atol=0.2)


@pytest.mark.parametrize(("source", "site"), PAIRS)
@pytest.mark.parametrize("k", [1, 4, 30])
def test_nearest_finds_the_smallest_distances(source: str, site: str, k: int) -> None:
    sources, sites = GRIDS[source], GRIDS[site]
    if k > sources.valid.sum():
        with pytest.raises(OptionError, match=f"`k` .={k}. must lie between 1 and the 1 sources"):
            nearest(sources, k, sites=sites)
        return
    pattern = nearest(sources, k, sites=sites).validate()
    assert pattern.fan_in.tolist() == (k * sites.valid).tolist()
    apart = np.where(sources.valid, distances(sites, sources), np.inf)
    expected = np.sort(apart, axis=1)[sites.valid, :k]
    found = apart[pattern.rows(), pattern.col].reshape(-1, k)
    np.testing.assert_allclose(np.sort(found, axis=1), expected, atol=0.2)


@pytest.mark.parametrize("name", GRIDS)
def test_a_site_need_not_read_itself(name: str) -> None:
    grid = GRIDS[name]
    whole = radius(grid, 2e6)
    pattern = radius(grid, 2e6, include_self=False).validate()
    others = whole.to_dense() & ~torch.eye(grid.size, dtype=torch.bool)
    assert torch.equal(pattern.to_dense(), others)
    if grid.size > 1:
        k_nearest = nearest(grid, 3, include_self=False).validate()
        assert not (k_nearest.rows() == k_nearest.col).any()
        assert k_nearest.fan_in.tolist() == (3 * grid.valid).tolist()


@pytest.mark.parametrize("k", [1, 3, 7])
def test_points_that_coincide_still_leave_a_fan_in_of_k(k: int) -> None:
    grid = LatLonGrid.regular(3, 40)
    assert set(nearest(grid, k, include_self=False).fan_in.tolist()) == {k}
    limited = radius(grid, 1.0, include_self=False, max_fan_in=k).validate()
    assert limited.fan_in.tolist() == [k] * 40 + [0] * 40 + [k] * 40


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_max_fan_in_keeps_the_nearest(name: str, limit: int) -> None:
    grid = GRIDS[name]
    whole, pattern = radius(grid, 2.5e6), radius(grid, 2.5e6, max_fan_in=limit).validate()
    assert torch.equal(pattern.fan_in, whole.fan_in.clamp(max=limit))
    assert not (pattern.to_dense() & ~whole.to_dense()).any()
    apart = np.where(whole.to_dense().numpy(), distances(grid, grid), np.inf)
    order = np.sort(apart, axis=1)
    row_ptr, col = pattern.row_ptr.tolist(), pattern.col.numpy()
    for row in range(0, grid.size, 17):
        mine = np.sort(apart[row, col[row_ptr[row] : row_ptr[row + 1]]])
        np.testing.assert_allclose(mine, order[row, : mine.size], atol=1e-2)


@pytest.mark.parametrize("name", ["poles", "masked", "healpix", "O8", "random"])
def test_bearings_are_those_of_great_circles(name: str) -> None:
    grid = GRIDS[name]
    pattern = radius(grid, 3e6, include_self=False)
    assert pattern.bearing is not None
    assert pattern.distance is not None
    assert 0 <= float(pattern.bearing.min()) <= float(pattern.bearing.max()) < 6.2831860
    # Points that coincide at a pole have no direction.
    apart = pattern.distance.numpy() > 1
    turned = np.asarray(pattern.bearing)[apart] - bearings(pattern, grid, grid)[apart]
    np.testing.assert_allclose(np.exp(1j * turned), 1, atol=1e-6)


def test_bearings_on_the_equator_and_in_the_plane_are_compass_directions() -> None:
    for grid in (
        LatLonGrid.from_degrees([-1, 0, 1], [-1, 0, 1]),
        ProjectedGrid([0, 1, 2], [0, 1, 2]),
    ):
        pattern = radius(grid, 1.2 * (111_195 if grid.spherical else 1))
        assert pattern.bearing is not None
        start, stop = pattern.row_ptr[4:6].tolist()
        assert pattern.col[start:stop].tolist() == [1, 3, 4, 5, 7]
        expected = np.pi * np.array([1, 1.5, 0, 0.5, 0])
        np.testing.assert_allclose(pattern.bearing[start:stop], expected, atol=1e-6)


def test_distances_that_equal_the_radius_count_on_every_row_and_column() -> None:
    grid = LatLonGrid.regular(37, 72)
    two_rows = radius(grid, np.deg2rad(10) * EARTH_RADIUS)
    for row in two_rows.fan_in.reshape(37, 72)[1:-1]:
        assert len(set(row.tolist())) == 1


@pytest.mark.parametrize("poles", [True, False])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("k", [1, 4, 6, 16])
def test_among_sources_at_one_distance_all_longitudes_choose_alike(
    poles: bool, include_self: bool, k: int
) -> None:
    """Not by how their positions are rounded: east and west, or the points on a pole."""
    nlat, nlon = 18 + poles, 36
    grid = LatLonGrid.regular(nlat, nlon, poles=poles)
    for pattern in (
        nearest(grid, k, include_self=include_self),
        radius(grid, 3e6, max_fan_in=k, include_self=include_self),
    ):
        dense = pattern.to_dense().view(nlat, nlon, nlat, nlon)
        for step in (1, 5, 18):
            assert torch.equal(dense.roll((step, step), (1, 3)), dense)


def test_of_points_at_one_place_each_is_its_own_nearest() -> None:
    lat, lon = np.tile(np.random.default_rng(0).uniform(-1, 1, (2, 10)), 3)
    for mask in (None, np.arange(30) % 4 > 0):
        grid = UnstructuredGrid(lat, lon, mask)
        assert torch.equal(nearest(grid, 1).col, torch.from_numpy(np.flatnonzero(grid.valid)).int())


def test_sources_at_one_distance_are_read_clockwise_from_north() -> None:
    plane = ProjectedGrid([0, 1, 2], [0, 1, 2])
    for k, expected in ((2, [4, 7]), (3, [4, 5, 7]), (4, [1, 4, 5, 7]), (6, [1, 3, 4, 5, 7, 8])):
        pattern = nearest(plane, k)
        start, stop = pattern.row_ptr[4:6].tolist()
        assert pattern.col[start:stop].tolist() == expected


def test_the_search_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = LatLonGrid.regular(19, 36)
    whole = [radius(grid, 1.5e6), nearest(grid, 6), radius(grid, 1.5e6, include_self=False)]
    monkeypatch.setattr(neighbours, "_CHUNK_EDGES", 50)
    parts = [radius(grid, 1.5e6), nearest(grid, 6), radius(grid, 1.5e6, include_self=False)]
    assert parts == whole


def test_projected_sites_read_sources_on_the_sphere_by_their_latitude_and_longitude() -> None:
    lat, lon = np.random.default_rng(2).uniform(0.5, 0.8, (2, 3, 4))
    plane = ProjectedGrid(range(3), range(4), None, lat, lon)
    points = UnstructuredGrid(lat.ravel(), lon.ravel())
    globe = LatLonGrid.regular(37, 72)
    for pattern, expected in (
        (nearest(globe, 3, sites=plane), nearest(globe, 3, sites=points)),
        (radius(plane, 2e6, sites=globe), radius(points, 2e6, sites=globe)),
    ):
        assert torch.equal(pattern.to_dense(), expected.to_dense())
    assert torch.equal(nearest(plane, 1).col, torch.arange(12, dtype=torch.int32))


@pytest.mark.parametrize("limit", [None, 2])
def test_masks_without_points_leave_no_edges(limit: int | None) -> None:
    grid = LatLonGrid.regular(3, 4)
    nowhere = grid.with_mask(np.zeros((3, 4), dtype=bool))
    for sources, sites in ((nowhere, nowhere), (nowhere, grid), (grid, nowhere)):
        pattern = radius(sources, 1e7, sites=sites, max_fan_in=limit).validate()
        assert (pattern.num_edges, pattern.shape) == (0, (12, 12))
    assert nearest(grid, 2, sites=nowhere).num_edges == 0
    with pytest.raises(OptionError, match="the 0 sources"):
        nearest(nowhere, 1)


GLOBE = LatLonGrid.regular(3, 4)
ERRORS: dict[str, tuple[Any, type[ValueError], str]] = {
    "negative": (lambda: radius(GLOBE, -1), OptionError, "`metres` .=-1. must be finite and not"),
    "nan": (lambda: radius(GLOBE, float("nan")), OptionError, "`metres` .=nan."),
    "metres in words": (
        lambda: radius(GLOBE, "900 km"),  # type: ignore[arg-type]
        OptionError,
        "`metres` .='900 km'. must be finite and not negative, a number",
    ),
    "shape": (
        lambda: radius((10, 20), 3e5),  # type: ignore[arg-type]
        OptionError,
        "`sources_grid` .tuple. must be a grid, such as",
    ),
    "no grid": (lambda: nearest(None, 2), OptionError, "`sources_grid` .NoneType. must be"),  # type: ignore[arg-type]
    "shape of sites": (
        lambda: nearest(GLOBE, 2, sites=(10, 20)),  # type: ignore[arg-type]
        OptionError,
        "`sites` .tuple. must be a grid",
    ),
    "fan-in": (lambda: radius(GLOBE, 1, max_fan_in=0), OptionError, "`max_fan_in` .=0. must be"),
    "float fan-in": (
        lambda: radius(GLOBE, 1, max_fan_in=2.5),  # type: ignore[arg-type]
        OptionError,
        "`max_fan_in` .=2.5. must be an integer",
    ),
    "float k": (lambda: nearest(GLOBE, 2.0), OptionError, "`k` .=2.0. must be an integer"),  # type: ignore[arg-type]
    "k": (lambda: nearest(GLOBE, 0), OptionError, "`k` .=0. must lie between 1 and the 12"),
    "k and self": (lambda: nearest(GLOBE, 12, include_self=False), OptionError, "and the 11"),
    "self": (
        lambda: nearest(GLOBE, 2, sites=LatLonGrid.regular(3, 5), include_self=False),
        OptionError,
        "`include_self` .=False. needs sites on the sources' grid",
    ),
    "mixed": (
        lambda: radius(GLOBE, 1, sites=ProjectedGrid([0], [0])),
        GridError,
        "both be projected or both on the sphere; give the ProjectedGrid its lat= and lon=",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_value_rule_and_remedy(case: str) -> None:
    build, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        build()


def test_limits_are_integers_of_any_kind() -> None:
    assert nearest(GLOBE, np.int64(3)) == nearest(GLOBE, 3)  # type: ignore[arg-type]
    limited = radius(GLOBE, 5e6, max_fan_in=np.uint8(3))  # type: ignore[arg-type]
    assert limited == radius(GLOBE, 5e6, max_fan_in=3)


def test_an_equal_grid_is_the_same_grid() -> None:
    again = LatLonGrid.regular(3, 4)
    assert radius(GLOBE, 5e6, sites=again, include_self=False) == radius(
        GLOBE, 5e6, include_self=False
    )


@pytest.mark.parametrize(("source", "site"), PAIRS)
def test_edges_of_ones_own_on_grids_are_measured_as_here(
    source: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "_EDGES_AT_ONCE", 100)
    found = radius(GRIDS[source], 2.5e6, sites=GRIDS[site])
    edges = torch.randperm(found.num_edges)
    grids_of: dict[str, Any] = {"site_grid": GRIDS[site], "source_grid": GRIDS[source]}
    index = found.to_edge_index()[:, edges]
    built = Pattern.from_edge_index(index, *found.shape, **grids_of)
    assert (built.site_grid, built.source_grid) == (GRIDS[site], GRIDS[source])
    torch.testing.assert_close(built.distance, found.distance, rtol=1e-5, atol=0.2)
    assert found.bearing is not None
    assert built.bearing is not None
    turn = (built.bearing - found.bearing).numpy()
    assert np.abs(np.sin(turn / 2)).max(initial=0) < 1e-6
    # What is given stays, and one grid tells nothing.
    given = torch.rand(len(edges))
    kept = Pattern.from_edge_index(index, *found.shape, distance=given, **grids_of)
    assert kept.distance is not None
    assert torch.equal(kept.distance[edges], given)
    alone = Pattern.from_edge_index(index, *found.shape, source_grid=GRIDS[source])
    assert (alone.distance, alone.bearing) == (None, None)


def test_grids_of_ones_own_edges_must_fit() -> None:
    index = [[0], [0]]
    with pytest.raises(
        PatternError, match=r"`source_grid` \(200 points\) must have the pattern's 3"
    ):
        Pattern.from_edge_index(index, 1, 3, source_grid=GRIDS["random"])
    flat, sphere = GRIDS["plane"], GRIDS["random"]
    with pytest.raises(GridError, match="must both be projected or both on the sphere"):
        Pattern.from_edge_index(index, 99, 200, site_grid=flat, source_grid=sphere)
    both: dict[str, Any] = {"site_grid": flat, "source_grid": sphere}
    assert Pattern.from_edge_index(index, 99, 200, distance=[1.0], bearing=[0.0], **both).distance
