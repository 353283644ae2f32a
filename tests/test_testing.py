"""The shipped asserts: each passes what is invariant, and names what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scisparse.errors import ShapeError
from scisparse.grids import LatLonGrid
from scisparse.kernels import gather_matmul
from scisparse.pattern import Pattern
from scisparse.patterns import radius, window
from scisparse.testing import (
    assert_batch_independent,
    assert_deterministic,
    assert_edge_order,
    assert_latitude_flip,
    assert_longitude_roll,
    assert_same,
    assert_site_relabelling,
)

FIELD = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))


def as_numpy(field: NDArray[Any]) -> NDArray[Any]:
    assert isinstance(field, np.ndarray)
    rolled: NDArray[Any] = np.roll(field, 1, -1)
    return np.asarray(field - rolled)


# -- fields ----------------------------------------------------------------------------------------


def test_roll_passes_what_goes_around() -> None:
    assert_longitude_roll(lambda x: x - x.roll(1, -1), FIELD)
    assert_longitude_roll(as_numpy, FIELD.numpy())
    assert_longitude_roll(lambda x: x[..., ::2].repeat_interleave(2, -1), FIELD, step=2)
    assert_longitude_roll(lambda x: x.mean(-2, keepdim=True), FIELD)
    assert_longitude_roll(lambda x: x.cumsum(-1), FIELD, dim=-2)


@pytest.mark.parametrize(
    ("function", "step", "shift"),
    [
        (lambda x: x - x.roll(1, -1) * torch.arange(8).ne(0), 1, 1),  # a seam
        (lambda x: x[..., ::2].repeat_interleave(2, -1), 1, 1),  # a stride
        (lambda x: x * torch.tensor([1.0, -1.0]).repeat(4), 1, 1),
        (lambda x: x * torch.tensor([1.0, 1, -1, -1]).repeat(2), 2, 2),
    ],
)
def test_roll_finds_seams(function: Any, step: int, shift: int) -> None:
    with pytest.raises(
        AssertionError, match=rf"^field rolled by {shift} columns: \d+ of 192 values"
    ):
        assert_longitude_roll(function, FIELD, step=step)


def test_roll_tries_half_a_turn() -> None:
    """A fault that a small roll does not show: rows that swap their halves, one sign each."""
    sign = torch.tensor([1.0] * 4 + [-1.0] * 4)
    calls: list[int] = []

    def function(x: Tensor) -> Tensor:
        calls.append(1)
        return x * sign if len(calls) == 4 else x

    with pytest.raises(AssertionError, match="rolled by 4 columns"):
        assert_longitude_roll(function, FIELD)


def test_flip() -> None:
    assert_latitude_flip(torch.sin, FIELD, tolerance=0)
    assert_latitude_flip(as_numpy, FIELD.numpy())
    assert_latitude_flip(lambda x: x.cumsum(-2), FIELD, dim=-1, tolerance=0)
    with pytest.raises(
        AssertionError, match=r"^field flipped in latitude: 192 of 192 values differ"
    ):
        assert_latitude_flip(lambda x: x.cumsum(-2).square(), FIELD)


def test_batches() -> None:
    assert_batch_independent(nn.Conv2d(3, 2, 3), FIELD)
    assert_batch_independent(nn.BatchNorm2d(3).eval(), FIELD)
    assert_batch_independent(as_numpy, FIELD.numpy())
    assert_batch_independent(lambda x: x.cumsum(0), FIELD, dim=1)
    with pytest.raises(AssertionError, match=r"^sample 0 alone: .* values differ"):
        assert_batch_independent(nn.BatchNorm2d(3), FIELD)
    with pytest.raises(AssertionError, match=r"^sample 0 beside samples of NaN: 96 of 96 values"):
        assert_batch_independent(lambda x: x + 0 * x.sum(0), FIELD)
    with pytest.raises(ShapeError, match=r"`batch` has 1 samples along dim 0; give at least 2"):
        assert_batch_independent(torch.sin, FIELD[:1])


# -- repeats ---------------------------------------------------------------------------------------


class Drifts(nn.Module):
    """Gives what it is told to change with each call."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part, self.calls = part, 0
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        drift = 1 + 1e-6 * self.calls
        if self.part == "output":
            return x * self.weight * drift
        if self.part == "gradient of the input":  # the value stays, the slope does not
            return x * self.weight + drift * (x - x.detach())
        if self.part == "gradient of weight":
            return x * self.weight + drift * (self.weight - self.weight.detach())
        return x * self.weight


@pytest.mark.parametrize("part", ["output", "gradient of the input", "gradient of weight"])
def test_repeats_find_what_drifts(part: str) -> None:
    assert_deterministic(Drifts("nothing"), FIELD)
    with pytest.raises(AssertionError, match=f"^{part} of repeat 1: "):
        assert_deterministic(Drifts(part), FIELD)


def test_repeats_pass_what_is_seeded() -> None:
    noisy = nn.Sequential(nn.Linear(8, 4), nn.Dropout())
    state = torch.random.get_rng_state()
    assert_deterministic(noisy, FIELD)
    assert_deterministic(as_numpy, FIELD.numpy())
    assert_deterministic(torch.abs, torch.arange(5))
    assert_deterministic(lambda x: x > 0, FIELD)
    assert_deterministic(noisy.requires_grad_(False), FIELD)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_repeats_count() -> None:
    class Third(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + (self.calls == 3)

    assert_deterministic(Third(), FIELD, repeats=1)
    with pytest.raises(AssertionError, match="output of repeat 2"):
        assert_deterministic(Third(), FIELD, repeats=2)


# -- patterns --------------------------------------------------------------------------------------


def weighted(pattern: Pattern, x: Tensor, weight: Tensor) -> Tensor:
    return gather_matmul(x, weight, pattern.row_ptr, pattern.col)


def decayed(pattern: Pattern, x: Tensor) -> Tensor:
    """Use what rides along with the edges."""
    assert pattern.distance is not None
    assert pattern.bearing is not None
    weight = torch.exp(-pattern.distance / 1e6) * torch.cos(pattern.bearing)
    return weighted(pattern, x, weight[:, None, None])


def first_source(pattern: Pattern, x: Tensor) -> Tensor:
    """Read the first edge of each row alone: the order of edges matters."""
    return x[:, pattern.col.long()[pattern.row_ptr[:-1]]]


def by_number(pattern: Pattern, x: Tensor) -> Tensor:
    """Scale each site by its number."""
    y = weighted(pattern, x, torch.ones(pattern.num_edges, 1, 1))
    return y * torch.arange(1.0, pattern.num_sites + 1)[:, None]


pytest.importorskip("scipy", reason="radius searches with scipy")
STENCIL = window((3, 4), 3)
NEIGHBOURS = radius(LatLonGrid.regular(3, 4), 9e6)
BETWEEN = radius(LatLonGrid.regular(3, 4), 9e6, sites=LatLonGrid.regular(4, 5))
SOURCES = torch.randn(2, 12, 1, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("check", [assert_edge_order, assert_site_relabelling])
@pytest.mark.parametrize("pattern", [STENCIL, NEIGHBOURS, BETWEEN])
def test_patterns_pass(check: Any, pattern: Pattern) -> None:
    weight = torch.randn(pattern.num_edges, 1, 2, generator=torch.Generator().manual_seed(2))
    check(weighted, pattern, SOURCES, weight)
    if pattern.distance is not None:
        check(decayed, pattern, SOURCES)


@pytest.mark.parametrize("pattern", [STENCIL, NEIGHBOURS, BETWEEN])
def test_patterns_fail(pattern: Pattern) -> None:
    with pytest.raises(AssertionError, match=r"^sources in another order: "):
        assert_edge_order(first_source, pattern, SOURCES)
    assert_edge_order(by_number, pattern, SOURCES)
    with pytest.raises(AssertionError, match=r"^sites and sources relabelled: "):
        assert_site_relabelling(by_number, pattern, SOURCES)


def test_edge_values_go_along() -> None:
    """Were they left behind, they would belong to other edges."""
    kept = torch.randn(STENCIL.num_edges, 1, 1, generator=torch.Generator().manual_seed(3))

    def forgets(pattern: Pattern, x: Tensor, weight: Tensor) -> Tensor:
        return weighted(pattern, x, kept)

    with pytest.raises(AssertionError, match="sources in another order"):
        assert_edge_order(forgets, STENCIL, SOURCES, kept)


def test_sites_that_are_sources_keep_one_number() -> None:
    """A point minus its neighbours: fails when sites and sources are numbered apart."""

    def laplacian(pattern: Pattern, x: Tensor) -> Tensor:
        mean = weighted(pattern, x, torch.ones(pattern.num_edges, 1, 1))
        return mean - pattern.fan_in[:, None] * x

    assert_site_relabelling(laplacian, NEIGHBOURS, SOURCES, tolerance=1e-5)


# -- comparison ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actual", "expected", "match"),
    [
        (
            torch.zeros(2),
            torch.zeros(3),
            r"outputs: torch.float32 of shape \[2\], not torch.float32",
        ),
        (torch.zeros(2), torch.zeros(2).double(), r"not torch.float64 of shape \[2\]"),
        (torch.tensor([0.0, 1.1]), torch.tensor([0.0, 1.0]), r"1 of 2 values .* by 0.1 at \[1\]"),
        (torch.tensor([0.0, torch.nan]), torch.ones(2), r"2 of 2 .* at \[1\]"),
        (torch.ones(2), torch.tensor([torch.nan, 1.0]), r"1 of 2 values .* at \[0\]"),
        (torch.tensor(torch.inf), torch.tensor(-torch.inf), r"1 of 1 .* by 1.8e\+308 at \[\]"),
        (torch.tensor([[0, 3]]), torch.tensor([[0, 2]]), r"at \[0, 1\] \(tolerance 0\)"),
    ],
)
def test_differences_are_told(actual: Tensor, expected: Tensor, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        assert_same(actual, expected)


def test_what_agrees() -> None:
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])
    assert_same(odd, odd.clone(), tolerance=0)
    assert_same(torch.tensor([-0.0]), torch.tensor([0.0]), tolerance=0)
    assert_same(torch.zeros(0), torch.zeros(0))
    assert_same(np.array(3.0), np.array(3.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tolerance_is_that_of_the_dtype(dtype: torch.dtype) -> None:
    """A few roundings pass, a hundred thousand do not; relative to the largest value."""
    ones = torch.full((4,), 1024.0, dtype=dtype)
    step = torch.finfo(dtype).eps * 1024
    assert_same(ones + step, ones)
    assert_same(torch.cat([ones, ones[:1] * 0 + step]), torch.cat([ones, ones[:1] * 0]))
    with pytest.raises(AssertionError):
        assert_same(ones + 1e5 * step, ones)
    with pytest.raises(AssertionError):
        assert_same(ones + step, ones, tolerance=0)
