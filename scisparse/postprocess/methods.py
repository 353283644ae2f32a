"""The methods of the post-processor by name: how each is fitted, and rebuilt from a saved model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scisparse.grids import Grid
from scisparse.losses import Distribution
from scisparse.models.regression import EnsembleRegression
from scisparse.models.unet_local import UNetLocal
from scisparse.postprocess.emos import SharedFit, fit_emos, fit_emos_local
from scisparse.postprocess.local import fit_local
from scisparse.postprocess.neural import fit_unet_local
from scisparse.postprocess.options import Options
from scisparse.postprocess.samples import Forecast
from scisparse.postprocess.standard import Standard

__all__ = ["METHODS", "Method", "Network", "Training"]


class Network(Protocol):
    """Maps anomalies ``[B, P, F]`` and spread ``[B, P]`` to location and scale ``[B, P]``.

    All in standardised units, the spread relative to the usual one.
    """

    def __call__(self, anomalies: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Predict."""
        ...

    def eval(self) -> Network:
        """Leave training."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Name all tensors."""
        ...


@dataclass(frozen=True)
class Training:
    """All that a method is trained on.

    Attributes
    ----------
    forecast, observed
        Cases, and the truth ``[S, P]``.
    standard
        Statistics of all cases.
    grid
        Canonical grid of the P points.
    weights
        Area of each point that was observed, else 0, ``[P]``.
    distribution
        Family to fit.
    options
        Options of training by gradient descent.
    progress
        Whether to show a progress bar.
    """

    forecast: Forecast
    observed: NDArray[np.float64]
    standard: Standard
    grid: Grid
    weights: NDArray[np.float64]
    distribution: Distribution
    options: Options
    progress: bool

    def shared(self) -> SharedFit:
        """Coefficients shared by all points, the first rung of every method."""
        return SharedFit(
            self.forecast, self.observed, self.standard, self.weights, self.distribution
        )


@dataclass(frozen=True)
class Method:
    """How a method is fitted, and rebuilt from its saved tensors.

    Attributes
    ----------
    fit, restore
        Give a network.
    target_alone
        Whether the method reads forecasts of the target alone, and no other predictors.
    """

    fit: Callable[[Training], Network]
    restore: Callable[[Grid, int, Options, Mapping[str, Tensor]], Network]
    target_alone: bool = False

    def reads(self, cases: Forecast) -> Forecast:
        """What the method reads of a forecast; warns of what it leaves."""
        groups = cases.mean.shape[1]
        if not self.target_alone or not cases.names[groups:]:
            return cases
        warnings.warn(
            f"this method reads the target alone and leaves {', '.join(cases.names[groups:])}; "
            "'emos_local' and 'unet_local' read other predictors too",
            UserWarning,
            stacklevel=3,
        )
        return replace(cases, extra=cases.extra[:, :0], names=cases.names[:groups])


def _restore_regression(
    grid: Grid,
    features: int,
    options: Options,
    tensors: Mapping[str, Tensor],
    tie: str | None = None,
) -> EnsembleRegression:
    model = EnsembleRegression(grid, tensors["row_ptr"], tensors["col"], features, tie=tie)
    model.load_state_dict(tensors)
    return model


def _restore_unet(
    grid: Grid, features: int, options: Options, tensors: Mapping[str, Tensor]
) -> UNetLocal:
    prefix = "regression."
    start = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    regression = _restore_regression(grid, features, options, start)
    model = UNetLocal(regression, grid, features, width=options.width, depth=options.depth)
    model.load_state_dict(tensors)
    return model


METHODS: dict[str, Method] = {
    "emos": Method(
        lambda t: fit_emos(t.shared(), t.grid), functools.partial(_restore_regression, tie="all")
    ),
    "emos_local": Method(lambda t: fit_emos_local(t.shared(), t.grid).model, _restore_regression),
    "local": Method(
        lambda t: fit_local(t.forecast, t.observed, t.standard, t.grid, t.weights, t.distribution),
        _restore_regression,
        target_alone=True,
    ),
    "unet_local": Method(
        lambda t: fit_unet_local(
            t.shared(), t.forecast, t.standard, t.grid, t.options, progress=t.progress
        ),
        _restore_unet,
    ),
}
