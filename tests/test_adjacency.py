"""Neighbouring sites and their edges: pairs by hand, couplings by closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import edges_of, index_pattern, masked_pattern, no_taps, repeated_pattern

from scisparse.adjacency import neighbouring_sites, tied_pairs
from scisparse.errors import PatternError
from scisparse.grids import Grid, LatLonGrid, ProjectedGrid
from scisparse.pattern import Pattern
from scisparse.patterns import window


def pairs_of(pattern: Pattern) -> dict[frozenset[int], float]:
    """Coupling of each pair of sites; fails when a pair comes twice."""
    first, second, strength = neighbouring_sites(pattern)
    pairs = [frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    assert len(set(pairs)) == len(pairs)
    return dict(zip(pairs, strength.tolist(), strict=True))


@pytest.mark.parametrize("shape", [(5,), (1,), (2,), (3, 4), (1, 4), (4, 1), (2, 2), (2, 3, 4)])
@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate"])
def test_index_spaces(shape: tuple[int, ...], mode: str) -> None:
    """Neighbours differ by one step on one axis, around a circular one; each pair once."""
    expected = set()
    places = list(np.ndindex(shape))
    for i, first in enumerate(places):
        for j, second in enumerate(places):
            steps = np.abs(np.subtract(first, second))
            if mode == "circular":
                steps = np.minimum(steps, np.subtract(shape, steps))
            if steps.sum() == 1:
                expected.add(frozenset((i, j)))
    pairs = pairs_of(window(shape, 1, padding_mode=mode))
    assert set(pairs) == expected
    assert set(pairs.values()) <= {1.0}


@pytest.mark.parametrize(
    ("options", "sites", "closed"),
    [
        ({"kernel_size": 3}, 8, True),
        ({"kernel_size": 3, "padding": 0}, 6, False),  # two sources short of a ring
        ({"kernel_size": 2, "stride": 2}, 4, True),
        ({"kernel_size": 3, "stride": 2, "padding": 0}, 3, False),
    ],
)
def test_circular_windows_close_when_they_come_round(
    options: dict[str, Any], sites: int, closed: bool
) -> None:
    pattern = window((8,), **options, padding_mode="circular")
    assert pattern.num_sites == sites
    assert (frozenset((0, sites - 1)) in pairs_of(pattern)) == closed
    # Seen from the sources, the ring is always whole.
    assert frozenset((0, 7)) in pairs_of(pattern.transpose()[0])


def test_longitude_closes_at_the_date_line_and_no_pole_is_crossed() -> None:
    pairs = pairs_of(window(LatLonGrid.regular(4, 6), 3))
    east = {frozenset((r * 6 + c, r * 6 + (c + 1) % 6)) for r in range(4) for c in range(6)}
    south = {frozenset((i, i + 6)) for i in range(18)}
    assert set(pairs) == east | south


def test_regional_grids_have_a_seam() -> None:
    pairs = pairs_of(window(LatLonGrid.from_degrees([10, 0], [170, 180, -170]), 1))
    assert len(pairs) == 7
    assert frozenset((0, 2)) not in pairs


@pytest.mark.parametrize("poles", [True, False])
def test_couplings_on_the_sphere(poles: bool) -> None:
    """Face over distance, on the unit sphere: parallels between rows, meridians between columns."""
    grid = LatLonGrid.regular(5, 8, poles=poles)
    pairs = pairs_of(window(grid, 1))
    step = np.pi / (4 if poles else 5)
    width = np.pi / 4
    bounds = np.clip(grid.lat_axis[0] + step / 2 - step * np.arange(6), -np.pi / 2, np.pi / 2)
    for row in range(4):
        expected = np.cos(bounds[row + 1]) * width / step
        assert pairs[frozenset((row * 8 + 3, row * 8 + 11))] == pytest.approx(expected)
    for row in range(5):
        height = bounds[row] - bounds[row + 1]
        mean_cosine = (np.sin(bounds[row]) - np.sin(bounds[row + 1])) / height
        expected = height / (mean_cosine * width)
        assert pairs[frozenset((row * 8, row * 8 + 7))] == pytest.approx(expected)


def test_couplings_in_the_plane_are_those_of_the_five_point_laplacian() -> None:
    """On an even grid dx / dy and dy / dx; a linear field has the energy slope^2 * area."""
    grid = ProjectedGrid([0.0, 300.0, 600.0, 900.0], [0.0, 200.0, 400.0])
    pairs = pairs_of(window(grid, 1))
    assert pairs[frozenset((0, 1))] == pytest.approx(300 / 200)
    assert pairs[frozenset((0, 3))] == pytest.approx(200 / 300)
    first, second, strength = neighbouring_sites(window(grid, 1))
    x, y = grid.positions().T
    for field, area in ((x, 4 * 300 * 400), (y, 900 * 3 * 200)):
        energy = (strength * (field[first] - field[second]) ** 2).sum()
        assert energy == pytest.approx(area)


def test_direction_of_axes_does_not_matter() -> None:
    y, x = np.array([0.0, 1.0, 3.0]), np.array([0.0, 5.0, 6.0, 9.0])
    there, back = (pairs_of(window(g, 1)) for g in (ProjectedGrid(y, x), ProjectedGrid(y[::-1], x)))
    flipped = {frozenset(11 - i - (3 - 2 * (i % 4)) for i in pair): s for pair, s in back.items()}
    assert flipped.keys() == there.keys()
    for pair, strength in there.items():
        assert flipped[pair] == pytest.approx(strength)


@pytest.mark.parametrize(
    "grid",
    [
        LatLonGrid.from_degrees([10.0], [0.0, 5.0]),
        LatLonGrid.from_degrees([10.0, 20.0], [0.0]),
        ProjectedGrid([0.0], [0.0, 1.0]),
        ProjectedGrid([0.0, 1.0], [0.0]),
    ],
)
def test_one_row_or_one_column(grid: Grid) -> None:
    ((pair, strength),) = pairs_of(window(grid, 1)).items()
    assert pair == {0, 1}
    assert 0 < strength < np.inf


# -- edges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [index_pattern, masked_pattern, repeated_pattern])
def test_pairs_have_one_tap_and_neighbouring_sites(made: Any) -> None:
    """All pairs that there are, found by looking at each tap of each pair of sites."""
    pattern = made()
    edges = edges_of(pattern)
    edge_at = {(site, tap): e for e, (site, _, tap) in enumerate(edges)}
    expected = {}
    for pair, coupling in pairs_of(pattern).items():
        for tap in range(pattern.num_taps):
            ends = [edge_at.get((site, tap)) for site in pair]
            if None not in ends:
                expected[frozenset(ends)] = coupling
    first, second, strength = tied_pairs(pattern)
    found = zip(first.tolist(), second.tolist(), strength.tolist(), strict=True)
    assert {frozenset((a, b)): s for a, b, s in found} == expected
    assert len(first) == len(expected)


def test_masked_cells_have_no_pairs() -> None:
    grid = LatLonGrid.regular(2, 4, poles=False).with_mask(np.array([[1, 0, 1, 0]] * 2, dtype=bool))
    first, second, _ = tied_pairs(window(grid, 1))
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 2), (1, 3)]


def test_no_sites() -> None:
    pattern = Pattern.from_edge_index(
        torch.empty(2, 0, dtype=torch.int64), 0, 0, tap=torch.empty(0, dtype=torch.int64)
    )
    with pytest.raises(PatternError, match=r"no grid; use patterns.window, or give .* site_grid="):
        tied_pairs(pattern)


def test_patterns_without_taps() -> None:
    match = r"needs the taps of the edges and Pattern\(24 .* none; use patterns.window, or .* tap="
    with pytest.raises(PatternError, match=match):
        tied_pairs(no_taps())


def test_taps_must_be_told_apart() -> None:
    pattern = replace(index_pattern(), tap=torch.zeros(180, dtype=torch.int32))
    with pytest.raises(PatternError, match="read several sources by one tap; number their edges"):
        tied_pairs(pattern)


def test_sites_that_lie_nowhere() -> None:
    """Even kernels over a pole: the sites are no points of a grid."""
    pattern = window(LatLonGrid.regular(5, 6), 2, padding=1)
    assert pattern.site_grid is None
    assert pattern.window is None
    with pytest.raises(PatternError, match=r"needs sites with rows and columns, .* is on no grid"):
        neighbouring_sites(pattern)
