"""``unet_local``: a U-Net and an untied head, trained on what a regression leaves."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scisparse.grids import Grid
from scisparse.losses import Distribution
from scisparse.models.unet_local import UNetLocal, check_plane
from scisparse.postprocess.emos import LocalRegression, SharedFit, fit_emos_local
from scisparse.postprocess.options import Options
from scisparse.postprocess.progress import track
from scisparse.postprocess.samples import Forecast
from scisparse.postprocess.standard import Standard

__all__ = ["fit_unet_local"]


def fit_unet_local(
    shared: SharedFit,
    forecast: Forecast,
    standard: Standard,
    grid: Grid,
    options: Options,
    *,
    progress: bool,
) -> UNetLocal:
    """Train on out-of-fold predictions of ``emos_local``: what is learned is what new cases lack.

    The last times are held out; training stops when their score no longer falls, and the best
    network is kept, the untrained one included.
    """
    check_plane(grid)
    start = fit_emos_local(shared, grid)
    cases = _Cases(shared, forecast, standard, start)
    features = cases.anomalies.shape[-1]
    network = UNetLocal(start.model, grid, features, width=options.width, depth=options.depth)
    held_out = _last(forecast.time, options.validation)
    _train(network, cases, held_out, shared.distribution, options, progress)
    return network


def _last(time: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """True at the cases of the last `share` of the times: at least one, and not all."""
    times = np.unique(time)
    count = min(max(1, round(share * len(times))), len(times) - 1)
    last: NDArray[np.bool_] = time >= times[-count]
    return last


class _Cases:
    """Training cases as float32 tensors, in standardised units.

    Predictors are at all points, the rest at the observed ones. What is missing is 0 and does not
    count; the network has no say in it.
    """

    def __init__(
        self, shared: SharedFit, forecast: Forecast, standard: Standard, start: LocalRegression
    ) -> None:
        folds, standard_of_points = shared.folds, shared.standard
        divisor = standard_of_points.divisor()
        location = folds.mean + folds.std * start.location - standard_of_points.mean
        location = location / divisor
        rho, sigma = float(start.model.rho), start.model.sigma.numpy()[shared.points]
        shape = np.sqrt(np.maximum(1 - rho + rho * folds.spread, 0.0))
        self.anomalies = _tensor(np.nan_to_num(standard.predictors(forecast)).transpose(0, 2, 1))
        self.spread = _tensor(standard.spread(forecast))
        target, scale = (
            standard_of_points.target(shared.observed),
            sigma * shape * folds.std / divisor,
        )
        present = np.isfinite(location) & np.isfinite(target)
        self.location, self.target, self.scale = (
            _tensor(np.where(present, a, fill))
            for a, fill in ((location, 0.0), (target, 0.0), (scale, 1.0))
        )
        self.mean, self.std = _tensor(standard_of_points.mean), _tensor(divisor)
        self.weights = _tensor(present * (shared.weights / shared.weights.mean()))
        self.points = torch.from_numpy(shared.points)

    def loss(self, network: UNetLocal, chosen: Tensor, distribution: Distribution) -> Tensor:
        """Area-weighted mean CRPS of some cases, in units of the target."""
        shift, factor = network.learned(self.anomalies[chosen], self.spread[chosen])
        location = self.location[chosen] + shift[:, self.points]
        scale = self.scale[chosen] * factor[:, self.points]
        score = distribution.crps(
            self.mean + self.std * location,
            self.std * scale,
            self.mean + self.std * self.target[chosen],
        )
        weight = self.weights[chosen]
        return (score * weight).sum() / weight.sum().clamp(min=1e-12)


def _train(
    network: UNetLocal,
    cases: _Cases,
    stop: NDArray[np.bool_],
    distribution: Distribution,
    options: Options,
    progress: bool,
) -> None:
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=options.learning_rate, weight_decay=options.weight_decay
    )
    held_out, rows = (torch.from_numpy(np.flatnonzero(chosen)) for chosen in (stop, ~stop))

    def validate() -> float:
        with torch.no_grad():
            return float(cases.loss(network, held_out, distribution))

    best, best_state, waited = validate(), copy.deepcopy(network.state_dict()), 0
    # In units of the score of the untrained network the optimizer, whose smallest divisor is a
    # number, and the smoothness penalty do not know the units of the target.
    usual = best if best > 0 else 1.0
    for _ in track(range(options.epochs), "training", show=progress):
        order = rows[torch.randperm(len(rows))]
        for batch in torch.split(order, options.batch_size):
            optimizer.zero_grad()
            loss = cases.loss(network, batch, distribution) / usual
            total = loss + options.smoothness * network.head.smoothness()
            total.backward()
            optimizer.step()
        score = validate()
        waited = 0 if score < best else waited + 1
        if score < best:
            best, best_state = score, copy.deepcopy(network.state_dict())
        if waited >= options.patience:
            break
    network.load_state_dict(best_state)


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
