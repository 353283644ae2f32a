"""Properties that hold for every grid and pattern."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scisparse.grids import EARTH_RADIUS, LatLonGrid, UnstructuredGrid, grid_from_dict
from scisparse.pattern import Pattern
from scisparse.patterns import nearest, radius, window

pytest.importorskip("hypothesis")
pytest.importorskip("scipy")

from hypothesis import assume, given, settings
from hypothesis import strategies as st


@st.composite
def global_axes(draw: Any) -> tuple[Any, Any]:
    """Random rows and random columns all around, in any direction and convention."""
    rows, columns = draw(st.integers(2, 7)), draw(st.integers(2, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = 1 + rng.random(rows + 1)
    lat = (np.cumsum(steps)[:-1] / steps.sum() - 0.5) * np.pi
    lat *= min(1.0, (np.pi / 2 - 1e-3) / np.abs(lat).max())
    widths = 1 + 0.5 * rng.random(columns)
    lon = np.cumsum(widths) / widths.sum() * 2 * np.pi + draw(st.sampled_from([0, -np.pi, 1.0]))
    if draw(st.booleans()):
        lat = lat[::-1]
    if draw(st.booleans()):
        lon = lon[::-1]
    return lat, lon


@st.composite
def patterns(draw: Any, sites: int | None = None, sources: int | None = None) -> Pattern:
    """Random edges, some with taps."""
    sites = draw(st.integers(0, 6)) if sites is None else sites
    sources = draw(st.integers(0, 6)) if sources is None else sources
    pairs = st.tuples(st.integers(0, max(0, sources - 1)), st.integers(0, max(0, sites - 1)))
    some = draw(st.lists(pairs, max_size=20, unique=True)) if sites and sources else []
    index = torch.tensor(some, dtype=torch.int64).reshape(-1, 2).T
    return Pattern.from_edge_index(index, sites, sources)


@given(global_axes())
def test_cells_all_around_tile_a_band_of_the_sphere(axes: tuple[Any, Any]) -> None:
    grid = LatLonGrid(*axes)
    assume(grid.periodic[1])
    areas = grid.areas.reshape(grid.shape)
    assert areas.min() > 0
    assert areas.sum() <= 4 * np.pi * EARTH_RADIUS**2 * (1 + 1e-12)
    # A row is a band between two latitudes, shared out among its cells by their widths.
    np.testing.assert_allclose(areas * areas[0, 0], areas[:, :1] * areas[:1], rtol=1e-10)
    if all(grid.pole_ends):
        np.testing.assert_allclose(areas.sum(), 4 * np.pi * EARTH_RADIUS**2, rtol=1e-12)


@given(global_axes(), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_grids_round_trip_and_differ_by_mask(axes: tuple[Any, Any], seed: int) -> None:
    grid = LatLonGrid(*axes)
    mask = np.random.default_rng(seed).random(grid.shape) < 0.5
    assert grid_from_dict(grid.with_mask(mask).to_dict()) == grid.with_mask(mask)
    assert (grid.with_mask(mask) == grid.with_mask(~mask)) is False
    points = UnstructuredGrid(grid.lat, grid.lon, mask.ravel())
    assert grid_from_dict(points.to_dict()) == points


@given(patterns())
@settings(max_examples=60)
def test_transposing_twice_gives_the_pattern_back(pattern: Pattern) -> None:
    other, order = pattern.transpose()
    again, back = other.validate().transpose()
    assert again == pattern
    assert torch.equal(order[back], torch.arange(pattern.num_edges))


@given(patterns(5, 4), patterns(5, 4), patterns(5, 4))
@settings(max_examples=30)
def test_union_is_that_of_sets(a: Pattern, b: Pattern, c: Pattern) -> None:
    assert a.union(b) == b.union(a).validate()
    assert a.union(b).union(c) == a.union(b.union(c))
    assert a.union(a) == a
    assert torch.equal(a.union(b).to_dense(), a.to_dense() | b.to_dense())
    assert a.union(b).transpose()[0] == a.transpose()[0].union(b.transpose()[0])


@given(patterns(), st.data())
@settings(max_examples=60)
def test_relabelled_edges_are_the_same_edges(pattern: Pattern, data: Any) -> None:
    masks = [
        torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool)
        for n in pattern.shape
    ]
    part = pattern.restrict(*masks, relabel=True).validate()
    assert torch.equal(part.to_dense(), pattern.to_dense()[masks[0]][:, masks[1]])
    assert part.num_edges == pattern.restrict(*masks).num_edges


@given(
    rows=st.integers(1, 6), columns=st.integers(1, 5), kernel=st.tuples(*[st.integers(1, 4)] * 2),
    stride=st.integers(1, 3), seed=st.integers(0, 99),
    poles=st.sampled_from(["reflect", "clip", "zeros"]),
)  # fmt: skip
def test_windows_roll_with_longitude(
    rows: int, columns: int, kernel: tuple[int, int], stride: int, seed: int, poles: str
) -> None:
    """Rolling the mask by some columns rolls sites and sources, and changes no tap."""
    grid = LatLonGrid.regular(2 * rows, 2 * columns * stride, poles=False)
    assume(kernel[0] <= 2 * rows and kernel[1] <= 2 * columns * stride)
    mask = np.random.default_rng(seed).random(grid.shape) < 0.7
    shift = stride * (seed % columns)
    options: dict[str, Any] = {"kernel_size": kernel, "stride": (1, stride), "poles": poles}
    whole = window(grid.with_mask(mask), **options).validate()
    rolled = window(grid.with_mask(np.roll(mask, shift, axis=1)), **options).validate()
    names = np.arange(grid.size).reshape(grid.shape)
    moved = torch.from_numpy(np.roll(names, -shift, axis=1).ravel())
    sites = np.arange(whole.num_sites).reshape(grid.shape[0], -1)
    site_of = torch.from_numpy(np.roll(sites, -(shift // stride), axis=1).ravel())
    assert whole.tap is not None
    expected = Pattern.from_edge_index(
        torch.stack([moved[whole.col.long()], site_of[whole.rows()]]), *whole.shape, tap=whole.tap
    )
    assert torch.equal(rolled.row_ptr, expected.row_ptr)
    assert torch.equal(rolled.col, expected.col)
    assert rolled.tap is not None
    assert expected.tap is not None
    assert torch.equal(rolled.tap, expected.tap)


@given(st.integers(2, 40), st.integers(0, 99), st.floats(0, 2.1e7))
@settings(max_examples=30)
def test_reading_within_a_radius_is_mutual(count: int, seed: int, metres: float) -> None:
    z, lon = np.random.default_rng(seed).uniform(-1, 1, (2, count))
    pattern = radius(UnstructuredGrid(np.arcsin(z), 3 * lon), metres).validate()
    assert torch.equal(pattern.to_dense(), pattern.to_dense().T)
    assert pattern.fan_in.min() >= 1
    assert pattern.distance is not None
    assert (pattern.distance <= metres * (1 + 1e-6)).all()


@given(st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=30)
def test_more_neighbours_include_the_fewer(k: int, seed: int) -> None:
    z, lon = np.random.default_rng(seed).uniform(-1, 1, (2, 40))
    grid = UnstructuredGrid(np.arcsin(z), 3 * lon)
    fewer, more = nearest(grid, k), nearest(grid, k + 1)
    assert fewer.union(more).num_edges == more.num_edges
    assert torch.equal(fewer.to_dense().diagonal(), torch.ones(40, dtype=torch.bool))
