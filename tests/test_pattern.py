"""`Pattern`: conversions, transposition, algebra, value semantics, and validation."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.grids import LatLonGrid
from scisparse.pattern import Pattern
from scisparse.pattern.edges import index_dtype, stable_argsort
from scisparse.patterns import window


def random_pattern(seed: int, sites: int = 7, sources: int = 9, arrays: bool = True) -> Pattern:
    """Some edges, in random order, with repeated pairs told apart by taps when there are arrays."""
    rng = np.random.default_rng(seed)
    edges = rng.permutation(sites * sources * 3)[: sites * sources]
    pair = torch.from_numpy(edges // 3 if arrays else np.unique(edges // 3))
    index = torch.stack([pair % sources, pair // sources])
    if not arrays:
        return Pattern.from_edge_index(index, sites, sources)
    distance, bearing = torch.from_numpy(rng.random((2, edges.size), dtype=np.float32))
    return Pattern.from_edge_index(
        index,
        sites,
        sources,
        tap=torch.from_numpy(edges % 3),
        distance=distance,
        bearing=bearing,
    )


def edge_set(pattern: Pattern) -> dict[tuple[int, ...], tuple[Any, ...]]:
    """Arrays of each edge by (site, source, tap), in plain Python."""
    count = pattern.num_edges
    arrays = [
        a.tolist() if a is not None else [None] * count for a in (pattern.distance, pattern.bearing)
    ]
    taps = pattern.tap.tolist() if pattern.tap is not None else [-1] * count
    keys = zip(pattern.rows().tolist(), pattern.col.tolist(), taps, strict=True)
    return dict(zip(keys, zip(*arrays, strict=True), strict=True))


EMPTY = [(0, 0), (0, 3), (3, 0), (4, 5)]


@pytest.mark.parametrize(("sites", "sources"), EMPTY)
def test_patterns_without_edges(sites: int, sources: int) -> None:
    pattern = Pattern.from_dense(torch.zeros(sites, sources, dtype=torch.bool)).validate()
    assert (pattern.num_edges, pattern.shape) == (0, (sites, sources))
    assert pattern.transpose()[0].shape == (sources, sites)
    assert pattern.union(pattern) == pattern == pattern.restrict()
    assert pattern.statistics()["empty_rows"] == sites
    assert repr(pattern) == f"Pattern({sites} sites x {sources} sources, 0 edges, fan-in 0)"


def test_edge_index_round_trip_sorts_edges() -> None:
    index = torch.tensor([[3, 0, 2, 3], [1, 1, 0, 1]])
    tap = torch.tensor([5, 1, 0, 2])
    distance = torch.tensor([0.5, 1.5, 2.5, 3.5])
    pattern = Pattern.from_edge_index(index, 3, 4, tap=tap, distance=distance)
    assert pattern.row_ptr.tolist() == [0, 1, 4, 4]
    assert pattern.to_edge_index().tolist() == [[2, 0, 3, 3], [0, 1, 1, 1]]
    assert pattern.tap is not None
    assert pattern.distance is not None
    assert pattern.tap.tolist() == [0, 1, 2, 5]
    assert pattern.distance.tolist() == [2.5, 1.5, 3.5, 0.5]
    assert (pattern.num_taps, pattern.fan_in.tolist()) == (6, [1, 3, 0])
    assert pattern.col.dtype == pattern.tap.dtype == torch.int32
    assert pattern.row_ptr.dtype == torch.int64


@pytest.mark.parametrize("seed", range(3))
def test_dense_round_trip(seed: int) -> None:
    dense = torch.rand(5, 8, generator=torch.Generator().manual_seed(seed)) < 0.4
    pattern = Pattern.from_dense(dense).validate()
    assert torch.equal(pattern.to_dense(), dense)
    assert torch.equal(pattern.fan_in, dense.sum(1))
    assert Pattern.from_edge_index(pattern.to_edge_index(), 5, 8) == pattern


@pytest.mark.parametrize("seed", range(3))
def test_transposition_moves_every_edge_array(seed: int) -> None:
    pattern = random_pattern(seed)
    other, order = pattern.transpose()
    other.validate()
    assert torch.equal(other.to_dense(), pattern.to_dense().T)
    assert order.dtype == torch.int64
    assert torch.equal(pattern.rows()[order], other.col.long())
    assert torch.equal(pattern.col[order].long(), other.rows())
    assert pattern.tap is not None
    assert other.tap is not None
    assert torch.equal(pattern.tap[order], other.tap)
    assert pattern.distance is not None
    assert other.distance is not None
    assert torch.equal(pattern.distance[order], other.distance)
    assert other.bearing is None
    assert other.transpose()[0] == replace(pattern, bearing=None, tap_count=pattern.num_taps)


def test_transposition_is_computed_once_and_survives_copies() -> None:
    pattern = random_pattern(1)
    untouched = random_pattern(1)
    first = pattern.transpose()
    assert pattern.transpose()[0] is first[0]
    assert pattern == untouched
    assert hash(pattern) == hash(untouched)
    for other in (copy.deepcopy(pattern), pickle.loads(pickle.dumps(pattern))):
        assert other == pattern
        assert other.transpose()[0] == first[0]
        assert torch.equal(other.transpose()[1], first[1])
        assert other.transpose()[0] is other.transpose()[0]
    assert replace(pattern, tap=None).transpose()[0].tap is None


def test_transposition_swaps_grids() -> None:
    grid = LatLonGrid.regular(6, 8)
    pattern = window(grid, 3, stride=2, poles="zeros")
    other, _ = pattern.transpose()
    assert other.site_grid is grid
    assert other.source_grid is pattern.site_grid
    assert other.num_taps == 9


def test_union_keeps_each_edge_once() -> None:
    first, second = random_pattern(0), random_pattern(1)
    joined = first.union(second).validate()
    assert edge_set(joined) == edge_set(second) | edge_set(first)
    assert first.union(first) == replace(first, tap_count=first.num_taps)
    plain = random_pattern(2, arrays=False)
    dense = plain.to_dense() | first.to_dense()
    assert torch.equal(plain.union(replace(first, tap=None).restrict()).to_dense(), dense)


def test_union_drops_arrays_that_one_side_lacks() -> None:
    first, second = random_pattern(0), random_pattern(1)
    joined = first.union(replace(second, bearing=None))
    assert joined.bearing is None
    assert joined.distance is not None


def test_union_needs_the_same_points() -> None:
    pattern = random_pattern(0)
    with pytest.raises(PatternError, match=r"`other` .sites x sources \(7, 8\). must have"):
        pattern.union(random_pattern(0, sources=8))
    with pytest.raises(PatternError, match="`other` must have taps exactly when"):
        pattern.union(replace(pattern, tap=None))
    grid, turned = LatLonGrid.regular(2, 4), LatLonGrid.from_degrees([1, 2], [3, 4, 5, 6])
    with pytest.raises(PatternError, match=r"`other` must have site_grid LatLonGrid.* one grid"):
        window(grid, 1).union(window(turned, 1))


@pytest.mark.parametrize("relabel", [False, True])
def test_restriction_is_that_of_the_dense_matrix(relabel: bool) -> None:
    pattern = random_pattern(3)
    generator = torch.Generator().manual_seed(0)
    site_mask, source_mask = (torch.rand(n, generator=generator) < 0.6 for n in pattern.shape)
    part = pattern.restrict(site_mask, source_mask, relabel=relabel).validate()
    dense = pattern.to_dense()
    expected = (
        dense[site_mask][:, source_mask] if relabel else dense & site_mask[:, None] & source_mask
    )
    assert torch.equal(part.to_dense(), expected)
    assert part.num_taps == pattern.num_taps
    if not relabel:
        assert edge_set(part).items() <= edge_set(pattern).items()


def test_restriction_keeps_grids_and_windows_while_they_hold() -> None:
    grid = LatLonGrid.regular(4, 8)
    pattern = window(grid, 3, poles="zeros")
    some = torch.arange(32) > 3
    assert pattern.restrict() == pattern
    part = pattern.restrict(some)
    assert part.window is None
    assert part.site_grid is grid
    relabelled = pattern.restrict(source_mask=some, relabel=True)
    assert relabelled.site_grid is grid
    assert relabelled.source_grid is None
    with pytest.raises(PatternError, match=r"`site_mask` .* must be booleans \[32\]"):
        pattern.restrict(torch.ones(31, dtype=torch.bool))


def test_equality_and_hash_are_by_content() -> None:
    patterns = [
        random_pattern(0),
        random_pattern(1),
        replace(random_pattern(0), tap=None),
        replace(random_pattern(0), distance=None),
        replace(random_pattern(0), tap_count=7),
        random_pattern(0, sources=10),
        window((7, 9), 3),
        replace(window((7, 9), 3), window=None),
    ]
    assert len(set(patterns)) == len(patterns)
    assert random_pattern(0) == random_pattern(0)
    assert random_pattern(0) != "a pattern"
    grid = LatLonGrid.regular(2, 4)
    assert window(grid, 1) == window(LatLonGrid.regular(2, 4), 1)
    assert window(grid, 1) != window((2, 4), 1)


def test_patterns_are_frozen_and_stay_on_their_device() -> None:
    pattern = random_pattern(0)
    with pytest.raises(FrozenInstanceError):
        pattern.num_sources = 3  # type: ignore[misc]
    assert pattern.to("cpu") is pattern
    moved = pattern.to("meta")
    assert moved.device.type == "meta"
    assert repr(moved).endswith("fan-in unknown)")
    assert moved.tap is not None
    assert moved.tap.device.type == "meta"


def test_statistics_and_repr() -> None:
    pattern = Pattern.from_edge_index(
        torch.tensor([[0, 0, 2], [1, 1, 1]]), 3, 4, tap=torch.tensor([0, 1, 0])
    )
    assert pattern.statistics() == {
        "edges": 3,
        "density": 0.25,
        "fan_in_min": 0,
        "fan_in_mean": 1.0,
        "fan_in_max": 3,
        "empty_rows": 2,
        "duplicates": 1,
    }
    assert repr(pattern) == "Pattern(3 sites x 4 sources, 3 edges, fan-in 0 to 3)"
    grid = window(LatLonGrid.regular(181, 360), 3)
    assert repr(grid) == "Pattern(65160 sites x 65160 sources, 586440 edges, fan-in 9)"


@pytest.mark.parametrize("high", [1, 5, 2**31 - 1, 2**62])
def test_stable_argsort_agrees_with_torch(high: int) -> None:
    keys = torch.randint(0, high, (1000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(stable_argsort(keys), torch.argsort(keys, stable=True))
    assert stable_argsort(keys[:0]).tolist() == []
    assert stable_argsort(keys[:1]).tolist() == [0]


def test_sources_past_32_bits_are_numbered_in_64() -> None:
    assert index_dtype(2**31 - 1) == torch.int32
    far = torch.tensor([[2**31 + 5, 3], [0, 0]])
    pattern = Pattern.from_edge_index(far, 1, 2**31 + 6)
    assert pattern.col.dtype == torch.int64
    assert pattern.col.tolist() == [3, 2**31 + 5]


def broken(**changes: Any) -> Pattern:
    """Three edges, (0, 1), (1, 0) and (1, 2), with some field changed."""
    whole = Pattern(
        row_ptr=torch.tensor([0, 1, 3]),
        col=torch.tensor([1, 0, 2], dtype=torch.int32),
        num_sources=3,
        tap=torch.tensor([0, 1, 0], dtype=torch.int32),
        distance=torch.ones(3),
    )
    return replace(whole.validate(), **changes)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


NAN = float("nan")
WRONG_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "start": ({"row_ptr": torch.tensor([1, 1, 3])}, r"`row_ptr` \(starts at 1\) must start at 0"),
    "falls": ({"row_ptr": torch.tensor([0, 4, 3])}, "row 1 goes from 4 to 3"),
    "end": ({"row_ptr": torch.tensor([0, 1, 2])}, r"`row_ptr` \(ends at 2\) .* edges, 3"),
    "col high": ({"col": int32(1, 0, 3)}, r"`col` \(=3 at edge 2\) must lie between 0 and 2"),
    "col low": ({"col": int32(-1, 0, 2)}, r"`col` \(=-1 at edge 0\)"),
    "col order": ({"col": int32(1, 2, 0)}, "row 1 has 2 before 0 at edge 2"),
    "repeat": ({"tap": None, "col": int32(1, 2, 2)}, "source 2 must occur once in row 1.* edge 2"),
    "tap order": ({"col": int32(1, 2, 2)}, "source 2 must occur with rising taps in row 1"),
    "tap low": ({"tap": int32(0, -1, 0)}, r"`tap` \(=-1 at edge 1\)"),
    "tap high": ({"tap_count": 1}, r"`tap` \(=1 at edge 1\) must lie between 0 and 0"),
    "distance": ({"distance": torch.tensor([0, NAN, 1])}, r"`distance` \(=nan at edge 1\)"),
    "bearing": ({"bearing": torch.tensor([0, 1, -torch.inf])}, r"`bearing` \(=-inf at edge 2\)"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_validate_names_the_first_row_or_edge(case: str) -> None:
    changes, message = WRONG_VALUES[case]
    pattern = broken(**changes)
    with pytest.raises(PatternError, match=message):
        pattern.validate()


WRONG_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "row_ptr dtype": ({"row_ptr": int32(0, 1, 3)}, "`row_ptr` .* one-dimensional torch.int64"),
    "row_ptr empty": ({"row_ptr": torch.empty(0, dtype=torch.int64)}, "`row_ptr` .empty. must"),
    "col dtype": ({"col": torch.tensor([1, 0, 2])}, "`col` .* must be one-dimensional torch.int32"),
    "col dims": ({"col": int32(1, 0, 2)[None]}, r"`col` \(shape \(1, 3\)"),
    "tap length": ({"tap": int32(0)}, r"`tap` \(1 values\) must have one value for each of the 3"),
    "distance dtype": ({"distance": torch.ones(3).double()}, "`distance` .* torch.float32"),
    "bearing device": ({"bearing": torch.ones(3, device="meta")}, r"`bearing` \(on meta\) must be"),
    "sources": ({"num_sources": -1}, "`num_sources` .=-1. must not be negative"),
    "site grid": ({"site_grid": LatLonGrid([0], [0])}, r"`site_grid` \(1 points\) .* 2 points"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_tensors_are_checked_on_construction(case: str) -> None:
    changes, message = WRONG_TENSORS[case]
    with pytest.raises(PatternError, match=message):
        broken(**changes)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), r"`edge_index` \(shape \(3, 2\)"),
        (torch.zeros(2, 2), "must be integers"),
        (torch.zeros(2, 2, dtype=torch.bool), r"torch.bool\) must be integers"),
        (torch.zeros(2, 2, dtype=torch.complex64), r"torch.complex64\) must be integers"),
        (torch.tensor([[0, 3], [0, 0]]), r"`edge_index\[0\]` \(=3 at edge 1\) must lie between"),
        (torch.tensor([[0], [2]]), r"`edge_index\[1\]` \(=2 at edge 0\) must lie between 0 and 1"),
        (torch.tensor([[0, 0], [1, 1]]), "source 0 must occur once in row 1"),
    ],
)  # fmt: skip
def test_edge_index_errors(index: Tensor, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        Pattern.from_edge_index(index, 2, 3)


def test_from_edge_index_checks_its_arrays() -> None:
    index = torch.tensor([[0, 1], [0, 1]])
    with pytest.raises(PatternError, match=r"`distance` \(shape \(3,\)\) must have one value"):
        Pattern.from_edge_index(index, 2, 2, distance=torch.ones(3))
    with pytest.raises(PatternError, match=r"`tap` \(shape \(3,\)\) must have one value"):
        Pattern.from_edge_index(index, 2, 2, tap=torch.arange(3))
    for taps in (torch.tensor([0.5, 1.7]), torch.tensor([False, True])):
        with pytest.raises(PatternError, match=rf"`tap` \({taps.dtype}\) must be integers"):
            Pattern.from_edge_index(index, 2, 2, tap=taps)
    assert Pattern.from_edge_index(index, 2, 2, tap=torch.arange(2, dtype=torch.uint8)).num_taps
    with pytest.raises(PatternError, match=r"`dense` .* must be booleans \[M, N\]"):
        Pattern.from_dense(torch.ones(2, 2))


@pytest.mark.parametrize("form", [Tensor.tolist, Tensor.numpy, lambda t: t.numpy().astype(">i4")])
def test_from_edge_index_takes_lists_and_arrays(form: Any) -> None:
    whole = random_pattern(5)
    arrays = {name: getattr(whole, name) for name in ("tap", "distance", "bearing")}
    index, order = whole.to_edge_index(), torch.randperm(whole.num_edges)
    given = {name: form(values[order]) for name, values in arrays.items() if name == "tap"}
    given |= {name: arrays[name][order].tolist() for name in ("distance", "bearing")}
    assert Pattern.from_edge_index(form(index[:, order]), *whole.shape, **given) == whole
    assert Pattern.from_edge_index([[], []], 2, 3, tap=[]).num_edges == 0


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([[0, 1], [0]], r"`edge_index` \(list\) must be integers \[2, E\]: row 0 sources"),
        (None, r"`edge_index` \(NoneType\) must be integers"),
        ([["a"], ["b"]], r"`edge_index` \(list\) must be integers"),
        ([0, 1], r"`edge_index` \(shape \(2,\), torch.int64\) must be integers"),
        (np.zeros((2, 1)), r"torch.float64\) must be integers"),
        (np.array([[2], [0]], np.uint16), r"`edge_index\[0\]` \(=2 at edge 0\) must lie between"),
    ],
)
def test_what_is_no_edge_index_is_named(index: Any, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        Pattern.from_edge_index(index, 2, 2)
    with pytest.raises(PatternError, match=r"`tap` \(list\) must be one number for each edge"):
        Pattern.from_edge_index([[0], [0]], 1, 1, tap=[[0], [1, 2]])


def test_rows_match_a_plain_loop() -> None:
    pattern = random_pattern(4)
    expected = np.repeat(np.arange(7), pattern.fan_in.numpy())
    np.testing.assert_array_equal(pattern.rows().numpy(), expected)
