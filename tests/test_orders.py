"""Orders of points, and patterns whose sites and sources are in another order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import generator
from torch import Tensor

from scisparse import orders
from scisparse.errors import GridError, OptionError, PatternError
from scisparse.grids import (
    Grid,
    LatLonGrid,
    ProjectedGrid,
    UnstructuredGrid,
    healpix,
    reduced_gaussian,
)
from scisparse.pattern import Pattern
from scisparse.pattern.renumber import reordered
from scisparse.patterns import mesh, nearest, radius, sliding_window, window


def shuffled(count: int, number: int = 0) -> Tensor:
    return torch.randperm(count, generator=generator(number))


def is_permutation(order: Tensor) -> bool:
    return order.dtype == torch.int64 and order.sort().values.equal(torch.arange(len(order)))


# -- curves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "level"), [(2, 1), (2, 5), (3, 1), (3, 3)])
def test_hilbert_curve_goes_from_neighbour_to_neighbour(dims: int, level: int) -> None:
    cells = np.array(list(itertools.product(range(2**level), repeat=dims)))
    cells = np.random.default_rng(0).permutation(cells)
    order = orders.hilbert(1e3 * cells - 7)
    assert is_permutation(order)
    assert set(np.abs(np.diff(cells[order], axis=0)).sum(1)) == {1}


@pytest.mark.parametrize(("dims", "level"), [(2, 1), (2, 5), (3, 1), (3, 3)])
def test_morton_order_is_that_of_interleaved_bits(dims: int, level: int) -> None:
    cells = np.array(list(itertools.product(range(2**level), repeat=dims)))
    cells = np.random.default_rng(1).permutation(cells)

    def key(cell: list[int]) -> str:
        digits = [f"{number:0{level}b}" for number in reversed(cell)]
        return "".join(itertools.chain(*zip(*digits, strict=True)))

    order = orders.morton(0.25 * cells + 3)
    assert is_permutation(order)
    assert cells[order].tolist() == sorted(cells.tolist(), key=key)


def test_hilbert_curve_passes_date_line_and_poles() -> None:
    grid = LatLonGrid.regular(19, 36)
    place = orders.hilbert(grid).argsort().view(19, 36)
    for pole in place[0], place[-1]:  # all its points are one
        assert pole.sort().values.diff().tolist() == [1] * 35


@pytest.mark.parametrize("name", ["hilbert", "morton", "healpix_nested"])
def test_order_does_not_depend_on_where_longitude_begins(name: str) -> None:
    order = getattr(orders, name)
    lat = np.linspace(90, -90, 19)
    # Longitudes off the edges of base pixels, on which rounding would choose.
    here, there = (
        LatLonGrid.from_degrees(lat, np.arange(first, first + 360, 10)) for first in (3, -177)
    )
    place = order(here).argsort().view(19, 36)
    again = order(there).argsort().view(19, 36).roll(18, 1)
    assert torch.equal(place[1:-1], again[1:-1])


def test_points_in_one_place_keep_their_order() -> None:
    for order in (orders.hilbert, orders.morton):
        assert order(np.ones((4, 2))).tolist() == [0, 1, 2, 3]
        assert order(torch.empty(0, 3)).tolist() == []
    pole = UnstructuredGrid(np.full(4, np.pi / 2), np.full(4, 1.0))
    assert orders.healpix_nested(pole).tolist() == [0, 1, 2, 3]
    assert orders.hilbert(ProjectedGrid([0.0, 1e3], [0.0, 1e3])).tolist() == [0, 2, 3, 1]


# -- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nside", [1, 2, 8, 64])
def test_healpix_points_come_in_the_order_of_their_pixels(nside: int) -> None:
    nested, ring = healpix(nside), healpix(nside, "ring")
    assert orders.healpix_nested(nested).equal(torch.arange(nested.size))
    order = orders.healpix_nested(ring).numpy()
    np.testing.assert_allclose(ring.positions()[order], nested.positions(), atol=1e-12)


@pytest.mark.parametrize("nside", [1, 4, 16])
def test_points_anywhere_in_a_pixel_are_sorted_with_it(nside: int) -> None:
    """Points drawn about the centres; turns of the globe change nothing."""
    rng = np.random.default_rng(nside)
    grid, step = healpix(nside), 0.25 / nside
    lat = grid.lat + rng.uniform(-step, step, grid.size)
    # Near a pole a pixel spans more longitude than its distance from the pole lets it.
    lon = (
        grid.lon + rng.uniform(-step, step, grid.size) + 2 * np.pi * rng.integers(-3, 3, grid.size)
    )
    mixed = rng.permutation(grid.size)
    points = UnstructuredGrid(lat[mixed], lon[mixed])
    assert mixed[orders.healpix_nested(points)].tolist() == list(range(grid.size))


def test_poles_lie_in_the_pixels_of_their_quarter() -> None:
    """At a pole, and beside it, the quarter of the longitude decides."""
    lon = np.deg2rad([350.0, 280.0, 190.0, 100.0, 10.0, -370.0])
    for lat in (np.pi / 2, -np.pi / 2, np.pi / 2 - 1e-9, 1e-9 - np.pi / 2):
        order = orders.healpix_nested(UnstructuredGrid(np.full(6, lat), lon))
        assert order[:4].tolist() == [4, 3, 2, order[3]]
        assert set(order[3:].tolist()) == {0, 1, 5}


@pytest.mark.parametrize("grid", [reduced_gaussian("O16"), LatLonGrid.regular(19, 36)])
def test_orders_name_each_point_once(grid: Grid) -> None:
    masked = grid.with_mask(np.random.default_rng(0).random(grid.shape) < 0.5)
    for order in (orders.hilbert, orders.morton, orders.healpix_nested):
        found = order(grid)
        assert is_permutation(found)
        assert found.equal(order(masked))
        # Neighbours in number are neighbours in place: nearer than two points at random.
        points = grid.positions()[found]
        assert np.linalg.norm(np.diff(points, axis=0), axis=1).mean() < 0.25


# -- graphs --------------------------------------------------------------------------------------


def bandwidth(pattern: Pattern) -> int:
    return int((pattern.rows() - pattern.col).abs().max())


def test_cuthill_mckee_finds_a_scrambled_line() -> None:
    line = sliding_window(61, 3)
    scrambled = line.reorder(shuffled(61))
    assert bandwidth(scrambled) > 20
    order = orders.cuthill_mckee(scrambled)
    assert is_permutation(order)
    assert bandwidth(scrambled.reorder(order)) == 1
    one_way = scrambled.select(scrambled.rows() < scrambled.col)
    assert bandwidth(one_way.reorder(orders.cuthill_mckee(one_way))) == 1


def test_cuthill_mckee_narrows_a_mesh() -> None:
    mixed = mesh(3).reorder(shuffled(642))
    assert bandwidth(mixed.reorder(orders.cuthill_mckee(mixed))) < 100 < bandwidth(mixed)


def test_cuthill_mckee_of_parts_and_of_nothing() -> None:
    two = torch.block_diag(torch.ones(3, 3), torch.zeros(2, 2), torch.ones(4, 4)).bool()
    assert is_permutation(orders.cuthill_mckee(Pattern.from_dense(two)))
    assert is_permutation(orders.cuthill_mckee(window((5,), 3, padding=1, padding_mode="reflect")))
    for size in (0, 1, 4):
        none = Pattern.from_dense(torch.zeros(size, size, dtype=torch.bool))
        assert is_permutation(orders.cuthill_mckee(none))


# -- patterns in another order -------------------------------------------------------------------


def test_reordered_pattern_has_the_same_edges_with_their_arrays() -> None:
    grid = LatLonGrid.regular(7, 12)
    pattern = radius(grid, 3e6)
    sites, sources = shuffled(84), shuffled(84, 1)
    new, edges = reordered(pattern, sites, sources)
    new.validate()
    assert new == pattern.reorder(sites, sources)
    assert torch.equal(new.to_dense(), pattern.to_dense()[sites][:, sources])
    assert new.distance is not None
    assert pattern.distance is not None
    assert torch.equal(new.distance, pattern.distance[edges])
    rows_alone, _ = reordered(pattern, sites)
    assert rows_alone.source_grid is grid
    assert torch.equal(rows_alone.to_dense(), pattern.to_dense()[sites])


def test_reordered_pattern_keeps_taps_where_padding_repeats_sources() -> None:
    pattern = window((5, 6), 3, padding=1, padding_mode="replicate")
    new, edges = reordered(pattern, source_order=shuffled(30))
    assert new.validate().window is None
    assert new.num_taps == 9
    assert new.tap is not None
    assert pattern.tap is not None
    assert torch.equal(new.tap, pattern.tap[edges])
    same, unmoved = reordered(pattern)
    assert same == pattern == pattern.reorder(torch.arange(30))
    assert torch.equal(unmoved, torch.arange(pattern.num_edges))


@pytest.mark.parametrize(
    "pattern",
    [
        mesh(2),
        nearest(healpix(2, "ring").with_mask(np.arange(48) % 5 > 0), 4),
        replace(window((6, 5), 3, padding=1, padding_mode="reflect"), window=None),
    ],
)
def test_the_inverse_order_restores_the_pattern(pattern: Pattern) -> None:
    order = shuffled(pattern.num_sites, 2)
    there = pattern.reorder(order)
    assert there != pattern
    back = there.reorder(order.argsort())
    assert back.fingerprint == pattern.fingerprint
    assert back == pattern


def test_points_of_the_grid_move_with_the_sites() -> None:
    """A pattern built on the moved points is the moved pattern, poles and mask included."""
    grid = LatLonGrid.regular(9, 16).with_mask(np.random.default_rng(0).random((9, 16)) < 0.8)
    order = orders.hilbert(grid)
    moved = radius(grid, 2.5e6).reorder(order)
    points = UnstructuredGrid.from_grid(grid, order.numpy())
    assert moved.site_grid == moved.source_grid == points
    np.testing.assert_array_equal(points.areas, grid.areas[order])
    np.testing.assert_array_equal(points.valid, grid.valid[order])
    assert moved == radius(points, 2.5e6)


def test_points_keep_areas_that_were_given_and_no_others() -> None:
    given = healpix(1, "ring")
    order = np.arange(12)[::-1]
    assert UnstructuredGrid.from_grid(given, order).areas.sum() == given.areas.sum()
    derived = UnstructuredGrid(given.lat, given.lon)
    again = UnstructuredGrid.from_grid(UnstructuredGrid.from_grid(derived, order), order)
    assert again == derived
    np.testing.assert_allclose(again.areas, derived.areas)


def test_grids_in_the_plane_are_dropped() -> None:
    grid = ProjectedGrid(np.arange(3) * 1e3, np.arange(4) * 1e3)
    moved = radius(grid, 1.5e3).reorder(shuffled(12))
    assert moved.site_grid is None
    assert moved.source_grid is None


SQUARE = Pattern.from_dense(torch.tensor([[1, 1], [0, 1]]).bool())
NO_GRID: Any = SQUARE
OBLONG = Pattern.from_dense(torch.ones(2, 3).bool())
PLANE = ProjectedGrid([0.0, 1e3], [0.0, 1e3])
NO_PATTERN: Any = PLANE


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: orders.hilbert(np.zeros((4, 5))), OptionError, r"`points` \(shape \(4, 5\)\)"),
        (lambda: orders.hilbert(NO_GRID), OptionError, "`points` is a Pattern; give a grid"),
        (lambda: orders.healpix_nested(NO_GRID), GridError, "`grid` is a Pattern; give a grid"),
        (
            lambda: orders.cuthill_mckee(NO_PATTERN),
            PatternError,
            "is a ProjectedGrid; give a pattern",
        ),
        (lambda: orders.morton([[0, np.nan]]), OptionError, "must be finite, but point 0"),
        (lambda: orders.healpix_nested(PLANE), GridError, "must have latitudes and longitudes"),
        (lambda: orders.cuthill_mckee(OBLONG), PatternError, "it has 2 and 3"),
        (lambda: SQUARE.reorder(torch.ones(2)), PatternError, r"`site_order`.*must be int64 \[2\]"),
        (lambda: SQUARE.reorder(torch.tensor([1, 1])), PatternError, "must be a permutation"),
        (
            lambda: SQUARE.reorder(torch.arange(2), torch.arange(3)),
            PatternError,
            r"`source_order` \(torch.int64 \[3\]\) must be int64 \[2\]",
        ),
        (lambda: OBLONG.reorder(torch.arange(2)), PatternError, "`source_order` must be given: 2"),
        (lambda: UnstructuredGrid.from_grid(PLANE, [0]), GridError, "must lie on the sphere"),
        (
            lambda: UnstructuredGrid.from_grid(healpix(1), np.zeros(12, int)),
            GridError,
            r"`order` \(int64 \[12\]\) must be a permutation",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
