"""CRPS family and its mean: other libraries, quadrature, limits; bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scoringrules
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import INF, assert_close, draws

from scisparse.errors import OptionError, ShapeError
from scisparse.losses import (
    crps_censored_normal,
    crps_ensemble,
    crps_normal,
    crps_truncated_normal,
    weighted_mean,
)

BOUNDS = ((-INF, INF), (0.0, INF), (-INF, 1.0), (-1.0, 2.0))
BOUNDED = {"truncated": crps_truncated_normal, "censored": crps_censored_normal}
THEIRS = {"truncated": scoringrules.crps_tnormal, "censored": scoringrules.crps_cnormal}


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
