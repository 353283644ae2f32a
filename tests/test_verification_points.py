"""Scores at given points of a distribution: quantiles, and probabilities of exceedance."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats
import scoringrules
import xarray as xr
from verification_cases import FloatArray, data, parametric, quantile_prediction

from scisparse.errors import DataError, OptionError
from scisparse.verification import evaluate

LIMITS = [-1.0, 2.5, 4.0]


def drawn_levels(count: int, seed: int) -> FloatArray:
    """Levels at uneven distances, 0.5 between them."""
    levels = np.sort(np.random.default_rng(seed).uniform(0.02, 0.98, count))
    return np.concatenate([levels[levels < 0.45], [0.5], levels[levels > 0.55]])


# --- quantiles ---


@pytest.mark.parametrize("seed", [0, 1])
def test_quantiles_are_scored_by_their_share_of_the_levels(seed: int) -> None:
    levels = drawn_levels(7, seed)
    quantiles, _ = quantile_prediction(levels)
    _, observed = data(seed)
    result = evaluate(quantiles, observed, dims=())["quantile_score"]
    nearest = np.abs(np.linspace(0.0, 1.0, 200_001)[:, None] - levels).argmin(1)
    share = np.bincount(nearest, minlength=levels.size) / nearest.size
    values = quantiles["t2m_quantile"].transpose(..., "quantile").values
    loss = scoringrules.quantile_score(observed.values[..., None], values, levels)
    np.testing.assert_allclose(result, 2.0 * loss @ share, rtol=1e-4)


@pytest.mark.parametrize("levels", [[0.01, 0.5, 0.99], [0.5], [0.1, 0.2, 0.3, 0.5, 0.9]])
def test_few_quantiles_are_never_compared_with_a_crps(levels: list[float]) -> None:
    """A perfect prediction has no skill over itself, whichever of its quantiles are scored."""
    quantiles, perfect = quantile_prediction(np.array(levels))
    _, observed = data(1)
    for prediction, reference in ((quantiles, perfect), (perfect, quantiles)):
        result = evaluate(prediction, observed, reference=reference)
        assert "crps_skill" not in result
        assert ("crps" in result) is (prediction is perfect)
        assert ("crps_reference" in result) is (reference is perfect)
        assert abs(float(result["quantile_score_skill"])) < 1e-12


def test_quantiles_at_middles_have_the_crps_of_members() -> None:
    ensemble, observed = data(2, members=7)
    levels = (np.arange(7) + 0.5) / 7
    values = ensemble.copy(data=np.sort(ensemble.values, -1)).rename(member="quantile")
    quantiles = values.assign_coords(quantile=levels).to_dataset(name="t2m_quantile")
    result = evaluate(quantiles, observed, reference=ensemble)
    standard = evaluate(ensemble, observed, estimator="standard")["crps"]
    for name in ("quantile_score", "quantile_score_reference"):
        assert float(result[name]) == pytest.approx(float(standard), rel=1e-12)
    assert result["quantile_score"].attrs["units"] == "K"


def test_every_form_is_scored_at_the_levels_of_the_other() -> None:
    quantiles, _ = quantile_prediction(drawn_levels(6, 3))
    more, _ = quantile_prediction(np.sort([*quantiles["quantile"].values, 0.005, 0.99]))
    ensemble, observed = data(3)
    single = ensemble.isel(member=0, drop=True)
    for reference in (ensemble, single, parametric(3), more):
        result = evaluate(quantiles, observed, reference=reference)
        assert np.isfinite(result["quantile_score_skill"])
    assert abs(float(result["quantile_score_skill"])) < 1e-12  # the same quantiles among more
    with pytest.raises(DataError, match=r"the reference has quantile levels .* must hold those of"):
        evaluate(more, observed, reference=quantiles)


def test_a_quantile_that_was_selected_is_no_best_guess() -> None:
    quantiles, _ = quantile_prediction(np.array([0.1, 0.5, 0.9]))
    _, observed = data(11)
    expected = evaluate(quantiles.sel(quantile=[0.5]), observed)
    for form in (quantiles, quantiles["t2m_quantile"]):
        assert evaluate(form.sel(quantile=0.5), observed).equals(expected)
        with pytest.raises(DataError, match=r"has quantile levels \[0.9\].* 0.5 among or between"):
            evaluate(form.sel(quantile=0.9), observed)


# --- probabilities of exceedance ---


def test_brier_scores_of_every_form_by_hand() -> None:
    ensemble, observed = data(4)
    normal, single = parametric(4), ensemble.isel(member=0, drop=True)
    limits = xr.DataArray(LIMITS, {"threshold": LIMITS}, "threshold")
    z = (limits - normal["t2m_mean"]) / normal["t2m_std"]
    above = xr.apply_ufunc(scipy.stats.norm.sf, z)
    share = (ensemble > limits).mean("member")
    happened = (observed > limits).where(observed.notnull())
    probability = above.to_dataset(name="t2m_probability")
    fair = (share - happened) ** 2 - share * (1.0 - share) / (ensemble.sizes["member"] - 1)
    cases = (
        (normal, (above - happened) ** 2, None),
        (probability, (above - happened) ** 2, None),
        (single, ((single > limits) - happened) ** 2, None),
        (ensemble, fair, None),
        (ensemble, (share - happened) ** 2, "standard"),
    )
    for prediction, expected, estimator in cases:
        scores = evaluate(
            prediction, observed, thresholds=LIMITS, dims=("time", "lon"), estimator=estimator
        )
        score = scores["brier_score"]
        assert {*score.dims} == {"threshold", "lat"}
        mean = expected.mean(("time", "lon")).transpose(*score.dims)
        np.testing.assert_allclose(score, mean, rtol=1e-12, atol=1e-15)
        assert score.attrs["units"] == "1"
        assert score["threshold"].attrs == {"long_name": "threshold", "units": "K"}
    assert evaluate(ensemble, observed, thresholds=LIMITS)["brier_score"].attrs["estimator"]
    # What is exactly at the threshold does not exceed it.
    same = evaluate(single, single, thresholds=[float(single[0, 0, 0])])
    assert same["brier_score"].item() == 0.0


def test_probabilities_have_a_brier_score_and_nothing_else() -> None:
    _, observed = data(5)
    normal = parametric(5)
    limits = xr.DataArray(LIMITS, {"threshold": LIMITS}, "threshold", attrs={"units": "K"})
    limits["threshold"].attrs["units"] = "K"
    z = (limits - normal["t2m_mean"]) / normal["t2m_std"]
    probability = xr.apply_ufunc(scipy.stats.norm.sf, z).to_dataset(name="t2m_probability")
    probability["threshold"].attrs["units"] = "K"
    result = evaluate(probability, observed, reference=normal)
    alone = {"brier_score", "brier_score_reference", "brier_score_skill"}
    theirs = {"crps_reference", "bias_reference", "rmse_reference"}
    assert {*result.data_vars} == alone | theirs | {"count"}
    np.testing.assert_allclose(result["brier_score_skill"], 0.0, atol=1e-12)
    one = evaluate(probability.sel(threshold=2.5), observed)["brier_score"]
    np.testing.assert_allclose(one, result["brier_score"].sel(threshold=[2.5]), rtol=1e-12)
    array = evaluate(probability["t2m_probability"], observed, thresholds=[4.0])["brier_score"]
    np.testing.assert_allclose(array, result["brier_score"].sel(threshold=[4.0]), rtol=1e-12)


def test_a_true_probability_has_no_worse_score_than_others() -> None:
    rng = np.random.default_rng(6)
    mean = rng.normal(size=4000)
    observed = xr.DataArray(mean + rng.normal(size=4000), dims="time", name="t2m")
    scores = []
    for spread in (0.3, 1.0, 3.0):
        moments = {"t2m_mean": ("time", mean), "t2m_std": ("time", np.full(4000, spread))}
        scores.append(evaluate(xr.Dataset(moments), observed, thresholds=[0.5, 1.5])["brier_score"])
    assert bool((scores[1] < scores[0]).all())
    assert bool((scores[1] < scores[2]).all())


def test_bad_thresholds_and_probabilities_are_named() -> None:
    ensemble, observed = data(7)
    quantiles, _ = quantile_prediction(np.array([0.1, 0.5, 0.9]))
    with pytest.raises(OptionError, match=r"`thresholds` \(=\[4.0, 2.0\]\) must strictly rise"):
        evaluate(ensemble, observed, thresholds=[4, 2])
    with pytest.raises(OptionError, match=r"\(=\[3.0\]\) cannot be scored: the prediction holds"):
        evaluate(quantiles, observed, thresholds=[3.0])
    limit = xr.DataArray([3.0], {"threshold": [3.0]}, "threshold")
    probability = (ensemble > limit).mean("member").to_dataset(name="t2m_probability")
    with pytest.raises(DataError, match=r"thresholds \[3.0\], which must hold those to score, \[2"):
        evaluate(probability, observed, thresholds=[2.0])
    with pytest.raises(DataError, match="has 120 values outside 0 to 1"):
        evaluate(probability + 1.5, observed)
    probability["threshold"].attrs["units"] = "degC"
    with pytest.raises(DataError, match=r"'degC'.*'K'"):
        evaluate(probability, observed)
    with pytest.raises(DataError, match="has a dim 'threshold' without values; assign them"):
        evaluate(probability.drop_vars("threshold"), observed)


def test_corrected_probabilities_are_scored_as_their_distribution() -> None:
    from scisparse.datasets import simulated_ensemble
    from scisparse.postprocess import PostProcessor

    simulated = simulated_ensemble((4, 8), times=40, members=4)
    past, simulated = (simulated.isel(time=slice(*ends)) for ends in ((0, 20), (20, None)))
    model = PostProcessor("emos", target="temperature").fit(past, past["observed"])
    limits = simulated["observed"].quantile([0.3, 0.8]).values
    probability = model.predict(simulated, thresholds=limits)
    result = evaluate(probability, simulated["observed"], reference=model.predict(simulated))
    np.testing.assert_allclose(result["brier_score_skill"], 0.0, atol=1e-5)
    again = evaluate(
        probability,
        simulated["observed"],
        reference=simulated,
        target="temperature",
        thresholds=limits,
    )
    assert again["brier_score_reference"].attrs["estimator"] == "fair"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kinds", [("f4", "f8"), ("f8", "f4"), ("f4", "f4"), ("f2", "f8")])
def test_events_do_not_hang_on_the_precision_of_a_file(seed: int, kinds: tuple[str, str]) -> None:
    """Gauges tell tenths of a millimetre, of which single precision holds none."""
    rng = np.random.default_rng(seed)
    coords = {"threshold": ("threshold", [0.1, 0.3, 0.7])}
    tenths = xr.DataArray(np.round(0.1 * rng.integers(0, 9, (60, 4)), 1), dims=("time", "member"))
    observed = xr.DataArray(np.round(0.1 * rng.integers(0, 9, 60), 1), dims="time", name="pr")
    chances = xr.DataArray(rng.random((60, 3)), coords, ("time", "threshold"))
    forms: dict[str, Any] = {
        "members": tenths.rename("pr"),
        "one value": tenths[:, 0].rename("pr"),
        "probabilities": chances.to_dataset(name="pr_probability"),
        "distribution": xr.Dataset(
            {"pr_mean": tenths.mean("member"), "pr_std": 1.0 + tenths[:, 0]}
        ),
    }
    values, seen = kinds
    for name, prediction in forms.items():
        expected = evaluate(prediction, observed, thresholds=[0.1, 0.3, 0.7])["brier_score"]
        plain = name in ("members", "one value")
        other = prediction.astype(values) if plain else prediction
        for kind in ("f8", "f4"):
            limits = np.array([0.1, 0.3, 0.7], kind)
            found = evaluate(other, observed.astype(seen), thresholds=limits)["brier_score"]
            np.testing.assert_allclose(found, expected, rtol=2e-7)
            np.testing.assert_array_equal(found["threshold"], limits.astype(np.float64))
    single = forms["probabilities"].assign_coords(threshold=limits)
    np.testing.assert_allclose(
        evaluate(single, observed)["brier_score"],
        evaluate(forms["probabilities"], observed)["brier_score"],
        rtol=1e-12,
    )


def test_numbers_of_double_precision_stay_apart() -> None:
    observed = xr.DataArray(280.0 + np.array([1e-9, 0.0, -1e-9]), dims="time", name="t2m")
    chance = xr.DataArray(np.zeros((3, 1), "f4"), {"threshold": [280.0]}, ("time", "threshold"))
    assert evaluate(chance.rename("t2m"), observed)["brier_score"].item() == pytest.approx(1 / 3)


def test_probabilities_in_percent() -> None:
    rng = np.random.default_rng(8)
    observed = xr.DataArray(rng.normal(size=50), dims="time", name="t2m")
    chance = xr.DataArray(
        0.01 * rng.random((50, 2)), {"threshold": [0.5, 1.0]}, ("time", "threshold")
    )
    chance = chance.rename("t2m_probability")
    expected = evaluate(chance.to_dataset(), observed)["brier_score"]
    for units in ("%", "percent"):
        share = (100.0 * chance).assign_attrs(units=units)  # all below 1, in percent too
        np.testing.assert_allclose(evaluate(share, observed)["brier_score"], expected, rtol=1e-12)
        one = evaluate(share[:, 0], observed)["brier_score"]
        np.testing.assert_allclose(one, expected[:1], rtol=1e-12)
        with pytest.raises(DataError, match="values outside 0 to 1"):
            evaluate(200.0 + share, observed)


def test_a_coordinate_that_happens_to_be_called_threshold() -> None:
    ensemble, observed = data(9)
    expected = evaluate(ensemble, observed)
    field = np.random.default_rng(9).normal(size=observed.shape[1:])
    for threshold in ((("lat", "lon"), field), ((), 282.0), ("member", np.arange(5.0))):
        scores = evaluate(ensemble.assign_coords(threshold=threshold), observed)
        assert {*scores.data_vars} == {*expected.data_vars}
        assert float(scores["crps"]) == float(expected["crps"])
    single = ensemble[..., 0].assign_coords(threshold=(("lat", "lon"), field))
    assert float(evaluate(single, observed)["crps"]) > 0


@pytest.mark.parametrize("names", [("", "_probability"), ("_quantile", "_probability")])
def test_several_forms_at_once_are_named(names: tuple[str, str]) -> None:
    """The scores of one of them would be missing without a word."""
    ensemble, observed = data(10)
    quantiles, _ = quantile_prediction(np.array([0.1, 0.5, 0.9]))
    limit = xr.DataArray([3.0], {"threshold": [3.0]}, "threshold")
    forms = {
        "": ensemble,
        "_quantile": quantiles["t2m_quantile"],
        "_probability": (ensemble > limit).mean("member").drop_attrs(),
    }
    both = xr.Dataset({f"t2m{name}": forms[name] for name in names})
    listed = f"'t2m{names[0]}'.* and 't2m{names[1]}'" if names[0] else "'t2m_probability' and 't2m'"
    with pytest.raises(DataError, match=f"the prediction has {listed}, which are scored each"):
        evaluate(both, observed, target="t2m")
    for name in names:
        assert evaluate(both[[f"t2m{name}"]], observed, target="t2m")["count"] > 0


@pytest.mark.parametrize("dims", [("lon", "time", "lat"), ("time", "lat", "lon")])
def test_scores_of_prediction_and_reference_have_one_order_of_dims(dims: tuple[str, ...]) -> None:
    ensemble, observed = data()
    quantiles = quantile_prediction(np.array([0.1, 0.5, 0.9]))[0]
    share = (ensemble > parametric()["t2m_std"]).mean("member")
    probability = xr.Dataset({"t2m_probability": share.expand_dims(threshold=[1.0, 2.0])})
    thresholded: list[Any] = [ensemble, parametric(), probability, ensemble.mean("member")]
    for forms, told in ((thresholded, [1.0, 2.0]), ([quantiles, ensemble, parametric()], None)):
        for form, reference in itertools.product(forms, forms):
            predicted = form.transpose(*dims, ...)
            scores = evaluate(predicted, observed, reference=reference, dims=(), thresholds=told)
            for name, score in scores.items():
                assert score.dims[:3] == dims, name
                pair = scores.get(f"{name}_reference", score)
                assert pair.dims == score.dims, name
