"""The methods against computations of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from postprocess_cases import NOISE, SLOPE, crps_normal, ensemble, fitted, moments, toy

import scisparse.postprocess.local as local
import scisparse.postprocess.neural as neural
from scisparse.arrays import Frame
from scisparse.errors import MemoryLimitError
from scisparse.grids import LatLonGrid
from scisparse.losses import distribution
from scisparse.models.unet_local import UNetLocal
from scisparse.postprocess import Options, PostProcessor
from scisparse.postprocess.emos import SharedFit, fit_emos, fit_emos_local
from scisparse.postprocess.local import _centred, _decompose, _leave_out, _Stencil
from scisparse.postprocess.progress import track
from scisparse.postprocess.standard import Standard
from scisparse.postprocess.validation import blocks

FloatArray = NDArray[np.float64]
NORMAL = distribution("normal")


# emos


@pytest.mark.parametrize("penalty", [0.0, 1.0, 10.0])
def test_shared_coefficients_are_least_squares(penalty: float) -> None:
    """Of all but the first predictor, the squares are added as further rows."""
    forecast, truth, weights = toy(50, 6)
    truth[3, 2] = np.nan
    forecast.mean[7, 0, 4] = np.nan
    standard = Standard.of(forecast, truth)
    shared = SharedFit(forecast, truth, standard, weights, NORMAL)
    everything = np.arange(50)
    found = shared._solve(standard, everything, penalty)
    rows = standard.predictors(forecast).transpose(0, 2, 1).reshape(-1, 3)
    right = standard.target(truth).reshape(-1)
    root = np.sqrt(np.tile(weights, 50))
    present = np.isfinite(rows).all(1) & np.isfinite(right)
    rows, right = rows[present] * root[present, None], right[present] * root[present]
    strength = np.sqrt(penalty * (rows[:, 0] ** 2).sum())
    rows = np.concatenate([rows, strength * np.eye(3)[1:]])
    expected = np.linalg.lstsq(rows, np.concatenate([right, [0.0, 0.0]]), rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_emos_recovers_slope_bias_and_noise() -> None:
    field, observed = ensemble(300, 10)
    train, test = slice(0, 200), slice(200, 300)
    model = fitted("emos", field[train], observed[train])
    predicted = model.predict(field[test])
    # the mean of 10 members is nearly the signal
    expected = 280.0 + SLOPE * (field[test].mean("member") - 283.0)
    assert float(abs(predicted["t2m_mean"] - expected).mean()) < 0.05
    np.testing.assert_allclose(predicted["t2m_std"], NOISE, rtol=0.15)
    corrected = crps_normal(*moments(predicted), observed[test].values)
    raw = crps_normal(
        field[test].mean("member").values, field[test].std("member").values, observed[test].values
    )
    perfect = crps_normal(expected.values, np.full(expected.shape, NOISE), observed[test].values)
    assert corrected < 1.03 * perfect
    assert corrected < 0.1 * raw


def test_without_skill_the_prediction_is_climatology() -> None:
    field, observed = ensemble(80)
    for method in ("emos", "emos_local", "local"):
        kept = []
        for seed in range(5, 10):  # one draw of noise may resemble the forecast
            noise = observed.copy(
                data=np.random.default_rng(seed).normal(280.0, 1.0, observed.shape)
            )
            predicted = fitted(method, field, noise).predict(field)
            kept.append(float(predicted["t2m_mean"].std("time").max()))
            np.testing.assert_allclose(predicted["t2m_std"], 1.0, rtol=0.3)
        assert np.mean(kept) < 0.1


def varying(
    times: int, slopes: FloatArray, seed: int, noise: float = NOISE
) -> tuple[xr.DataArray, xr.DataArray]:
    """Truth that follows the signal with a slope of its own at every point."""
    field, observed = ensemble(times, seed=seed)
    signal = field.mean("member") - 283.0
    rest = noise * np.random.default_rng(seed + 99).normal(size=observed.shape)
    return field, observed.copy(data=280.0 + slopes * signal.values + rest)


def slopes_of(model: PostProcessor, field: xr.DataArray) -> FloatArray:
    """Change of the predicted mean when the forecast is 1 warmer."""
    first, second = (model.predict(f.rename("t2m"))["t2m_mean"][0] for f in (field, field + 1.0))
    return np.asarray(second - first, dtype=np.float64)


def test_emos_local_recovers_slopes_of_their_own() -> None:
    slopes = np.linspace(0.1, 1.2, 24).reshape(4, 6)
    field, observed = varying(300, slopes, 1)
    local = slopes_of(fitted("emos_local", field, observed), field)
    np.testing.assert_allclose(local, slopes, atol=0.08)
    shared = slopes_of(fitted("emos", field, observed), field)
    assert np.abs(shared - slopes).max() > 0.15


def test_emos_local_shrinks_to_emos_where_slopes_do_not_differ() -> None:
    times, slope = 12, 0.6
    field, observed = varying(times, np.full((4, 6), slope), 1, noise=1.0)
    local, shared = (
        slopes_of(fitted(method, field, observed), field) for method in ("emos_local", "emos")
    )
    pairs = (data.values.reshape(times, -1).T for data in (field.mean("member"), observed))
    alone = [np.polyfit(x, y, 1)[0] for x, y in zip(*pairs, strict=True)]
    wrong = np.square(np.reshape(alone, (4, 6)) - slope).mean()
    assert np.square(local - shared).mean() < 0.2 * wrong
    assert np.square(local - slope).mean() < 0.4 * wrong


def test_departures_of_a_point_are_a_ridge_regression() -> None:
    forecast, truth, weights = toy(60, 4)
    standard = Standard.of(forecast, truth)
    shared = SharedFit(forecast, truth, standard, weights, NORMAL)
    from scisparse.postprocess.emos import _LocalFit

    fit = _LocalFit(shared, standard, np.arange(60))
    found = fit.coefficients(2.0)
    q, z = standard.predictors(forecast), standard.target(truth)
    b = shared.coefficients(standard, np.arange(60))
    active = fit.active
    ridge = np.sqrt(2.0 * fit.scale)
    for point in range(4):
        rows = q[:, active, point]
        left = z[:, point] - q[:, :, point] @ b
        rows = np.concatenate([rows, ridge * np.eye(rows.shape[1])])
        right = np.concatenate([left, np.zeros(rows.shape[1])])
        expected = b.copy()
        expected[active] += np.linalg.lstsq(rows, right, rcond=None)[0]
        np.testing.assert_allclose(found[:, point], expected)
    np.testing.assert_array_equal(fit.coefficients(np.inf), np.repeat(b[:, None], 4, 1))


def test_equal_groups_count_as_one() -> None:
    """Two groups that hold the same members are as good as one, and solvable."""
    field, observed = ensemble(40, 3)
    twice = xr.concat([field, field], "member").assign_coords(
        member=np.arange(6), model=("member", list("aaabbb"))
    )
    grouped = fitted("emos", twice, observed, groups="model").predict(twice)
    plain = fitted("emos", field, observed).predict(field)
    for name, values in plain.items():
        np.testing.assert_allclose(grouped[name], values, rtol=1e-5)


@pytest.mark.parametrize("method", ["emos", "emos_local", "local"])
def test_missing_observations_are_not_taken_for_climatology(method: str) -> None:
    field, observed = ensemble(160)
    train, test = slice(0, 80), slice(80, 160)
    holes = np.random.default_rng(1).random(observed[train].shape) < 0.5
    scores = [
        crps_normal(
            *moments(fitted(method, field[train], seen).predict(field[test])),
            observed[test].values,
        )
        for seen in (observed[train], observed[train].where(~holes))
    ]
    assert scores[1] < 1.06 * scores[0]


@pytest.mark.parametrize("method", ["emos", "emos_local", "local"])
def test_a_point_observed_once_is_like_the_others(method: str) -> None:
    field, observed = ensemble(24)
    seen = observed.copy(deep=True)
    seen[1:, 2, 3] = np.nan
    predicted = fitted(method, field, seen).predict(field)
    assert np.isfinite(predicted["t2m_mean"]).all()
    usual = float(predicted["t2m_std"].median())
    assert 0.7 * usual < float(predicted["t2m_std"][0, 2, 3]) < 1.4 * usual
    assert float(abs(predicted["t2m_mean"] - observed)[:, 2, 3].mean()) < 1.0


# local


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(20, 5), (12, 30)])
@pytest.mark.parametrize("most", [30, 7])
def test_predictions_without_a_block_are_those_of_a_fit_without_it(
    shape: tuple[int, int], most: int, missing: float
) -> None:
    """The closed form equals fitting again, with intercept, on the other cases."""
    rng = np.random.default_rng(0)
    reads, targets = rng.normal(size=(2, *shape)), rng.normal(size=(2, shape[0], 3))
    present = rng.random(targets.shape[:2]) >= missing
    parts, ridge = blocks(shape[0], most), 1.7
    centred = _centred(targets, present)
    vectors, values = _decompose(_centred(reads, present))
    signal = _leave_out(vectors, values / (values + ridge), centred, present, parts)
    for point in range(2):
        x = reads[point] - reads[point, present[point]].mean(0)
        for part in parts:
            there = part[present[point, part]]
            rest = np.setdiff1d(np.flatnonzero(present[point]), part)
            y = centred[point, rest]
            design = np.concatenate(
                [
                    np.column_stack([np.ones(len(rest)), x[rest]]),
                    np.column_stack([np.zeros(shape[1]), np.sqrt(ridge) * np.eye(shape[1])]),
                ]
            )
            right = np.concatenate([y, np.zeros((shape[1], 3))])
            solved = np.linalg.lstsq(design, right, rcond=None)[0]
            predicted = solved[0] + x[there] @ solved[1:]
            np.testing.assert_allclose(signal[point, there], predicted - y.mean(0), atol=1e-9)


def test_smoothing_is_a_mean_over_observed_surroundings() -> None:
    grid = LatLonGrid.regular(6, 8, poles=False)
    valid = np.ones(grid.size, dtype=np.bool_)
    valid[5:9] = False
    stencil = _Stencil(grid, 1.0, valid)
    z = np.random.default_rng(0).normal(size=(3, int(valid.sum())))
    z[0, 4] = z[1, :] = np.nan
    smoothed = stencil.smooth(z)
    for case in range(3):
        for point in range(z.shape[1]):
            edges = slice(stencil.row_ptr[point], stencil.row_ptr[point + 1])
            read, taper = z[case, stencil.col[edges]], stencil.taper[edges]
            there = np.isfinite(read)
            mean = np.average(read[there], weights=taper[there]) if there.any() else np.nan
            np.testing.assert_allclose(smoothed[case, point], mean, rtol=1e-12)


def test_smoothed_targets_find_a_broad_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    field, observed = ensemble(60, 3)
    rng = np.random.default_rng(4)
    broad = rng.normal(size=(60, 1, 1))
    field = field.copy(data=283.0 + broad[:, None] + 0.3 * rng.normal(size=field.shape))
    observed = observed.copy(data=280.0 + broad + 2.0 * rng.normal(size=observed.shape))
    train, test = slice(0, 30), slice(30, 60)
    errors = []
    for smoothed in (2, 0):
        monkeypatch.setattr(local, "_SMOOTHED", smoothed)
        found = fitted("local", field[train], observed[train]).predict(field[test])["t2m_mean"]
        errors.append(float(((found.values - 280.0 - broad[test]) ** 2).mean()))
    assert errors[0] < errors[1]


def test_local_reads_the_surroundings() -> None:
    axes = {"lat": np.arange(4) * 5.0, "lon": np.arange(6) * 5.0}
    field, observed = ensemble(150, axes=axes)
    # what happens at a point was forecast one column to the west
    shifted = field.mean("member").shift(lon=1).fillna(283.0) - 283.0
    noise = np.random.default_rng(5).normal(size=observed.shape)
    truth = observed.copy(data=280.0 + 0.8 * shifted.values + NOISE * noise)
    train, test = slice(0, 100), slice(100, 150)
    scores = {
        method: crps_normal(
            *moments(fitted(method, field[train], truth[train]).predict(field[test])),
            truth[test].values,
        )
        for method in ("emos", "emos_local", "local")
    }
    assert scores["local"] < 0.75 * min(scores["emos"], scores["emos_local"])


# unet_local


def nonlinear(times: int = 60) -> tuple[xr.DataArray, xr.DataArray]:
    """Truth that a regression on the point itself cannot follow."""
    field, observed = ensemble(times, seed=7)
    signal = field.mean("member") - 283.0
    truth = observed + 1.5 * np.abs(signal) + 0.7 * signal.roll(lon=1, roll_coords=False)
    return field, truth.rename("analysis").assign_attrs(observed.attrs)


class Recorder:
    """Network, training cases and held-out cases of one training, and its epochs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.epochs = 0
        train = neural._train

        def recorded(network: UNetLocal, data: Any, stop: NDArray[np.bool_], *rest: Any) -> None:
            self.network, self.data, self.stop = network, data, stop
            self.before = self.score()
            train(network, data, stop, *rest)

        def counted(steps: Any, *rest: Any, **options: Any) -> Any:
            for step in track(steps, *rest, **options):
                self.epochs += 1
                yield step

        monkeypatch.setattr(neural, "_train", recorded)
        monkeypatch.setattr(neural, "track", counted)

    def score(self, *, held_out: bool = True) -> float:
        chosen = torch.from_numpy(np.flatnonzero(self.stop == held_out))
        with torch.no_grad():
            return float(self.data.loss(self.network, chosen, NORMAL))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ["normal", "truncated_normal", "censored_normal"])
def test_unet_local_learns_what_a_regression_leaves(
    monkeypatch: pytest.MonkeyPatch, name: str, missing: bool
) -> None:
    """Missing forecasts and observations must not spoil its gradients."""
    field, truth = nonlinear()
    if missing:
        rng = np.random.default_rng(0)
        field = field.where(rng.random(field.shape) > 0.3)
        field[4, :, 2, 3] = np.nan
        truth = truth.where(rng.random(truth.shape) > 0.3)
    recorder = Recorder(monkeypatch)
    options = Options(width=4, depth=1, epochs=6, learning_rate=0.01)
    fitted("unet_local", field, truth, distribution=name, options=options)
    assert all(torch.isfinite(p).all() for p in recorder.network.parameters())
    assert recorder.score() < 0.97 * recorder.before
    assert recorder.network.unet.head.weight.detach().abs().max() > 0


def test_early_stopping_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    field, truth = nonlinear(24)
    recorder = Recorder(monkeypatch)
    scores = []
    loss = neural._Cases.loss

    def listened(self: Any, network: UNetLocal, chosen: torch.Tensor, family: Any) -> torch.Tensor:
        value = loss(self, network, chosen, family)
        if not torch.is_grad_enabled():
            scores.append(float(value))
        return value

    monkeypatch.setattr(neural._Cases, "loss", listened)
    options = Options(width=2, depth=1, epochs=40, patience=3, learning_rate=0.1)
    fitted("unet_local", field, truth, options=options)
    assert len(scores) == recorder.epochs + 2  # before training; and the recorder's own
    best = int(np.argmin(scores))
    assert recorder.score() == scores[best]
    assert recorder.epochs == 40 or recorder.epochs == best - 1 + 3


def test_harmful_training_is_undone() -> None:
    field, observed = ensemble(20)
    wild = Options(width=2, depth=1, epochs=3, learning_rate=100.0)
    predicted = fitted("unet_local", field, observed, options=wild).predict(field)
    expected = fitted("emos_local", field, observed).predict(field)
    xr.testing.assert_equal(predicted, expected)


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(10, 0.2, 2), (10, 0.01, 1), (10, 0.99, 9), (3, 0.5, 2), (2, 0.9, 1)],
)
def test_the_last_times_are_held_out(count: int, share: float, expected: int) -> None:
    time = np.repeat(np.arange(count) * 5, 3)
    held_out = neural._last(time, share)
    assert held_out.sum() == 3 * expected
    assert not held_out[: -3 * expected].any()


def test_the_regression_inside_is_that_of_emos_local() -> None:
    field, truth = nonlinear(24)
    inside = fitted("unet_local", field, truth)._fitted
    alone = fitted("emos_local", field, truth)._fitted
    assert inside is not None
    assert alone is not None
    for name, tensor in alone.network.state_dict().items():
        assert torch.equal(inside.network.state_dict()[f"regression.{name}"], tensor)


def test_emos_has_one_set_of_coefficients() -> None:
    forecast, truth, weights = toy(30, 4)
    shared = SharedFit(forecast, truth, Standard.of(forecast, truth), weights, NORMAL)
    grid = Frame.of(ensemble(3, axes={"lat": [0.0, 9.0], "lon": [0.0, 9.0]})[1]).grid
    assert fit_emos(shared, grid).layer.weight.shape == (1, 3, 1)
    assert fit_emos_local(shared, grid).model.layer.weight.shape == (4, 3, 1)


def test_observations_that_are_all_zero_are_predicted() -> None:
    field, observed = ensemble(12)
    with pytest.warns(UserWarning, match="as kelvin and degrees Celsius do"):
        model = fitted("local", field, xr.zeros_like(observed))
    predicted = model.predict(field)
    np.testing.assert_allclose(predicted["t2m_mean"], 0.0, atol=1e-12)


def test_local_says_how_much_memory_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    field, observed = ensemble(12)
    monkeypatch.setattr(local, "available_bytes", lambda device: 1000)
    with pytest.raises(MemoryLimitError, match=r"'local' needs .* KiB for 12 cases at 24 points"):
        fitted("local", field, observed)
