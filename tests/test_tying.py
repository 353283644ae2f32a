"""Ties: numbering, refinement, channel groups, and longitude without taps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import (
    MASK,
    REGIONS,
    SHAPE,
    edges_of,
    every_tie,
    index_pattern,
    masked_pattern,
    needs_scipy,
    repeated_pattern,
)

from scisparse.errors import GridError, OptionError, PatternError, ShapeError
from scisparse.grids import LatLonGrid, ProjectedGrid, icosahedral
from scisparse.pattern import Pattern
from scisparse.patterns import nearest, radius, window
from scisparse.tying import (
    parents,
    refine,
    site_shape,
    source_shape,
    split_channels,
    tie_edges,
    tie_name,
)


def partition(numbers: Any) -> set[frozenset[int]]:
    """Which items have one number, whatever the numbers are."""
    sets: dict[int, set[int]] = {}
    for item, number in enumerate(np.asarray(numbers).tolist()):
        sets.setdefault(number, set()).add(item)
    return {frozenset(members) for members in sets.values()}


@every_tie
@pytest.mark.parametrize("pattern", [index_pattern, masked_pattern])
def test_edges_share_by_tap_and_place(tie: Any, pattern: Any) -> None:
    made = pattern()
    tying = tie_edges(made, tie)
    places = {"longitude": np.arange(24) // 6, "all": np.zeros(24, int)}
    group = np.arange(24) if tie is None else REGIONS.ravel()
    if isinstance(tie, str):
        group = places[tie]
    edges = edges_of(made)
    ids = [
        hash((group[site], tap)) if tie is not None else e for e, (site, _, tap) in enumerate(edges)
    ]
    edge = tying.of_edges(made.num_edges)
    assert partition(edge) == partition(ids)
    assert partition(tying.group) == partition(group)
    assert tying.num_groups == len(set(group.tolist()))
    if tie is None or not isinstance(tie, str):
        assert sorted(set(edge.tolist())) == list(range(tying.num_weights))  # none unused


def test_tie_all_keeps_taps_that_a_mask_left_unused() -> None:
    """So that weights are those of the convolution, whatever the mask."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1, 1] = True
    tying = tie_edges(window(LatLonGrid.regular(*SHAPE).with_mask(mask), 3), "all")
    assert tying.num_weights == 9
    assert tying.of_edges(1).tolist() == [4]


@pytest.mark.parametrize(
    "labels",
    [
        REGIONS,
        REGIONS.ravel(),
        REGIONS.tolist(),
        torch.from_numpy(REGIONS),
        REGIONS.astype(float) + 0.5,
        np.array(["sea", "land", "ice"])[np.unique(REGIONS, return_inverse=True)[1].reshape(SHAPE)],
    ],
)
def test_labels_come_in_many_forms(labels: Any) -> None:
    expected, tying = tie_edges(index_pattern(), REGIONS), tie_edges(index_pattern(), labels)
    assert partition(tying.of_edges(0)) == partition(expected.of_edges(0))
    assert tying.num_weights == expected.num_weights
    assert isinstance(tying.tie, torch.Tensor)
    # What a layer keeps ties as the labels did.
    assert torch.equal(tie_edges(index_pattern(), tying.tie).of_edges(0), tying.of_edges(0))


def test_labels_of_a_data_array_are_matched_by_coordinates() -> None:
    xr = pytest.importorskip("xarray")
    lat, lon = np.array([-60.0, -10.0, 20.0, 70.0]), np.arange(0.0, 360.0, 60.0)
    pattern = window(LatLonGrid.from_degrees(lat, lon), 3)
    rng = np.random.default_rng(4)
    given = xr.DataArray(rng.integers(0, 3, (4, 6)), {"lat": lat, "lon": lon}, ("lat", "lon"))
    expected = tie_edges(pattern, given.values)
    for same in (given[::-1], given.T, given.roll(lon=2, roll_coords=True).transpose("lon", "lat")):
        found = tie_edges(pattern, same)
        assert found.edge is not None
        assert expected.edge is not None
        assert torch.equal(found.edge, expected.edge)
    with pytest.raises(GridError, match="`tie`"):
        tie_edges(pattern, given.assign_coords(lat=lat + 5.0))


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        (REGIONS.T, ShapeError, r"labels of shape \[6, 4\]; it needs one for each of 24 sites"),
        (np.zeros(23), ShapeError, r"labels of shape \[23\]"),
        (7, ShapeError, r"labels of shape \[\]"),
        ([[0, np.nan, 0, 0, 0, 0]] * 4, OptionError, "`tie` has NaN labels"),
        ("zonal", OptionError, "`tie` is 'zonal'; choose None, 'longitude', 'all' or an array"),
    ],
)
def test_wrong_ties(labels: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        tie_edges(index_pattern(), labels)


def test_three_axes_share_along_the_last() -> None:
    tying = tie_edges(window((2, 3, 4), 1), "longitude")
    assert partition(tying.group) == partition(np.arange(24) // 4)


def test_default_device_does_not_matter() -> None:
    with torch.device("meta"):
        for tie in (None, "longitude", "all", REGIONS):
            tying = tie_edges(index_pattern(), tie)
            split = split_channels(index_pattern(), tying, 2)[1]
            for tensor in (tying.group, split.of_edges(10), split.group):
                assert tensor.device.type == "cpu"


# -- refinement ------------------------------------------------------------------------------------


@every_tie
def test_all_and_none_are_the_ends_of_the_ladder(tie: Any) -> None:
    pattern = masked_pattern()
    edges = pattern.num_edges
    tying, ends = tie_edges(pattern, tie), [tie_edges(pattern, end) for end in ("all", None)]
    for coarse, fine in ((ends[0], tying), (tying, ends[1]), (tying, tying)):
        weight, group = refine(coarse, fine, edges)
        assert torch.equal(weight[fine.of_edges(edges)], coarse.of_edges(edges))
        assert torch.equal(group[fine.group], coarse.group)


def test_groups_must_refine_too() -> None:
    """Labels that differ at masked sites alone tie the same edges, but not the same biases."""
    pattern = masked_pattern()
    coarse = tie_edges(pattern, np.where(MASK, 0, 1))
    fine = tie_edges(pattern, np.zeros(SHAPE))
    refine(fine, coarse, pattern.num_edges)
    with pytest.raises(PatternError, match="tie=labels shares weights that tie=labels tells apart"):
        refine(coarse, fine, pattern.num_edges)


def test_parents() -> None:
    coarse, fine = torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 4, 2])
    assert parents(coarse, fine, 5).tolist() == [0, 0, 1, 0, 1]


def test_names() -> None:
    assert [tie_name(tie) for tie in (None, "all", REGIONS, torch.zeros(3))] == [
        "tie=None",
        "tie='all'",
        "tie=labels",
        "tie=labels",
    ]


# -- groups of channels ----------------------------------------------------------------------------


@every_tie
@pytest.mark.parametrize("pattern", [index_pattern, masked_pattern, repeated_pattern])
def test_split_channels(tie: Any, pattern: Any) -> None:
    """Each edge once a group, from split source to split site, with a weight of its group."""
    made = pattern()
    if made.num_sites == 12 and isinstance(tie, np.ndarray):
        tie = REGIONS[:, ::2]
    tying = tie_edges(made, tie)
    split, split_tying = split_channels(made, tying, 3)
    split.validate()
    whole = tying.of_edges(made.num_edges).tolist()
    expected = sorted(
        (3 * site + g, 3 * source + g, tap, 3 * weight + g if tie is not None else -1)
        for (site, source, tap), weight in zip(edges_of(made), whole, strict=True)
        for g in range(3)
    )
    weights = (
        split_tying.of_edges(split.num_edges).tolist() if tie is not None else [-1] * 3 * len(whole)
    )
    got = [(*edge, weight) for edge, weight in zip(edges_of(split), weights, strict=True)]
    assert sorted(got) == expected
    assert split_tying.num_weights == 3 * tying.num_weights
    assert split_tying.group.tolist() == [3 * n + g for n in tying.group.tolist() for g in range(3)]
    assert split_channels(made, tying, 1) == (made, tying)


# -- shapes ----------------------------------------------------------------------------------------


@needs_scipy
def test_shapes_of_sites_and_sources() -> None:
    grid = LatLonGrid.regular(*SHAPE)
    strided = window((4, 6), 2, stride=2, padding=0)
    assert (site_shape(strided), source_shape(strided)) == ((2, 3), (4, 6))
    back = strided.transpose()[0]
    assert (site_shape(back), source_shape(back)) == ((4, 6), (2, 3))
    between = nearest(grid, 2, sites=icosahedral(1))
    assert (site_shape(between), source_shape(between)) == ((42,), (4, 6))
    plain = Pattern.from_dense(torch.ones(2, 3, dtype=torch.bool))
    assert (site_shape(plain), source_shape(plain)) == ((2,), (3,))


# -- longitude without taps ------------------------------------------------------------------------


@needs_scipy
@pytest.mark.parametrize("reverse", [False, True])
def test_turns_of_a_globe(reverse: bool) -> None:
    lon = np.arange(0.0, 360.0, 45.0)
    grid = LatLonGrid.from_degrees([50, 0, -50], lon[::-1] if reverse else lon)
    pattern = radius(grid, 6.5e6)
    ids = [hash((i // 8, j // 8, (j - i) % 8)) for i, j, _ in edges_of(pattern)]
    tying = tie_edges(pattern, "longitude")
    assert partition(tying.of_edges(0)) == partition(ids)
    assert tying.num_groups == 3


GLOBE = LatLonGrid.regular(4, 8)


@needs_scipy
@pytest.mark.parametrize(
    "sites",
    [
        LatLonGrid.regular(4, 10),
        LatLonGrid.from_degrees(np.rad2deg(GLOBE.lat_axis), np.rad2deg(GLOBE.lon_axis[::-1])),
        LatLonGrid.from_degrees([60, 20, -20, -60], np.arange(8.0) * 20),
        LatLonGrid.from_degrees([60, 20], [0, 40, 90, 130, 180, 230, 270, 320]),
    ],
    ids=["fewer columns", "other way round", "regional", "uneven"],
)
def test_grids_that_do_not_turn_together(sites: LatLonGrid) -> None:
    for one in (radius(GLOBE, 5e6, sites=sites), radius(sites, 5e6, sites=GLOBE)):
        with pytest.raises(PatternError, match="the same evenly spaced longitudes; Pattern"):
            tie_edges(one, "longitude")


@needs_scipy
def test_uneven_longitudes_do_not_turn() -> None:
    uneven = LatLonGrid.from_degrees([60, 20], [0, 45, 90, 120, 180, 230, 270, 320])
    with pytest.raises(PatternError, match="the same evenly spaced longitudes"):
        tie_edges(radius(uneven, 5e6), "longitude")


@needs_scipy
def test_other_grids_have_no_longitude() -> None:
    plane = ProjectedGrid([0.0, 1.0], [0.0, 1.0, 2.0])
    with pytest.raises(PatternError, match="has no taps, sites on ProjectedGrid"):
        tie_edges(radius(plane, 2.0), "longitude")
    with pytest.raises(PatternError, match=r"sites of shape \(42,\)"):
        tie_edges(radius(icosahedral(1), 3e6), "longitude")
