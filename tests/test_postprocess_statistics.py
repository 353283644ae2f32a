"""Standardised anomalies and cross-validation against computations of their own."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from postprocess_cases import cases, ensemble, fitted, toy

from scisparse.arrays import Frame
from scisparse.losses import distribution
from scisparse.postprocess.emos import SharedFit, fit_emos_local
from scisparse.postprocess.samples import read_forecast
from scisparse.postprocess.standard import Standard
from scisparse.postprocess.validation import Folds, blocks, calibrate, score_by_case

FloatArray = NDArray[np.float64]
NORMAL = distribution("normal")


# standardised anomalies


def test_with_many_cases_the_statistics_are_those_of_each_point() -> None:
    rng = np.random.default_rng(0)
    scale = np.array([0.5, 1.0, 3.0, 10.0])
    mean = 5.0 + scale * rng.normal(size=(4000, 4))
    truth = -3.0 * scale + 2.0 * scale * rng.normal(size=mean.shape)
    truth[:2000, 1] = np.nan
    standard = Standard.of(cases(mean, scale**2), truth)
    np.testing.assert_allclose(standard.mean, np.nanmean(truth, 0), rtol=0.01)
    np.testing.assert_allclose(standard.std, np.nanstd(truth, 0, ddof=1), rtol=0.01)
    mean[:2000, 1] = np.nan  # the forecast counts where it can be compared
    np.testing.assert_allclose(standard.forecast_mean[0], np.nanmean(mean, 0))
    spread = np.sqrt(np.nanvar(mean, 0) + scale**2)
    np.testing.assert_allclose(standard.forecast_std[0], spread, rtol=1e-4)
    z = standard.target(truth)
    np.testing.assert_allclose(z, (truth - standard.mean) / standard.std)


def test_with_few_cases_shrunken_statistics_are_closer_to_the_truth() -> None:
    rng = np.random.default_rng(1)
    bias, spread = rng.normal(0.0, 0.3, 400), np.exp(rng.normal(0.0, 0.3, 400))
    signal = 0.5 * rng.normal(size=(6, 400))
    truth = bias + spread * rng.normal(size=signal.shape)
    standard = Standard.of(cases(signal), truth)
    for found, raw, exact in (
        (standard.mean, truth.mean(0), bias),
        (np.log(standard.std), np.log(truth.std(0, ddof=1)), np.log(spread)),
    ):
        assert np.mean((found - exact) ** 2) < 0.8 * np.mean((raw - exact) ** 2)


def test_the_weight_of_the_observed_mean_is_the_most_precise() -> None:
    rng = np.random.default_rng(2)
    signal = rng.normal(size=(5, 5000))
    bias = rng.normal(0.0, 0.4, 5000)
    truth = bias + 0.3 * signal + 0.5 * rng.normal(size=signal.shape)
    found = Standard.of(cases(signal), truth).mean
    errors = (truth - signal).mean(0)
    fixed = [
        signal.mean(0) + errors.mean() + k * (errors - errors.mean()) for k in np.linspace(0, 1, 41)
    ]
    best = min(np.mean((mean - bias) ** 2) for mean in fixed)
    assert np.mean((found - bias) ** 2) < 1.05 * best


def test_an_observation_that_never_varies_is_its_own_mean() -> None:
    forecast, truth, _ = toy(30, 6)
    truth[:, 2] = 7.25
    standard = Standard.of(forecast, truth)
    assert (standard.mean[2], standard.std[2]) == (7.25, 0.0)
    assert (standard.std[[0, 1, 3, 4, 5]] > 0.5).all()
    assert standard.target(truth)[:, 2].tolist() == [0.0] * 30


def test_few_equal_values_are_chance() -> None:
    forecast, truth, _ = toy(40, 6)
    truth[29:, 1], truth[6:, 2] = np.nan, np.nan
    truth[:29, 1], truth[:6, 2] = 7.25, 7.25
    standard = Standard.of(forecast, truth)
    usual = standard.std[[0, 3, 4, 5]]
    assert (standard.std > 0.9 * usual.min()).all()
    assert (standard.std < 1.1 * usual.max()).all()


@pytest.mark.parametrize("others", [1e-3, 1.0, 1e12])
def test_a_point_that_varies_little_is_not_certain(others: float) -> None:
    """One that varied by 1e-8 of the others got a spread of 0, or not, as the field was."""
    forecast, truth, _ = toy(400, 3)
    truth[:, 1:] *= others
    truth[:, 0] *= 1e-8
    standard = Standard.of(forecast, truth)
    location, scale = standard.in_units(standard.target(truth), np.ones_like(truth))
    np.testing.assert_allclose(location[:, 0], truth[:, 0], rtol=1e-6)
    np.testing.assert_allclose(scale[:, 0], truth[:, 0].std(), rtol=0.05)
    part = standard.at(np.array([0])).in_units(np.zeros((1, 1)), np.ones((1, 1)))
    assert part[1] == scale[0, 0]


@pytest.mark.parametrize("count", [8, 40])
@pytest.mark.parametrize("value", [0.0, 271.35])
def test_points_that_never_vary_leave_the_spread_of_the_others_alone(
    value: float, count: int
) -> None:
    """Eight equal values of 271.35 have a variance of 1e-27, by rounding of their mean."""
    truth = np.random.default_rng(3).normal(280.0, 2.0, (count, 200))
    alone = Standard.of(cases(np.zeros((count, 160))), truth[:, 40:])
    truth[:, :40] = value
    standard = Standard.of(cases(np.zeros((count, 200))), truth)
    np.testing.assert_allclose(standard.std[40:], alone.std, rtol=1e-12)
    if count == 40:
        np.testing.assert_array_equal(standard.mean[:40], value)


def test_one_observation_says_nothing_about_the_spread() -> None:
    rng = np.random.default_rng(6)
    forecast = cases(5.0 + 0.1 * rng.normal(size=(20, 60)))
    truth = 1.0 + forecast.mean[:, 0] + rng.normal(size=(20, 60))
    truth[0, 4] = 9.0
    truth[1:, 4] = np.nan
    truth[:, 5] = np.nan
    standard = Standard.of(forecast, truth)
    usual = np.delete(standard.std, [4, 5])
    assert usual.min() <= standard.std[4] <= usual.max()
    assert np.isnan(standard.std[5])
    assert np.isnan(standard.mean[5])
    assert 5.5 < standard.mean[4] < 7.0  # drawn to the forecast's plus the usual bias


def test_predictors_that_never_varied_say_nothing() -> None:
    forecast, truth, _ = toy(10, 3)
    forecast.mean[:, 0, 1] = 5.1
    forecast.variance[:, 0, 1] = 0.0
    forecast.extra[:, 0] = 123.456789
    standard = Standard.of(forecast, truth)
    later = toy(4, 3, seed=1)[0]
    anomalies = standard.predictors(later)
    assert (anomalies[:, 1] == 0).all()
    assert (anomalies[:, 0, 1] == 0).all()
    assert (np.abs(anomalies[:, 2]) > 0).all()
    assert (standard.spread(later)[:, 1] == 1).all()
    later.extra[2, 0, 0] = np.nan
    assert np.isnan(standard.predictors(later)[2, 1, 0])  # missing is not nothing


def test_spread_is_relative_to_the_usual_one() -> None:
    forecast, truth, _ = toy(30, 4)
    standard = Standard.of(forecast, truth)
    np.testing.assert_allclose(standard.spread(forecast).mean(0), 1.0)
    forecast.variance[3, 0, 1] = np.nan  # one member
    assert standard.spread(forecast)[3, 1] == 1.0


def test_statistics_at_points_and_back_from_arrays() -> None:
    forecast, truth, _ = toy(30, 5)
    standard = Standard.of(forecast, truth)
    some = np.array([3, 0])
    np.testing.assert_array_equal(
        standard.at(some).predictors(forecast.at(some)), standard.predictors(forecast)[..., some]
    )
    again = Standard.from_arrays(standard.arrays())
    np.testing.assert_array_equal(again.target(truth), standard.target(truth))


# cross-validation


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=50),
    most=st.integers(1, 40),
    gaps=st.integers(0, 3),
)
def test_blocks_share_out_the_cases_and_keep_times_together(
    counts: list[int], most: int, gaps: int
) -> None:
    time = np.repeat(np.arange(len(counts)) * (1 + gaps), counts)
    found = blocks(time, most)
    np.testing.assert_array_equal(np.concatenate(found), np.arange(len(time)))
    assert len(found) == min(most, len(counts))
    for first, second in itertools.pairwise(found):
        assert time[first[-1]] < time[second[0]]
    sizes = [len(np.unique(time[block])) for block in found]
    assert max(sizes) - min(sizes) <= 1
    if max(counts) == 1:
        for block, plain in zip(found, blocks(len(counts), most), strict=True):
            np.testing.assert_array_equal(block, plain)


def test_folds_never_see_their_own_block() -> None:
    forecast, truth, weights = toy(40, 5)  # 30 blocks: of one and of two cases
    folds = Folds.of(forecast, truth, weights)
    block = folds.blocks[3]
    assert len(block) == 2
    changed, other = truth.copy(), forecast.take(np.arange(40))
    changed[block] += 100.0
    other.mean[block] -= 50.0
    other.variance[block] *= 9.0
    again = Folds.of(other, changed, weights)
    for name in ("mean", "std"):
        np.testing.assert_array_equal(getattr(again, name)[block], getattr(folds, name)[block])
        rest = np.delete(np.arange(40), block)
        assert (getattr(again, name)[rest] != getattr(folds, name)[rest]).all()
    np.testing.assert_allclose(again.spread[block], 9.0 * folds.spread[block])
    np.testing.assert_allclose(again.target[block], folds.target[block] + 100.0 / folds.std[block])


@pytest.mark.parametrize("local", [False, True])
def test_out_of_fold_predictions_never_see_their_own_block(local: bool) -> None:
    forecast, truth, weights = toy(24, 4)
    first = SharedFit(forecast, truth, Standard.of(forecast, truth), weights, NORMAL)
    block = first.folds.blocks[5]
    changed = truth.copy()
    changed[block] += 1e-3  # too little to change what is chosen by the score of all blocks
    second = SharedFit(forecast, changed, Standard.of(forecast, changed), weights, NORMAL)
    assert (first.penalty, first.shrink) == (second.penalty, second.shrink)
    if local:
        grid = Frame.of(ensemble(3, axes={"lat": [0.0, 9.0], "lon": [0.0, 9.0]})[1]).grid
        locations = [fit_emos_local(shared, grid).location for shared in (first, second)]
    else:
        locations = [first.location, second.location]
    np.testing.assert_array_equal(locations[0][block], locations[1][block])
    assert (np.delete(locations[0], block, 0) != np.delete(locations[1], block, 0)).any()


def test_leads_of_one_time_are_left_out_together() -> None:
    """Else a model would be chosen by how well it knows the other leads of the same day."""
    field, observed = ensemble(12)
    leads = field.expand_dims(lead_time=[1, 2, 3], axis=1)
    frame = Frame.of(leads)
    forecast = read_forecast(leads, "t2m", frame, None)
    np.testing.assert_array_equal(forecast.time, np.repeat(np.arange(12), 3))
    truth = np.repeat(observed.values.reshape(12, -1), 3, 0)
    folds = Folds.of(forecast, truth, frame.grid.areas)
    assert [block.tolist() for block in folds.blocks] == [
        [3 * k, 3 * k + 1, 3 * k + 2] for k in range(12)
    ]
    truth[3:6] += 40.0
    again = Folds.of(forecast, truth, frame.grid.areas)
    np.testing.assert_array_equal(again.mean[3:6], folds.mean[3:6])


def test_scores_are_the_weighted_crps_of_each_case() -> None:
    scoringrules = pytest.importorskip("scoringrules")
    forecast, truth, weights = toy(12, 5)
    truth[2, 3] = truth[5, 1] = np.nan
    folds = Folds.of(forecast, truth, weights)
    rng = np.random.default_rng(0)
    location, scale = rng.normal(size=truth.shape), rng.uniform(0.3, 2.0, truth.shape)
    crps = scoringrules.crps_normal(truth, folds.mean + folds.std * location, folds.std * scale)
    present = np.isfinite(truth)
    expected = np.nansum(crps * weights, 1) / (present * weights).sum(1)
    np.testing.assert_allclose(score_by_case(folds, NORMAL, location, scale), expected)
    assert folds.score(NORMAL, location, scale) == pytest.approx(expected.mean())
    square = np.where(present, (folds.target - location) ** 2, 0.0) * weights
    assert folds.mean_error(location) == pytest.approx(
        np.sqrt(square.sum() / (present * weights).sum())
    )


@pytest.mark.parametrize("told", [True, False])
def test_spread_follows_the_ensemble_only_where_that_helps(told: bool) -> None:
    rng = np.random.default_rng(3)
    mean = rng.normal(size=(60, 40))
    variance = rng.gamma(1.0, 1.0, mean.shape)
    error = rng.normal(size=mean.shape) * np.sqrt(variance if told else 1.0)
    folds = Folds.of(cases(mean, variance), mean + error, np.ones(40))
    location = (mean - folds.mean) / folds.std
    shift, gain, sigma, rho = calibrate(folds, NORMAL, location)
    assert (shift, gain) == (0.0, 1.0)
    assert rho == (0.9 if told else 0.0)
    typical = np.sqrt((error**2).mean()) / folds.std.mean()
    assert sigma == pytest.approx(typical, rel=0.1)


@pytest.mark.parametrize("name", ["normal", "censored_normal"])
@pytest.mark.parametrize("method", ["emos", "emos_local", "local"])
def test_members_that_all_agree_do_not_make_the_prediction_sure(method: str, name: str) -> None:
    """Spread tells the error here, but never that it is 0."""
    rng = np.random.default_rng(4)
    field, observed = ensemble(40, 8)
    spread = rng.gamma(0.5, 2.0, observed.shape)
    signal = 20.0 + 4 * rng.normal(size=observed.shape)
    noise = rng.normal(size=(*observed.shape, 8)) * spread[..., None]
    field = field.copy(data=np.moveaxis(signal[..., None] + noise, -1, 1))
    error = rng.normal(size=observed.shape) * spread
    observed = observed.copy(data=signal + error).clip(min=0.0)
    agreed = field.copy(data=np.broadcast_to(field.mean("member").values[:, None], field.shape))
    predicted = fitted(method, field, observed, distribution=name).predict(agreed)
    inside = predicted["t2m_scale" if name == "censored_normal" else "t2m_std"]
    assert float(inside.min()) > 0.05 * float(observed.std())


@pytest.mark.parametrize("turned", [False, True])
def test_a_forecast_is_read_in_little_more_memory_than_its_values_need(turned: bool) -> None:
    """In double precision once, whichever way its latitudes run; it was eight times as much."""
    field, _ = ensemble(64, 50, axes={"lat": np.linspace(-60, 60, 25), "lon": np.arange(30) * 12.0})
    field = field.astype(np.float32).isel(lat=slice(None, None, -1 if turned else 1))
    frame = Frame.of(field)
    expected = field.astype(np.float64).sortby("lat")
    tracemalloc.start()
    read = read_forecast(field, "t2m", frame, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.0 * field.nbytes
    for found, wanted in (
        (read.mean, expected.mean("member")),
        (read.variance, expected.var("member", ddof=1)),
    ):
        np.testing.assert_allclose(found[:, 0], wanted.values.reshape(64, -1), rtol=1e-9)
