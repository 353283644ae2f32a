"""CRPS family: gradients, limits, missing values, low precision and compilation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from loss_cases import INF, draws
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from scisparse.losses import (
    crps_censored_normal,
    crps_ensemble,
    crps_normal,
    crps_truncated_normal,
    weighted_mean,
)

BOUNDED = {"truncated": crps_truncated_normal, "censored": crps_censored_normal}


# --- limits and missing data ---

SCORES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "normal": crps_normal,
    "censored": lambda m, s, y: crps_censored_normal(m, s, y, 0.0),
    "censored both": lambda m, s, y: crps_censored_normal(m, s, y, 0.0, 9.0),
    "truncated": lambda m, s, y: crps_truncated_normal(m, s, y, 0.0),
    "truncated both": lambda m, s, y: crps_truncated_normal(m, s, y, 0.0, 9.0),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SCORES)
def test_at_std_zero_it_is_the_absolute_error(name: str, dtype: torch.dtype) -> None:
    mean = torch.tensor([1.0, 2.0, 8.0, 5.0], dtype=dtype, requires_grad=True)
    observed = torch.tensor([4.0, 0.0, 9.0, 5.0], dtype=dtype)
    for size in (0.0, 1e-40):
        std = torch.full_like(mean, size, requires_grad=True)
        score = SCORES[name](mean, std, observed)
        torch.testing.assert_close(score.detach(), (mean - observed).detach().abs())
        gradient = torch.autograd.grad(score.sum(), (mean, std))
        torch.testing.assert_close(gradient[0], torch.sign(mean - observed).detach())
        slope = torch.full_like(mean, -1.0 / math.sqrt(math.pi))
        slope[-1] += math.sqrt(2.0 / math.pi)
        torch.testing.assert_close(gradient[1], slope)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e3, 1e18])
def test_values_and_gradients_stay_finite(name: str, dtype: torch.dtype, size: float) -> None:
    values = torch.tensor([-1e18, -1e4, -30.0, -1.0, 0.0, 1e-9, 3.0, 9.0, 50.0, 1e18], dtype=dtype)
    observed = torch.tensor([-5.0, 0.0, 1e-6, 4.0, 9.0, 1e5], dtype=dtype)
    mean, y = (t.flatten() for t in torch.meshgrid(values, observed, indexing="ij"))
    mean.requires_grad_()
    std = torch.full_like(mean, size, requires_grad=True)
    score = SCORES[name](mean, std, y)
    for part in (score.detach(), *torch.autograd.grad(score.sum(), (mean, std))):
        assert torch.isfinite(part).all()
    assert score.min() >= -1e-5 * size


@pytest.mark.parametrize("name", SCORES)
def test_missing_values_leave_no_gradient(name: str) -> None:
    nan = math.nan
    mean = torch.tensor([1.0, nan, 1.0, 1.0, 2.0, INF], requires_grad=True)
    std = torch.tensor([1.0, 1.0, nan, -1.0, 1.5, 1.0], requires_grad=True)
    observed = torch.tensor([nan, 1.0, 1.0, 1.0, 3.0, 1.0])
    score = SCORES[name](mean, std, observed)
    assert torch.isnan(score).tolist() == [True, True, True, True, False, True]
    loss = weighted_mean(score, mask=torch.isfinite(score))
    whole = torch.autograd.grad(loss, (mean, std))
    first, second = (t[4:5].detach().requires_grad_() for t in (mean, std))
    alone = torch.autograd.grad(SCORES[name](first, second, observed[4:5]), (first, second))
    for gradient, single in zip(whole, alone, strict=True):
        torch.testing.assert_close(gradient[4:5], single)
        assert gradient.count_nonzero() == 1


@pytest.mark.parametrize("bounds", [(math.nan, INF), (0.0, math.nan), (2.0, 2.0), (3.0, 1.0)])
@pytest.mark.parametrize("kind", BOUNDED)
def test_unusable_bounds_leave_no_gradient(kind: str, bounds: tuple[float, float]) -> None:
    """Bounds of each point, such as capacities, may be missing at some."""
    lower, upper = torch.tensor([0.0, bounds[0]]), torch.tensor([5.0, bounds[1]])
    location, scale, observed = inputs = [
        torch.full((2,), value, requires_grad=True) for value in (1.0, 0.7, 2.0)
    ]
    score = BOUNDED[kind](location, scale, observed, lower, upper)
    torch.testing.assert_close(score[0], BOUNDED[kind](location, scale, observed, 0.0, 5.0)[0])
    assert score[1].isnan()
    for gradient in torch.autograd.grad(weighted_mean(score, mask=score.isfinite()), inputs):
        assert gradient[0] != 0
        assert gradient[1] == 0


def test_missing_members_leave_no_gradient() -> None:
    members = torch.tensor([[1.0, 2.0, 4.0], [1.0, math.nan, 4.0], [1.0, 2.0, 4.0]])
    members.requires_grad_()
    observed = torch.tensor([1.5, 1.5, math.nan])
    score = crps_ensemble(members, observed)
    assert torch.isnan(score).tolist() == [False, True, True]
    loss = weighted_mean(score, mask=torch.isfinite(score))
    (gradient,) = torch.autograd.grad(loss, members)
    assert torch.isfinite(gradient).all()
    assert gradient[0].any()
    assert not gradient[1:].any()


# --- gradients and dtypes ---


@pytest.mark.parametrize("bounds", [(0.0, INF), (-INF, 0.0), (0.0, 4.0), (0.0, 0.05)])
@pytest.mark.parametrize("low", [-30.0, -0.5, 0.5, 12.0, 100.0])
@pytest.mark.parametrize("kind", BOUNDED)
def test_gradcheck_bounded(kind: str, low: float, bounds: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(7)
    uniform = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    scale = 0.5 + uniform[0]
    observed = scale * (0.01 + 2.0 * uniform[1]) / max(low, 1.0)
    sign = -1.0 if bounds[0] == -INF else 1.0
    inputs = [t.requires_grad_() for t in (-sign * low * scale, scale.clone(), sign * observed)]
    score = BOUNDED[kind]
    assert gradcheck(lambda m, s, y: score(m, s, y, *bounds), inputs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", BOUNDED)
@pytest.mark.parametrize("bounds", [(0.0, INF), (-INF, 0.0)])
def test_gradient_where_all_coincide(kind: str, bounds: tuple[float, float]) -> None:
    """Location 0, observation 0, bound 0: a usual start, and the corner of every branch."""
    sign = 1.0 if bounds[0] == 0.0 else -1.0
    start = torch.zeros(1, dtype=torch.float64)
    scale = torch.ones(1, dtype=torch.float64)

    def score(shift: float) -> Tensor:
        return BOUNDED[kind](start + sign * shift, scale, start, *bounds)

    location = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(BOUNDED[kind](location, scale, start, *bounds), location)
    expected = sign * (score(1e-6) - score(-1e-6)) / 2e-6
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", BOUNDED)
@pytest.mark.parametrize("bounds", [(0.0, INF), (-INF, 4.0), (0.0, 4.0), (4.0 - 0.05, 4.0)])
def test_gradient_on_a_bound_is_that_from_within(kind: str, bounds: tuple[float, float]) -> None:
    location = torch.tensor([-1.0, 0.0, 0.7, 3.0, 5.0], dtype=torch.float64)
    scale = torch.full_like(location, 1.5)
    for bound in (each for each in bounds if math.isfinite(each)):
        step = 1e-6 if bound == bounds[0] else -1e-6
        ends = [torch.full_like(location, at) for at in (bound, bound + step)]
        start, end = (BOUNDED[kind](location, scale, at, *bounds) for at in ends)
        mean, std, at = (t.clone().requires_grad_() for t in (location, scale, ends[0]))
        total = BOUNDED[kind](mean, std, at, *bounds).sum()
        gradient = torch.autograd.grad(total, (mean, std, at))
        torch.testing.assert_close(gradient[2], (end - start) / step, rtol=1e-4, atol=1e-4)
        for number, found in enumerate(gradient[:2]):  # of parameters, from both sides
            shift = [1e-6 * (number == k) for k in range(2)]
            more, less = (
                BOUNDED[kind](location + s * shift[0], scale + s * shift[1], ends[0], *bounds)
                for s in (1.0, -1.0)
            )
            torch.testing.assert_close(found, (more - less) / 2e-6, rtol=1e-5, atol=1e-7)


def test_gradcheck_normal_and_second_order() -> None:
    inputs = [t.requires_grad_() for t in draws(6, 8)]
    assert gradcheck(crps_normal, inputs)
    assert gradgradcheck(crps_normal, inputs)
    near = [t.detach().clone().requires_grad_() for t in (inputs[0], inputs[1], inputs[2].abs())]
    for score in BOUNDED.values():
        assert gradgradcheck(lambda m, s, y, f=score: f(m, s, y, 0.0), near, atol=1e-4)


@pytest.mark.parametrize("estimator", ["fair", "standard", "almost_fair"])
def test_gradcheck_ensemble(estimator: str) -> None:
    generator = torch.Generator().manual_seed(9)
    members = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    observed = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert gradcheck(
        lambda x, y: crps_ensemble(x, y, dim=1, estimator=estimator), (members, observed)
    )


@pytest.mark.parametrize("name", SCORES)
def test_float32_keeps_its_digits(name: str) -> None:
    location, scale, observed = (t.float() for t in draws(5000, 10, spread=1.5))
    singles = location.clone().requires_grad_(), scale.clone().requires_grad_()
    doubles = location.double().requires_grad_(), scale.double().requires_grad_()
    single = SCORES[name](*singles, observed)
    double = SCORES[name](*doubles, observed.double())
    assert single.dtype == torch.float32
    size = (scale + (observed - location).abs()).double()
    assert ((single.double() - double).abs() / size).max() < 3e-6
    for ours, exact in zip(
        torch.autograd.grad(single.sum(), singles),
        torch.autograd.grad(double.sum(), doubles),
        strict=True,
    ):
        assert (ours.double() - exact).abs().max() < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    values = torch.tensor([3, 8], dtype=dtype), torch.tensor([2, 1], dtype=dtype)
    observed = torch.tensor([5, 6], dtype=dtype)
    expected = crps_normal(values[0].double(), values[1].double(), observed.double())
    score = crps_normal(*values, observed)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, expected.float())
    members = torch.stack([*values, observed])
    assert crps_ensemble(members, observed, dim=0).dtype == torch.float32


def test_losses_compile_whole() -> None:
    def loss(m: Tensor, s: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        score = crps_normal(m, s, y) + crps_censored_normal(m, s, y, 0.0)
        score = score + crps_truncated_normal(m, s, y, 0.0)
        score = score + crps_ensemble(torch.stack([m, s]), y, dim=0)
        return weighted_mean(score, s, mask)

    mean, std, observed = (t.abs().requires_grad_() for t in draws(20, 11))
    mask = observed.detach() > 1.0
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    expected = loss(mean, std, observed, mask)
    torch.testing.assert_close(compiled(mean, std, observed, mask), expected)
