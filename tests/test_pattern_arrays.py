"""`Pattern`: masks, orders and numbers of edges as lists and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_pattern import random_pattern
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.grids import LatLonGrid
from scisparse.pattern import Pattern
from scisparse.patterns import window


@pytest.mark.parametrize("form", [Tensor.tolist, Tensor.numpy, "read-only"])
def test_masks_orders_and_numbers_are_taken_as_lists_and_arrays(form: Any) -> None:
    def given(values: Tensor) -> Any:
        if form != "read-only":
            return form(values)
        array = values.numpy().copy()
        array.flags.writeable = False
        return array

    whole = random_pattern(11)
    sites, sources, edges = (torch.rand(n) < 0.6 for n in (*whole.shape, whole.num_edges))
    restricted = whole.restrict(given(sites), given(sources), relabel=True)
    assert restricted == whole.restrict(sites, sources, relabel=True)
    chosen = edges.nonzero().squeeze(1)
    assert whole.select(given(edges)) == whole.select(given(chosen)) == whole.select(edges)
    orders = [torch.randperm(n) for n in whole.shape]
    assert whole.reorder(*map(given, orders)) == whole.reorder(*orders)
    dense = whole.to_dense()
    assert Pattern.from_dense(given(dense)) == Pattern.from_dense(dense)


def test_masks_and_orders_of_a_grid_are_those_of_its_pattern() -> None:
    valid = np.random.default_rng(3).random((9, 18)) < 0.7
    grid = LatLonGrid.from_degrees(np.arange(-80, 81, 20), np.arange(0, 360, 20), mask=valid)
    pattern = window((9, 18), 3, padding=1)
    land = torch.from_numpy(valid.ravel())
    assert pattern.restrict(source_mask=grid.valid) == pattern.restrict(source_mask=land)
    order = np.argsort(~grid.valid, kind="stable")  # valid points first
    assert pattern.reorder(order) == pattern.reorder(torch.from_numpy(order))


def test_no_edges_are_selected_by_a_list_without_numbers() -> None:
    assert random_pattern(2).select([]).num_edges == 0


def test_what_is_no_mask_order_or_number_is_named() -> None:
    pattern = random_pattern(3, 4, 5)
    rule = rf"must be booleans \[{pattern.num_edges}\] or int64 numbers of edges"
    with pytest.raises(PatternError, match=rf"`edges` \(shape \(2,\), torch.float64\) {rule}"):
        pattern.select([0.5, 1])
    with pytest.raises(PatternError, match=rf"`edges` \(str\) {rule}: "):
        pattern.select("all")
    with pytest.raises(PatternError, match=r"`site_mask` \(list\) must be booleans \[4\]: "):
        pattern.restrict([["a"], []])
    with pytest.raises(PatternError, match=r"`source_order` \(str\) must be int64 \[5\]: "):
        pattern.reorder(torch.arange(4), "north")
    with pytest.raises(PatternError, match=r"`dense` \(NoneType\) must be booleans \[M, N\]: "):
        Pattern.from_dense(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2.0, "2", True, None])
def test_counts_of_points_that_are_no_integers_are_named(count: Any) -> None:
    for name, counts in (("num_sites", (count, 2)), ("num_sources", (2, count))):
        with pytest.raises(PatternError, match=rf"`{name}` \(={count!r}\) must be an integer"):
            Pattern.from_edge_index([[0], [1]], *counts)
    with pytest.raises(PatternError, match=r"`num_sites` \(=-1\) must be at least 0"):
        Pattern.from_edge_index([[], []], -1, 2)
    twos: Any = np.int64(2), torch.tensor(2)
    assert Pattern.from_edge_index([[0], [1]], *twos).shape == (2, 2)
