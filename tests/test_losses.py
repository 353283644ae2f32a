"""CRPS family: other libraries, quadrature, limits, gradients; distributions against their CRPS."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import scoringrules
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from scisparse.errors import OptionError, ShapeError
from scisparse.losses import (
    CensoredNormal,
    Distribution,
    Normal,
    TruncatedNormal,
    crps_censored_normal,
    crps_ensemble,
    crps_normal,
    crps_truncated_normal,
    distribution,
    weighted_mean,
)

INF = math.inf
BOUNDS = ((-INF, INF), (0.0, INF), (-INF, 1.0), (-1.0, 2.0))
BOUNDED = {"truncated": crps_truncated_normal, "censored": crps_censored_normal}
THEIRS = {"truncated": scoringrules.crps_tnormal, "censored": scoringrules.crps_cnormal}
FAMILIES: tuple[Distribution, ...] = (Normal(), TruncatedNormal(-0.5), CensoredNormal(0.7))


def draws(count: int, seed: int, *, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(3, count, generator=generator, dtype=torch.float64)
    return 3.0 * normal[0], torch.exp(spread * normal[1]), 4.0 * normal[2]


def assert_close(ours: Tensor, theirs: object, tolerance: float = 1e-10) -> None:
    expected = np.asarray(theirs)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=tolerance, atol=tolerance)


# --- against scoringrules ---


def test_normal_equals_scoringrules() -> None:
    mean, std, observed = draws(5000, 1, spread=4.0)
    assert std.min() < 1e-5
    assert std.max() > 1e5
    observed = observed * 10.0 ** torch.linspace(-3, 5, 5000, dtype=torch.float64)
    expected = scoringrules.crps_normal(observed.numpy(), mean.numpy(), std.numpy())
    assert_close(crps_normal(mean, std, observed), expected)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("kind", BOUNDED)
def test_bounded_equals_scoringrules(kind: str, bounds: tuple[float, float]) -> None:
    location, scale, observed = draws(20_000, 2, spread=2.0)
    lower, upper = bounds
    # Where their own closed form keeps 10 digits: 2.5 scales of the location from the bounds.
    kept = (lower - location < 2.5 * scale) & (location - upper < 2.5 * scale)
    kept &= upper - lower > 0.3 * scale
    location, scale, observed = location[kept], scale[kept], observed[kept]
    observed[::5] = observed[::5].clamp(lower, upper)  # many on a bound
    ours = BOUNDED[kind](location, scale, observed, lower, upper)
    theirs = THEIRS[kind](observed.numpy(), location.numpy(), scale.numpy(), lower, upper)
    assert_close(ours, theirs)
    assert kept.sum() > 5000


@pytest.mark.parametrize(("estimator", "theirs"), [("fair", "fair"), ("standard", "nrg")])
@pytest.mark.parametrize("size", [2, 3, 11, 50])
def test_ensemble_equals_scoringrules(estimator: str, theirs: str, size: int) -> None:
    generator = np.random.default_rng(size)
    members = generator.gamma(0.5, 3.0, (4, 7, size)).round(1)  # with ties
    observed = generator.gamma(0.5, 3.0, (4, 7)).round(1)
    expected = scoringrules.crps_ensemble(observed, members, estimator=theirs, backend="numpy")
    for dim in range(3):
        moved = torch.from_numpy(np.moveaxis(members, -1, dim))
        for form in (dim, dim - 3):
            ours = crps_ensemble(moved, torch.from_numpy(observed), dim=form, estimator=estimator)
            assert_close(ours, expected, 1e-12)


# --- where scoringrules has no digits: quadrature and limits ---


def tail_score(low: float, width: float, at: float) -> float:
    """CRPS in scales of a normal truncated to [low, low + width], low >= 0, by quadrature."""

    def survival(step: float) -> float:
        ends = scipy.special.erfcx(np.array([low + step, low]) / math.sqrt(2.0))
        return float(ends[0] / ends[1] * math.exp(-0.5 * step * (2.0 * low + step)))

    rest = 0.0 if width == INF else survival(width)
    share = [lambda t: ((1.0 - survival(t)) / (1.0 - rest)) ** 2]
    share += [lambda t: ((survival(t) - rest) / (1.0 - rest)) ** 2]
    end = min(width, at + 40.0 / max(low, 1.0))
    options = {"epsabs": 0.0, "epsrel": 1e-13, "limit": 200}
    parts = [scipy.integrate.quad(share[0], 0.0, at, **options)[0] if at > 0 else 0.0]
    parts += [scipy.integrate.quad(share[1], at, end, **options)[0] if end > at else 0.0]
    return float(sum(parts))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("low", [0.1, 0.99, 1.01, 3.0, 7.9, 8.1, 19.5, 20.5, 300.0])
@pytest.mark.parametrize("relative_width", [0.2, 0.7, 3.0, INF])
def test_truncated_far_from_its_location(
    low: float, relative_width: float, dtype: torch.dtype
) -> None:
    width = relative_width / max(low, 1.0)
    scale = 2.0
    for part in (0.0, 0.3, 1.0):
        at = part * min(width, 2.0 / max(low, 1.0))
        location, spread, observed = (
            torch.tensor(v, dtype=dtype) for v in (-low * scale, scale, at * scale)
        )
        ours = crps_truncated_normal(location, spread, observed, 0.0, width * scale)
        expected = scale * tail_score(low, width, at)
        tolerance = 2e-11 if dtype == torch.float64 else 3e-4
        assert ours.item() == pytest.approx(expected, rel=tolerance)


def test_truncated_tends_to_exponential_and_uniform() -> None:
    observed = np.linspace(-1.0, 5.0, 40)
    y = torch.from_numpy(observed)
    # N(-1e6, 1e3) above 0 has rate 1 but for 1e-6 of it.
    exponential = crps_truncated_normal(torch.tensor(-1e6), torch.tensor(1e3), y.double(), 0.0)
    expected = scoringrules.crps_exponential(observed.clip(0.0), 1.0) + (-observed).clip(0.0)
    np.testing.assert_allclose(exponential.numpy(), expected, atol=3e-6)
    uniform = crps_truncated_normal(torch.tensor(2.0), torch.tensor(1e9), y, 0.0, 3.0)
    theirs = scoringrules.crps_uniform(observed, 0.0, 3.0)
    np.testing.assert_allclose(uniform.numpy(), theirs, atol=1e-9)


@pytest.mark.parametrize("kind", BOUNDED)
def test_mirror_image_scores_the_same(kind: str) -> None:
    location, scale, observed = draws(2000, 3, spread=3.0)
    straight = BOUNDED[kind](location, scale, observed, -1.0, 2.5)
    mirrored = BOUNDED[kind](-location, scale, -observed, -2.5, 1.0)
    assert_close(straight, mirrored, 1e-12)


@pytest.mark.parametrize("kind", BOUNDED)
def test_without_bounds_it_is_the_normal(kind: str) -> None:
    location, scale, observed = draws(1000, 4, spread=3.0)
    expected = crps_normal(location, scale, observed)
    assert_close(BOUNDED[kind](location, scale, observed), expected, 1e-12)
    wide = BOUNDED[kind](location, scale, observed, -1e12, 1e12)
    assert_close(wide, expected, 1e-12)


def test_bounds_may_be_tensors() -> None:
    location, scale, observed = draws(50, 5)
    lower = torch.linspace(-2.0, 1.0, 50, dtype=torch.float64)
    for score in BOUNDED.values():
        together = score(location, scale, observed, lower, 3.0)
        singly = [
            score(location[k], scale[k], observed[k], float(lower[k]), 3.0)[None] for k in range(50)
        ]
        assert_close(together, torch.cat(singly), 1e-13)


@pytest.mark.parametrize("family", FAMILIES)
def test_crps_is_twice_the_integral_of_the_pinball_loss(family: Distribution) -> None:
    location, scale, observed = draws(30, 6)
    levels = (torch.arange(10_000, dtype=torch.float64)[:, None] + 0.5) / 10_000
    quantile = family.quantile(levels, location, scale)
    error = observed - quantile
    expected = 2.0 * torch.maximum(levels * error, (levels - 1.0) * error).mean(0)
    assert_close(family.crps(location, scale, observed), expected, 3e-5)


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


# --- ensemble ---


@given(
    st.lists(st.floats(-50.0, 50.0), min_size=2, max_size=9),
    st.floats(-60.0, 60.0),
    st.floats(0.0, 1.0),
)
def test_almost_fair_is_the_sum_over_pairs(values: list[float], truth: float, alpha: float) -> None:
    x = np.array(values)
    size = x.size
    epsilon = (1.0 - alpha) / size
    first, second = np.meshgrid(x, x)
    pairs = np.abs(first - truth) + np.abs(second - truth)
    pairs = pairs - (1.0 - epsilon) * np.abs(first - second)
    off = ~np.eye(size, dtype=bool)
    expected = pairs[off].sum() / (2.0 * size * (size - 1))
    members, observed = torch.from_numpy(x), torch.tensor(truth, dtype=torch.float64)
    ours = crps_ensemble(members, observed, estimator="almost_fair", alpha=alpha)
    assert ours.item() == pytest.approx(expected, abs=1e-10)
    fair = crps_ensemble(members, observed)
    standard = crps_ensemble(members, observed, estimator="standard")
    mixed = alpha * fair + (1.0 - alpha) * standard
    assert ours.item() == pytest.approx(mixed.item(), abs=1e-10)


def test_a_large_offset_does_not_drown_the_spread() -> None:
    generator = torch.Generator().manual_seed(12)
    members = torch.randn(50, 20, generator=generator, dtype=torch.float64).mul(64).round()
    observed = torch.randn(50, generator=generator, dtype=torch.float64).mul(64).round()
    expected = crps_ensemble(members, observed)
    shifted = crps_ensemble((members + 2.0**20).float(), (observed + 2.0**20).float())
    torch.testing.assert_close(shifted.double(), expected, rtol=1e-6, atol=1e-5)


def test_one_member_is_a_deterministic_forecast() -> None:
    score = crps_ensemble(
        torch.tensor([[3.0], [5.0]]), torch.tensor([4.5, 4.5]), estimator="standard"
    )
    assert score.tolist() == [1.5, 0.5]


def test_observations_broadcast_to_members() -> None:
    generator = torch.Generator().manual_seed(13)
    members = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    observed = torch.randn(4, generator=generator, dtype=torch.float64)
    whole = crps_ensemble(members, observed.expand(3, 4), dim=1)
    assert_close(crps_ensemble(members, observed, dim=1), whole, 0.0)
    assert crps_ensemble(members[:0], observed, dim=1).shape == (0, 4)


# --- reduction ---


def test_weighted_mean_is_the_average() -> None:
    generator = np.random.default_rng(14)
    score, weights = generator.normal(size=(5, 3, 4)), generator.uniform(size=(3, 1))
    mask = generator.uniform(size=(5, 3, 4)) > 0.3
    score[~mask] = np.nan
    expected = np.average(score[mask], weights=np.broadcast_to(weights, mask.shape)[mask])
    tensors = [torch.from_numpy(t) for t in (score, weights, mask)]
    assert weighted_mean(*tensors).item() == pytest.approx(expected, rel=1e-13)
    assert math.isnan(weighted_mean(tensors[0], tensors[1]).item())
    plain = weighted_mean(torch.from_numpy(generator.normal(size=7)))
    assert plain.ndim == 0


def test_a_mean_over_nothing_is_nan_without_gradient() -> None:
    score = torch.ones(3, requires_grad=True)
    for weights, mask in ((None, torch.zeros(3, dtype=torch.bool)), (torch.zeros(3), None)):
        mean = weighted_mean(score, weights, mask)
        assert math.isnan(mean.item())
        (gradient,) = torch.autograd.grad(mean, score)
        assert not gradient.any()


def test_weights_where_masked_may_be_nan() -> None:
    score, weights = torch.tensor([1.0, 2.0]), torch.tensor([2.0, math.nan])
    assert weighted_mean(score, weights, torch.tensor([True, False])).item() == 1.0


# --- distributions ---


def test_moments_agree_with_scipy() -> None:
    location, scale, _ = draws(400, 15)
    kept = location > -4.0 * scale  # beyond, scipy's variance has few digits
    location, scale = location[kept], scale[kept]
    family = TruncatedNormal(0.25)
    ends = ((0.25 - location) / scale).numpy(), np.inf, location.numpy(), scale.numpy()
    assert_close(family.mean(location, scale), scipy.stats.truncnorm.mean(*ends), 1e-9)
    assert_close(family.std(location, scale), scipy.stats.truncnorm.std(*ends), 1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_those_of_the_quantiles(family: Distribution) -> None:
    location, scale, _ = draws(50, 16)
    nodes, weights = np.polynomial.legendre.leggauss(500)
    levels = torch.from_numpy(0.5 + 0.5 * nodes)[:, None]
    quantile = family.quantile(levels, location, scale)
    share = torch.from_numpy(0.5 * weights)[:, None]
    mean = (share * quantile).sum(0)
    std = (share * (quantile - mean) ** 2).sum(0).sqrt()
    assert ((mean - family.mean(location, scale)).abs() / scale).max() < 1e-5
    assert ((std - family.std(location, scale)).abs() / scale).max() < 1e-3


@pytest.mark.parametrize("low", [-40.0, -3.0, 0.0, 5.0, 50.0, 1e4])
def test_truncated_normal_far_in_its_tail(low: float) -> None:
    family = TruncatedNormal(2.0)
    scale = torch.tensor(0.5, dtype=torch.float64)
    location = 2.0 - low * scale
    levels = torch.tensor([1e-9, 0.01, 0.5, 0.99, 1.0 - 1e-9], dtype=torch.float64)
    value = family.quantile(levels, location, scale)
    assert (value.diff() > 0).all()
    assert (value > 2.0).all() or low < -30
    torch.testing.assert_close(family.cdf(value, location, scale), levels, rtol=1e-6, atol=1e-10)
    mean, std = family.mean(location, scale), family.std(location, scale)
    assert mean > 2.0
    assert 0.0 < std <= 0.5 * (1 + 1e-12)
    if low >= 50.0:
        assert (mean - 2.0).item() == pytest.approx(0.5 / low, rel=3.0 / low**2)
        assert std.item() == pytest.approx(0.5 / low, rel=4.0 / low**2)


@pytest.mark.parametrize("family", FAMILIES)
def test_cdf_counts_samples(family: Distribution) -> None:
    location, scale, value = draws(20, 17)
    generator = torch.Generator().manual_seed(18)
    sample = family.sample(10_000, location, scale, generator=generator)
    assert sample.shape == (10_000, 20)
    share = (sample <= value).double().mean(0)
    assert (share - family.cdf(value, location, scale)).abs().max() < 0.025
    again = family.sample(10_000, location, scale, generator=generator.manual_seed(18))
    assert torch.equal(sample, again)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_in_float32_are_finite(family: Distribution) -> None:
    scale = torch.tensor([1e-6, 1.0, 1e6])
    generator = torch.Generator().manual_seed(19)
    sample = family.sample(200_000, torch.zeros(()), scale, generator=generator)
    assert sample.dtype == torch.float32
    assert torch.isfinite(sample).all()
    assert sample.min() >= getattr(family, "lower", -INF)


def test_censored_mass_sits_on_the_bound() -> None:
    family = CensoredNormal(1.5)
    location, scale = torch.tensor([1.0, 1.5]), torch.tensor([2.0, 2.0])
    at = torch.tensor(1.5)
    torch.testing.assert_close(
        family.cdf(at, location, scale), torch.special.ndtr(torch.tensor([0.25, 0.0]))
    )
    assert not family.cdf(torch.nextafter(at, torch.tensor(-INF)), location, scale).any()
    assert family.quantile(0.4, location, scale).tolist() == [1.5, 1.5]


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_determine_the_distribution(family: Distribution) -> None:
    location, scale, _ = draws(500, 20)
    low = (getattr(family, "lower", -INF) - location) / scale
    location, scale = location[low < 6], scale[low < 6]
    mean, std = family.mean(location, scale), family.std(location, scale)
    found = family.from_moments(mean, std)
    assert ((family.mean(*found) - mean).abs() / std).max() < 1e-8
    assert ((family.std(*found) - std).abs() / std).max() < 1e-8
    observed = mean + std
    torch.testing.assert_close(
        family.crps(*found, observed), family.crps(location, scale, observed), rtol=1e-7, atol=0.0
    )


def test_moments_that_no_distribution_has() -> None:
    mean = torch.tensor([-1.0, 1.0, 1.0, 0.0, 1.0])
    std = torch.tensor([1.0, 2.0, 0.0, 0.0, math.nan])
    location, scale = TruncatedNormal().from_moments(mean, std)
    assert torch.isnan(scale).tolist() == [True, True, False, False, True]
    assert location[2:4].tolist() == [1.0, 0.0]
    location, scale = CensoredNormal().from_moments(mean, std)
    assert torch.isnan(scale).tolist() == [True, False, False, False, True]


def test_distributions_are_found_by_name() -> None:
    assert distribution("normal") == Normal()
    assert distribution("truncated_normal") == TruncatedNormal(0.0)
    assert distribution("censored_normal", 1.0) == CensoredNormal(1.0)
    assert [f.name for f in FAMILIES] == ["normal", "truncated_normal", "censored_normal"]
    assert len({*FAMILIES, Normal()}) == 3
    message = "'gamma'; choose one of normal, truncated_normal, censored_normal"
    with pytest.raises(OptionError, match=message):
        distribution("gamma")


# --- bad input ---


def test_errors_name_argument_value_and_rule() -> None:
    three, four = torch.ones(3), torch.ones(4)
    with pytest.raises(ShapeError, match=r"must broadcast, but have shapes \(3,\), \(4,\), \(3,\)"):
        crps_normal(three, four, three)
    with pytest.raises(OptionError, match=r"`lower` \(=2.0\) must be below `upper` \(=1.0\)"):
        crps_censored_normal(three, three, three, 2.0, 1.0)
    with pytest.raises(OptionError, match=r"`estimator` is 'best'; choose one of standard, fair"):
        crps_ensemble(three, three[0], estimator="best")
    with pytest.raises(OptionError, match=r"`alpha` \(=1.5\) must be in \[0, 1\]"):
        crps_ensemble(three, three[0], estimator="almost_fair", alpha=1.5)
    with pytest.raises(OptionError, match="'fair' needs at least 2 members, not 1; use 'standard'"):
        crps_ensemble(three[:1], three[0])
    with pytest.raises(ShapeError, match=r"no member along dim -1: shape \(0,\)"):
        crps_ensemble(three[:0], three[0])
    with pytest.raises(ShapeError, match=r"has 1 dims, so `dim` \(=1\) is not one of them"):
        crps_ensemble(three, three[0], dim=1)
    with pytest.raises(ShapeError, match=r"`observed` has shape \(4,\).*to \(5,\)"):
        crps_ensemble(torch.ones(5, 3), four)
    with pytest.raises(ShapeError, match=r"`weights` has shape \(4,\).*to \(3,\)"):
        weighted_mean(three, four)
    with pytest.raises(ShapeError, match=r"`mask` has dtype torch.float32, not bool"):
        weighted_mean(three, None, three)
    with pytest.raises(OptionError, match=r"`lower` \(=-inf\) must be finite; .*use 'normal'"):
        TruncatedNormal(-INF)
    with pytest.raises(OptionError, match=r"`p` \(=1.2\) must be a probability"):
        Normal().quantile(1.2, three, three)
