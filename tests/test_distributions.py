"""Forecast distributions: moments, probabilities, quantiles and samples agree with each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from loss_cases import FAMILIES, INF, assert_close, draws

from scisparse.errors import OptionError
from scisparse.losses import CensoredNormal, Distribution, Normal, TruncatedNormal, distribution
from scisparse.losses.distributions import on_certain


@pytest.mark.parametrize("family", FAMILIES)
def test_crps_is_twice_the_integral_of_the_pinball_loss(family: Distribution) -> None:
    location, scale, observed = draws(30, 6)
    levels = (torch.arange(10_000, dtype=torch.float64)[:, None] + 0.5) / 10_000
    quantile = family.quantile(levels, location, scale)
    error = observed - quantile
    expected = 2.0 * torch.maximum(levels * error, (levels - 1.0) * error).mean(0)
    assert_close(family.crps(location, scale, observed), expected, 3e-5)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_without_spread_all_probability_is_on_the_location(family: Distribution) -> None:
    bound = getattr(family, "lower", 0.0)
    location = bound + torch.tensor([0.0, 1.5], dtype=torch.float64)
    nothing = torch.zeros_like(location)
    assert family.cdf(location, location, nothing).tolist() == [1.0, 1.0]
    below = torch.nextafter(location, torch.full_like(location, -INF))
    assert family.cdf(below, location, nothing).tolist() == [0.0, 0.0]
    assert family.cdf(location + 1.0, location, nothing).tolist() == [1.0, 1.0]


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


@pytest.mark.parametrize("family", [Normal(), TruncatedNormal(1.0), CensoredNormal(1.0)])
def test_quantiles_at_the_ends(family: Distribution) -> None:
    """The last one is infinite, also far below a bound; a certain value is all of its quantiles."""
    location = torch.tensor([-30.0, 0.0, 2.0, math.nan])
    lower = getattr(family, "lower", -math.inf)
    first, last = (family.quantile(p, location, torch.ones(4)) for p in (0.0, 1.0))
    torch.testing.assert_close(first[:3], torch.full((3,), lower))
    assert last[:3].tolist() == [math.inf] * 3
    for p in (0.0, 0.4, 1.0):
        certain = family.quantile(p, location, torch.zeros(4))
        assert certain[:3].tolist() == location[:3].clamp(min=lower).tolist()
        assert certain[3].isnan()
    assert first[3].isnan()
    assert last[3].isnan()


def test_distributions_are_found_by_name() -> None:
    assert distribution("normal") == Normal()
    assert distribution("truncated_normal") == TruncatedNormal(0.0)
    assert distribution("censored_normal", 1.0) == CensoredNormal(1.0)
    assert [f.name for f in FAMILIES] == ["normal", "truncated_normal", "censored_normal"]
    assert len({*FAMILIES, Normal()}) == 3
    message = "'gamma'; choose one of normal, truncated_normal, censored_normal"
    with pytest.raises(OptionError, match=message):
        distribution("gamma")


def test_bad_parameters_are_named() -> None:
    with pytest.raises(OptionError, match=r"`lower` \(=-inf\) must be finite; .*use 'normal'"):
        TruncatedNormal(-INF)
    with pytest.raises(OptionError, match=r"`p` \(=1.2\) must be a probability"):
        Normal().quantile(1.2, torch.ones(3), torch.ones(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_of_missing_distributions_are_missing(family: Distribution) -> None:
    location, scale = (
        torch.tensor([math.nan, 1.0, math.nan]),
        torch.tensor([1.0, math.nan, math.nan]),
    )
    for value in (-5.0, 0.0, 2.0):
        assert family.cdf(torch.tensor(value), location, scale).isnan().all()


def test_values_in_single_precision_lie_on_a_certain_location() -> None:
    location = torch.tensor([271.35, -0.1, 0.0, 271.35, torch.nan], dtype=torch.float64)
    scale = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    single = location.float().double()
    moved = on_certain(single, location, scale)
    assert_close(moved, torch.where(scale == 0, location, single), 0.0)
    far = single + 1e-3
    assert_close(on_certain(far, location, scale), far, 0.0)
    assert on_certain(single, location, scale + 1.0) is single
