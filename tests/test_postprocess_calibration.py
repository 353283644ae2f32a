"""Corrected distributions are calibrated where points, seasons and bounds differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from postprocess_cases import (
    FIRST_DAY,
    METHODS,
    NOISE,
    crps_normal,
    ensemble,
    fitted,
    moments,
    scores_its_training,
)

from scisparse.postprocess import PostProcessor, local
from scisparse.verification import evaluate

RNG_SEED = 11


def on_days(field: xr.DataArray, values: Any) -> xr.DataArray:
    """`field` with as many days as `values` has."""
    day = FIRST_DAY + np.arange(len(values)) * np.timedelta64(1, "D")
    return field.isel(time=0, drop=True).expand_dims(time=day).copy(data=values)


def rain(family: str, days: int = 400) -> tuple[xr.DataArray, xr.DataArray]:
    """Members and truth from one distribution of each day, cut at 0 in the way of the family."""
    rng = np.random.default_rng(RNG_SEED)
    field, observed = ensemble(1, 15)
    location = rng.normal(-0.6, 0.8, (days, 1, *observed.shape[1:]))
    draws = location + rng.normal(size=(days, 16, *observed.shape[1:]))
    if family == "truncated_normal":
        mean = np.broadcast_to(location, draws.shape)
        while (below := draws < 0).any():
            draws[below] = rng.normal(mean[below])
    draws = draws.clip(min=0.0)
    return on_days(field, draws[:, 1:]), on_days(observed, draws[:, 0])


@pytest.mark.parametrize("method", METHODS)
def test_points_observed_in_one_season_have_no_bias(method: str) -> None:
    field, observed = ensemble(120)
    season = 10.0 * np.sin(2 * np.pi * np.arange(120) / 60)[:, None, None]
    noise = NOISE * np.random.default_rng(RNG_SEED).normal(size=observed.shape)
    field = field + season[:, None]
    observed = observed.copy(data=field.mean("member").values - 3.0 + noise)
    seen = observed.copy(deep=True)
    rarely = np.zeros(seen.shape, bool)
    rarely[:, :, ::3] = season < 0
    seen.values[rarely] = np.nan
    train, test = slice(0, 60), slice(60, 120)
    predicted = fitted(method, field[train], seen[train]).predict(field[test])
    errors = (predicted["t2m_mean"] - observed[test]).values
    warm = np.broadcast_to(season[test] >= 0, errors.shape)
    assert abs(errors[..., ::3][warm[..., ::3]].mean()) < 0.2
    others = np.delete(errors, [0, 3], -1)
    assert np.sqrt((others**2).mean()) < 1.3 * NOISE


def test_what_is_held_in_memory_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points beside gaps read neighbours whose anomalies are of other cases than theirs."""
    field, observed = ensemble(20)
    seen = observed.copy(deep=True)
    seen.values[:8, :, 3:] = np.nan
    whole = fitted("local", field, seen).predict(field)
    monkeypatch.setattr(local, "_CHUNK", 20 * 10)  # some points in place of all
    xr.testing.assert_allclose(fitted("local", field, seen).predict(field), whole, rtol=1e-6)


@pytest.mark.parametrize("method", ["emos", "emos_local", "local"])
def test_the_first_rain_of_a_dry_point_leaves_the_others_alone(method: str) -> None:
    field, observed = (each.clip(min=0.0) for each in rain("censored_normal", 60))
    field[..., 0, 0] = observed[..., 0, 0] = 0.0
    spread = []
    for event in (0.0, 3.0):
        observed[7, 0, 0] = event
        model = PostProcessor(method, target="t2m", distribution="censored_normal", progress=False)
        predicted = model.fit(field[:40], observed[:40]).predict(field[40:])
        spread.append(float(predicted["t2m_std"][:, 1:].mean()))
    assert spread[1] == pytest.approx(spread[0], rel=0.1)


# Dry for ever is at the bound, of the truncated normal too, which says so.
@pytest.mark.filterwarnings("ignore:.*exactly 0, where 'truncated_normal':UserWarning")
@pytest.mark.parametrize("family", ["censored_normal", "truncated_normal", "normal"])
@pytest.mark.parametrize("method", METHODS)
def test_a_point_that_never_varied_keeps_its_value_for_sure(method: str, family: str) -> None:
    field, observed = (each.clip(min=0.0) for each in rain("censored_normal", 40))
    observed[:, 0, 0], observed[:, 2, 3] = 0.0, 0.1
    model = fitted(method, field, observed, distribution=family)
    probability = model.predict(field, thresholds=[0.0, 0.1])["t2m_probability"].values
    assert not probability[:, :, 0, 0].any()
    np.testing.assert_array_equal(probability[:, :, 2, 3].T, [[1.0, 0.0]] * 40)
    mean, std = moments(model.predict(field))
    np.testing.assert_array_equal(mean[:, [0, 2], [0, 3]], np.array([[0.0, 0.1]] * 40, np.float32))
    assert not std[:, [0, 2], [0, 3]].any()
    assert (np.delete(std.reshape(40, -1), [0, 15], 1) > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_some_dry_days_do_not_mean_that_it_never_rains(method: str) -> None:
    field, observed = (each.clip(min=0.0) for each in rain("censored_normal", 40))
    observed[:, 0, 0] = np.where(np.arange(40) < 6, 0.0, np.nan)
    model = fitted(method, field, observed, distribution="censored_normal")
    chance = model.predict(field, thresholds=[0.0])["t2m_probability"].squeeze()
    usual = float(chance.mean())
    assert 0.3 * usual < float(chance[:, 0, 0].mean()) < 2.0 * usual
    assert float(model.predict(field)["t2m_std"][:, 0, 0].min()) > 0.0


@scores_its_training
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_point_that_never_varied_is_scored_as_sure_in_any_precision(dtype: type) -> None:
    field, observed = ensemble(60)
    observed[:, 1] = 271.35
    model = fitted("emos", field, observed.astype(dtype))
    predicted, limits = model.predict(field), [271.35, 280.0]
    for scores in (
        evaluate(predicted, observed.astype(dtype), thresholds=limits, dims=["time", "lon"]),
        evaluate(model.predict(field, thresholds=limits), observed.astype(dtype), dims="time"),
    ):
        assert not scores["brier_score"].isel(lat=1).any()
    shares = evaluate(predicted, observed.astype(dtype), dims=["time", "lon"])["pit_histogram"]
    np.testing.assert_allclose(shares.isel(lat=1), 0.1, atol=1e-9)


@pytest.mark.parametrize("method", ["emos_local", "local", "unet_local"])
def test_each_point_has_the_spread_of_its_own_errors(method: str) -> None:
    field, observed = ensemble(400)
    rng = np.random.default_rng(RNG_SEED)
    signal = rng.normal(size=observed.shape)
    share = np.where(np.arange(6) < 3, 0.95, 0.2)  # of the variance that can be known
    truth = np.sqrt(share) * signal + np.sqrt(1 - share) * rng.normal(size=observed.shape)
    members = signal[:, None] + 0.1 * rng.normal(size=field.shape)
    field, observed = field.copy(data=members), observed.copy(data=truth)
    train, test = slice(0, 250), slice(250, 400)
    predicted = fitted(method, field[train], observed[train]).predict(field[test])
    errors = predicted["t2m_mean"] - observed[test]
    for half in (slice(0, 3), slice(3, 6)):
        spread = np.sqrt((predicted["t2m_std"][..., half] ** 2).mean())
        skill = np.sqrt((errors[..., half] ** 2).mean())
        assert 0.9 < float(spread / skill) < 1.1


def test_few_cases_leave_one_spread_for_all() -> None:
    field, observed = ensemble(15)
    predicted = fitted("emos_local", field, observed).predict(field)
    model = PostProcessor("emos_local", target="t2m").fit(field, observed)
    assert np.ptp(model._require_fit().network.state_dict()["sigma"].numpy()) == 0.0
    assert (predicted["t2m_std"] > 0).all()


@pytest.mark.parametrize("method", ["emos", "emos_local", "local"])
@pytest.mark.parametrize("family", ["censored_normal", "truncated_normal"])
def test_bounds_bring_no_bias(family: str, method: str) -> None:
    field, observed = rain(family)
    train, test = slice(0, 250), slice(250, 400)
    model = fitted(method, field[train], observed[train], distribution=family)
    predicted = model.predict(field[test])
    typical = float(observed.mean())
    assert abs(float((predicted["t2m_mean"] - observed[test]).mean())) < 0.06 * typical
    rainy = float(model.predict(field[test], thresholds=[1e-6])["t2m_probability"].mean())
    assert rainy == pytest.approx(float((observed[test] > 1e-6).mean()), abs=0.04)


def test_many_values_at_the_bound_are_no_truncated_normal() -> None:
    field, observed = rain("censored_normal", 40)
    with pytest.warns(UserWarning, match=r"% of the observation .*use.*'censored_normal'") as told:
        fitted("emos", field, observed, distribution="truncated_normal")
    assert len(told) == 1
    fitted("emos", field, observed, distribution="censored_normal")


def test_local_reads_the_target_alone_and_says_so() -> None:
    field, observed = ensemble()
    other = field.where(field["lat"] > 0).assign_attrs(units="1")
    data = field.to_dataset().assign(humidity=other)
    alone = fitted("local", field, observed).predict(field)
    with pytest.warns(
        UserWarning, match="reads the target alone and leaves humidity; 'emos_local'"
    ):
        model = fitted("local", data, observed)
    xr.testing.assert_equal(model.predict(data)["t2m_mean"], alone["t2m_mean"])


@pytest.mark.parametrize("method", ["emos", "emos_local", "unet_local"])
def test_a_predictor_that_is_missing_at_a_point_leaves_the_point(method: str) -> None:
    field, observed = ensemble()
    height = xr.zeros_like(field.isel(time=0, member=0, drop=True)) + 100.0
    height[1:3, 2:5] = np.nan  # the sea
    data = field.to_dataset().assign(height=height.assign_attrs(units="m"))
    predicted = fitted(method, data, observed).predict(data)
    assert predicted["t2m_mean"].notnull().all()


@pytest.mark.parametrize("method", ["emos", "emos_local"])
def test_a_predictor_that_never_varies_changes_nothing(method: str) -> None:
    """It halved the shrinkage of coefficients towards those of the field."""
    rng = np.random.default_rng(RNG_SEED)
    field, observed = ensemble(12)
    observed = observed + rng.normal(size=observed.shape)
    height = xr.zeros_like(field.isel(time=0, member=0, drop=True)) + 100.0
    data = field.to_dataset().assign(height=height.assign_attrs(units="m"))
    expected, found = (moments(fitted(method, x, observed).predict(x)) for x in (field, data))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_predictors_are_used() -> None:
    field, observed = ensemble(60)
    helpful = observed.copy(data=np.random.default_rng(9).normal(size=observed.shape))
    truth = observed + 2.0 * helpful
    plain, data = fitted("emos", field, truth), field.to_dataset().assign(help=helpful)
    model = fitted("emos", data, truth)
    scores = [
        crps_normal(*moments(p), truth.values) for p in (plain.predict(field), model.predict(data))
    ]
    assert scores[1] < 0.4 * scores[0]
