"""Scores: by hand, against other libraries and on real data, for predictions of every form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import scores.probability
import scoringrules
import xarray as xr
from verification_cases import (
    DIMS,
    LAT,
    area,
    average,
    data,
    parametric,
    quantile_prediction,
)

from scisparse.errors import OptionError
from scisparse.verification import evaluate

# --- against formulas and other libraries ---


@pytest.mark.parametrize("estimator", ["fair", "standard"])
def test_ensemble_scores_by_hand(estimator: str) -> None:
    ensemble, observed = data()
    result = evaluate(ensemble, observed, estimator=estimator)
    x, y = ensemble.values, observed.values
    valid, weights = np.isfinite(y), area(observed)
    name = {"fair": "fair", "standard": "nrg"}[estimator]
    crps = scoringrules.crps_ensemble(y, x, estimator=name, backend="numpy")
    error = x.mean(-1) - y
    rmse = np.sqrt(average(error**2, weights, valid))
    spread = np.sqrt(average(x.var(-1, ddof=1) * 6 / 5, weights, valid))
    expected = {
        "crps": average(crps, weights, valid),
        "bias": average(error, weights, valid),
        "rmse": rmse,
        "spread": spread,
        "spread_skill_ratio": spread / rmse,
        "count": valid.sum(),
    }
    for score, value in expected.items():
        assert float(result[score]) == pytest.approx(value, rel=1e-10), score
    ranks = [average((x < y[..., None]).sum(-1) == k, weights, valid) for k in range(6)]
    np.testing.assert_allclose(result["rank_histogram"], ranks, atol=1e-12)


def test_unweighted_and_own_weights() -> None:
    ensemble, observed = data(2)
    error = (ensemble.mean("member") - observed).values
    valid = np.isfinite(error)
    result = evaluate(ensemble, observed, weights=None)
    assert float(result["bias"]) == pytest.approx(error[valid].mean(), rel=1e-12)
    assert result.attrs["weights"] == "equal"
    own = xr.DataArray([1.0, 0.0, 2.0, 0.5], {"lat": LAT}, "lat").isel(lat=slice(None, None, -1))
    result = evaluate(ensemble, observed, weights=own)
    spread = np.broadcast_to(np.array([1.0, 0.0, 2.0, 0.5])[:, None], error.shape)
    expected = np.average(error[valid], weights=spread[valid])
    assert float(result["bias"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dims", [None, "time", ["lat", "lon"], ("lon",), ()])
def test_any_dims_are_averaged(dims: str | list[str] | tuple[str, ...] | None) -> None:
    ensemble, observed = data(3)
    result = evaluate(ensemble, observed, dims=dims)
    over = DIMS if dims is None else (dims,) if isinstance(dims, str) else tuple(dims)
    kept = tuple(dim for dim in DIMS if dim not in over)
    assert result["crps"].dims == kept
    assert result["rank_histogram"].sizes == {**result["crps"].sizes, "rank": 6}
    error = (ensemble.mean("member") - observed).weighted(area(observed))
    bias = error.mean(over) if over else ensemble.mean("member") - observed
    xr.testing.assert_allclose(result["bias"].drop_attrs(), bias.transpose(*kept).drop_attrs())
    assert int(result["count"].sum()) == int(observed.notnull().sum())
    for dim in kept:
        assert result[dim].equals(observed[dim])


def test_normal_prediction_equals_scoringrules() -> None:
    prediction, (_, observed) = parametric(), data(4)
    result = evaluate(prediction, observed, dims=())
    mean, std = prediction["t2m_mean"].values, prediction["t2m_std"].values
    expected = scoringrules.crps_normal(observed.values, mean, std)
    np.testing.assert_allclose(result["crps"], expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(result["spread"], np.where(observed.isnull(), np.nan, std))


@pytest.mark.parametrize("name", ["truncated_normal", "censored_normal"])
def test_bounded_prediction_by_moments_and_by_parameters(name: str) -> None:
    import torch

    from scisparse.losses import distribution

    family = distribution(name, 0.5)
    parameters, (_, observed) = parametric(5), data(5)
    observed = observed.clip(min=0.5)
    location, scale = parameters["t2m_mean"], parameters["t2m_std"]
    tensors = torch.from_numpy(location.values), torch.from_numpy(scale.values)
    moments = xr.Dataset(
        {
            "t2m_mean": location.copy(data=family.mean(*tensors).numpy()),
            "t2m_std": scale.copy(data=family.std(*tensors).numpy()),
        },
        attrs={"distribution": name, "distribution_lower": 0.5},
    )
    both = moments.assign(t2m_location=location, t2m_scale=scale)
    theirs = {
        "truncated_normal": scoringrules.crps_tnormal,
        "censored_normal": scoringrules.crps_cnormal,
    }[name]
    expected = theirs(observed.values, location.values, scale.values, 0.5)
    for prediction in (moments, both):
        result = evaluate(prediction, observed, dims=())
        np.testing.assert_allclose(result["crps"], expected, rtol=1e-8, atol=1e-9)
    point = both["t2m_mean"] - observed
    xr.testing.assert_allclose(result["bias"].drop_attrs(), point.drop_attrs())


def test_pit_histogram_equals_scores() -> None:
    prediction, (_, observed) = parametric(6), data(6)
    observed = observed.clip(min=2.0)
    prediction = prediction.assign_attrs(distribution="censored_normal", distribution_lower=2.0)
    names = {"t2m_mean": "t2m_location", "t2m_std": "t2m_scale"}
    result = evaluate(prediction.rename(names), observed, bins=7)
    standard = (observed - prediction["t2m_mean"]) / prediction["t2m_std"]
    upto = standard.copy(data=scipy.stats.norm.cdf(standard.values))
    below = upto.where(observed > 2.0, 0.0).where(observed.notnull())
    theirs = scores.probability.PitFcstAtObs(upto, fcst_at_obs_left=below, weights=area(observed))
    np.testing.assert_allclose(result["pit_histogram"], theirs.hist_values(bins=7), atol=1e-12)
    assert float(result["pit_histogram"].sum()) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(result["pit"], (np.arange(7) + 0.5) / 7)


def test_quantiles_approach_their_distribution() -> None:
    quantiles, prediction = quantile_prediction((np.arange(400) + 0.5) / 400)
    _, observed = data(7)
    result = evaluate(quantiles, observed)
    expected = evaluate(prediction, observed)
    for score, theirs in (("quantile_score", "crps"), ("bias", "bias"), ("rmse", "rmse")):
        assert float(result[score]) == pytest.approx(float(expected[theirs]), rel=2e-4), score
    difference = result["pit_histogram"] - expected["pit_histogram"]
    assert float(np.abs(difference).max()) < 3e-3
    assert "spread" not in result


def test_quantiles_by_hand() -> None:
    levels = np.array([0.2, 0.4, 0.7])
    values = np.array([1.0, 1.0, 4.0])
    prediction = xr.Dataset(
        {"rain_quantile": (("time", "quantile"), np.tile(values, (6, 1)))},
        {"time": range(6), "quantile": levels},
    )
    observed = xr.DataArray([0.0, 1.0, 2.5, 4.0, 9.0, np.nan], {"time": range(6)}, "time", "rain")
    result = evaluate(prediction, observed, dims=(), bins=20)
    error = observed.values[:5, None] - values
    pinball = np.maximum(levels * error, (levels - 1.0) * error)
    share = np.array([0.3, 0.25, 0.45])  # of 0 to 1 that is nearer to this level than to others
    np.testing.assert_allclose(result["quantile_score"][:5], 2.0 * pinball @ share, rtol=1e-13)
    assert not {"crps", "brier_score"} & set(result)
    np.testing.assert_allclose(result["bias"][:5], 2.0 - observed[:5])  # the median is 1 + 3 / 3
    # Known to lie between: 0 and 0.2; 0 and 0.4; 0.55; 0.7 and 1; 0.7 and 1.
    starts, ends = np.arange(20) / 20, np.arange(1, 21) / 20
    for case, (low, high) in enumerate(
        [(0.0, 0.2), (0.0, 0.4), (0.55, 0.55), (0.7, 1.0), (0.7, 1.0)]
    ):
        shares = result["pit_histogram"].values[case]
        inside = shares > 1e-9
        assert ends[inside].max() == pytest.approx(max(high, low + 0.05))
        assert starts[inside].min() == pytest.approx(low)
        assert shares.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(shares[inside], 1.0 / inside.sum())


def test_one_value_is_scored_by_its_absolute_error() -> None:
    ensemble, observed = data(8)
    single = ensemble.isel(member=0, drop=True)
    result = evaluate(single, observed, weights=None)
    assert float(result["crps"]) == pytest.approx(float(np.abs(single - observed).mean()))
    assert not {"spread", "spread_skill_ratio", "rank_histogram"} & set(result)
    same = evaluate(ensemble[..., :1], observed, weights=None, estimator="standard")
    assert float(same["crps"]) == pytest.approx(float(result["crps"]))


def test_a_calibrated_prediction_looks_calibrated() -> None:
    draws = np.random.default_rng(9).normal(size=(4000, 11))
    ensemble = xr.DataArray(draws[:, 1:], dims=("time", "number"), name="x")
    observed = xr.DataArray(draws[:, 0], dims="time", name="x")
    result = evaluate(ensemble, observed)
    assert float(result["spread_skill_ratio"]) == pytest.approx(1.0, abs=0.03)
    counts = result["rank_histogram"].values * 4000
    assert scipy.stats.chisquare(counts).pvalue > 0.01
    normal = xr.Dataset({"x_mean": xr.zeros_like(observed), "x_std": xr.ones_like(observed)})
    skill = evaluate(normal, observed, reference=ensemble)
    # The fair score of ten members equals on average that of the distribution they are drawn from.
    assert abs(float(skill["crps_skill"])) < 0.02
    worse = evaluate(normal.assign(x_std=3.0 * normal["x_std"]), observed, reference=normal)
    assert float(worse["crps_skill"]) < -0.1


def equidistant(normal: xr.Dataset, members: int) -> xr.DataArray:
    """Quantiles of a normal prediction as members, as the post-processor writes them."""
    levels = (np.arange(members) + 0.5) / members
    standard = xr.DataArray(scipy.stats.norm.ppf(levels), dims="member")
    values = normal["t2m_mean"] + normal["t2m_std"] * standard
    return values.rename("t2m").assign_attrs(ensemble_members="equidistant quantiles", units="K")


@pytest.mark.parametrize("members", [2, 5, 20])
def test_quantiles_as_members_do_not_beat_the_perfect_forecast(members: int) -> None:
    """The fair CRPS takes members for draws; equidistant ones would look better than the truth."""
    perfect = parametric(30, times=200)
    noise = np.random.default_rng(30).normal(size=perfect["t2m_mean"].shape)
    observed = (perfect["t2m_mean"] + perfect["t2m_std"] * noise).assign_attrs(units="K")
    corrected = equidistant(perfect, members)
    draws = corrected.drop_attrs().assign_attrs(units="K")
    assert float(evaluate(draws, observed, reference=perfect)["crps_skill"]) > 0.0
    result = evaluate(corrected, observed, reference=perfect)
    standard = evaluate(corrected, observed, estimator="standard")
    assert -0.5 / members < float(result["crps_skill"]) < 0.0
    assert float(result["crps"]) == float(standard["crps"])
    with pytest.raises(OptionError, match="those of the prediction are equidistant quantiles"):
        evaluate(corrected, observed, estimator="fair")


def test_each_ensemble_has_the_estimator_of_its_members() -> None:
    raw, observed = data(31)
    corrected = equidistant(parametric(31), 5)
    result = evaluate(corrected, observed, reference=raw)
    for name, ensemble, estimator in (("", corrected, "standard"), ("_reference", raw, "fair")):
        alone = evaluate(ensemble, observed, estimator=estimator)
        assert float(result[f"crps{name}"]) == float(alone["crps"])
        assert result[f"crps{name}"].attrs["estimator"] == estimator
    one = corrected.isel(member=[2])  # the fair CRPS needs two
    expected = evaluate(one.isel(member=0), observed)["crps"]
    assert float(evaluate(one, observed)["crps"]) == pytest.approx(float(expected))
    assert "estimator" not in evaluate(parametric(), observed)["crps"].attrs


def test_corrected_members_are_known_to_be_quantiles() -> None:
    from scisparse.datasets import simulated_ensemble
    from scisparse.postprocess import PostProcessor

    simulated = simulated_ensemble((4, 8), times=40, members=4)
    past, simulated = (simulated.isel(time=slice(*ends)) for ends in ((0, 20), (20, None)))
    model = PostProcessor("emos", target="temperature").fit(past, past["observed"])
    members = model.predict(simulated, members=True)
    result = evaluate(members, simulated["observed"], reference=simulated, target="temperature")
    assert result["crps"].attrs["estimator"] == "standard"
    assert result["crps_reference"].attrs["estimator"] == "fair"


# --- reference and missing values ---


def test_reference_and_prediction_count_the_same_cases() -> None:
    ensemble, observed = data(10)
    reference = parametric(10)
    reference["t2m_std"][2, 1, :] = np.nan
    ensemble[4, :, 2, 3] = np.nan
    result = evaluate(ensemble, observed, reference=reference)
    valid = observed.notnull() & ensemble.notnull().all("member") & reference["t2m_std"].notnull()
    assert int(result["count"]) == int(valid.sum()) < int(observed.notnull().sum())
    kept = observed.where(valid)
    for name, prediction in (("", ensemble), ("_reference", reference)):
        alone = evaluate(prediction, kept)
        for score in ("crps", "bias", "rmse"):
            expected = float(alone[score])
            assert float(result[score + name]) == pytest.approx(expected, rel=1e-12), score
    for score in ("crps", "rmse"):
        ratio = float(result[score]) / float(result[f"{score}_reference"])
        assert float(result[f"{score}_skill"]) == pytest.approx(1.0 - ratio, rel=1e-12)


def test_reference_may_be_constant_in_time_and_have_other_members() -> None:
    ensemble, observed = data(11)
    climatology = ensemble.isel(time=0, drop=True).rename(member="realization")[..., :3]
    result = evaluate(ensemble, observed, reference=climatology)
    repeated = climatology.expand_dims(time=observed["time"])
    expected = evaluate(repeated, observed)
    assert float(result["crps_reference"]) == pytest.approx(float(expected["crps"]), rel=1e-12)


def test_points_without_cases_are_nan_and_perfect_references_give_no_skill() -> None:
    ensemble, observed = data(12)
    observed[:, 0, 0] = np.nan
    result = evaluate(ensemble, observed, reference=observed, dims="time")
    assert int(result["count"][0, 0]) == 0
    for score in result:
        if score != "count":
            assert result[score][0, 0].isnull().all(), score
    assert result["crps_skill"].isnull().all()
    assert result["crps_reference"][1:].max() == 0.0


def test_input_is_left_alone() -> None:
    ensemble, observed = data(13)
    before = ensemble.copy(deep=True), observed.copy(deep=True)
    evaluate(ensemble, observed, reference=ensemble)
    assert ensemble.identical(before[0])
    assert observed.identical(before[1])


# --- what is written ---


def test_everything_has_long_name_and_units() -> None:
    ensemble, observed = data(17)
    for prediction in (ensemble, parametric()):
        result = evaluate(prediction, observed, reference=ensemble)
        for name, score in result.items():
            assert score.attrs["long_name"]
            in_kelvin = str(name).split("_")[0] in ("crps", "bias", "rmse", "spread")
            in_kelvin &= not str(name).endswith(("skill", "ratio"))
            assert score.attrs["units"] == ("K" if in_kelvin else "1"), name
    assert result.attrs["title"] == "scores of t2m"
    assert result.attrs["averaged_over"] == "time, lat, lon"


def test_scores_can_be_written(tmp_path: Path) -> None:
    ensemble, observed = data(18)
    result = evaluate(ensemble, observed, reference=parametric(), dims="time")
    result.to_netcdf(tmp_path / "scores.nc")
    with xr.open_dataset(tmp_path / "scores.nc") as read:
        xr.testing.assert_allclose(read, result)


def test_target_is_found_or_asked_for() -> None:
    ensemble, observed = data(19)
    forecast = xr.Dataset({"t2m": ensemble, "wind": ensemble + 1.0})
    expected = float(evaluate(ensemble, observed)["bias"])
    assert float(evaluate(forecast, observed)["bias"]) == pytest.approx(expected)
    wind = evaluate(forecast, observed.rename("u"), target="wind")
    assert float(wind["bias"]) == pytest.approx(expected + 1.0)
    message = r"2 candidates \('t2m', 'wind'\); name one"
    with pytest.raises(OptionError, match=message):
        evaluate(forecast, observed.rename("u"))
    both = evaluate(parametric(), xr.Dataset({"anything": observed}), reference=forecast)
    assert both.attrs["title"] == "scores of t2m"
    assert "crps_skill" in both


# --- real data ---


def leave_one_out(observed: xr.DataArray) -> xr.DataArray:
    """Every other year's observations as members, ``[time, member, lat, lon]``."""
    years = range(observed.sizes["time"])
    others = [observed.isel(time=[k for k in years if k != year]).values for year in years]
    dims = ("time", "member", "lat", "lon")
    coords = {name: observed[name] for name in ("time", "lat", "lon")}
    return xr.DataArray(np.stack(others), coords, dims, "precipitation", observed.attrs)


def test_reference_scores_of_south_asian_rainfall(data_dir: Path) -> None:
    from scisparse.datasets import load

    assert data_dir.is_dir()
    rain = load("nmme_south_asia")
    forecast, observed = rain["precipitation"], rain["observed"].astype(np.float64)
    climatology = leave_one_out(observed)
    moments = {
        "precipitation_mean": climatology.mean("member", keep_attrs=True),
        "precipitation_std": climatology.std("member", ddof=1, keep_attrs=True),
    }
    raw = evaluate(rain, observed, reference=climatology, target="precipitation")
    normal = evaluate(xr.Dataset(moments), observed, reference=forecast)
    assert int(raw["count"]) == 643 * 30
    assert float(raw["crps"]) == pytest.approx(157.6, abs=0.05)
    assert float(raw["crps_reference"]) == pytest.approx(67.0, abs=0.05)
    assert float(normal["crps"]) == pytest.approx(68.8, abs=0.05)
    assert float(normal["crps_reference"]) == pytest.approx(float(raw["crps"]), rel=1e-12)
    # The bias of each model in each cell, in the other years.
    years = observed.sizes["time"]
    error = (forecast - observed).astype(np.float64).groupby("model").mean("member")
    bias = (error.sum("time") - error) / (years - 1)
    removed = forecast - bias.sel(model=forecast["model"])
    corrected = evaluate(removed.assign_attrs(units="mm"), observed)
    assert float(corrected["crps"]) == pytest.approx(77.5, abs=0.05)


def test_scores_of_a_projected_ensemble(data_dir: Path) -> None:
    from scisparse.datasets import load

    assert data_dir.is_dir()
    weather = load("improver_uk").isel(
        projection_y_coordinate=slice(0, 60), projection_x_coordinate=slice(0, 50)
    )
    result = evaluate(weather["wind_speed"], weather["wind_speed_observed"], dims="time")
    members = weather["wind_speed"].transpose(..., "realization").values.astype(np.float64)
    truth = weather["wind_speed_observed"].values.astype(np.float64)
    expected = scoringrules.crps_ensemble(truth, members, estimator="fair", backend="numpy")
    np.testing.assert_allclose(result["crps"], expected.mean(0), rtol=1e-9)
    assert result["crps"].dims == ("projection_y_coordinate", "projection_x_coordinate")
    assert result["crps"].attrs["units"] == "m s-1"
