"""The post-processor: fit on past forecasts and observations, predict corrected distributions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

import scisparse.arrays as arrays
from scisparse.errors import CheckpointError, DataError, OptionError
from scisparse.grids import Grid, grid_from_dict
from scisparse.losses import Distribution, distribution
from scisparse.postprocess.checkpoint import read_checkpoint, write_checkpoint
from scisparse.postprocess.methods import METHODS, Network, Options, Training
from scisparse.postprocess.output import Predicted
from scisparse.postprocess.samples import (
    Forecast,
    align,
    as_field,
    check_same_units,
    read_forecast,
    read_observed,
)
from scisparse.postprocess.standard import Standard

__all__ = ["PostProcessor"]

FloatArray = NDArray[np.float64]
_FEWEST_CASES = 3
_BATCH = 64


class PostProcessor:
    """Correct an ensemble forecast at every point of its grid, from past forecasts and observations.

    Parameters
    ----------
    method
        ``"emos"``: one set of regression coefficients (Gneiting et al. 2005). ``"emos_local"``: own coefficients at every
        point, shrunk to the shared ones. ``"local"``: an untied stencil, each point reading its surroundings with its own
        weights. ``"unet_local"``: a U-Net whose output is added through an untied head that starts as the identity
        (Groenquist et al. 2021).
    target
        Name of the variable to correct, in the forecast; the observation may have another name.
    distribution
        ``"normal"``, or for what cannot be negative ``"truncated_normal"`` or ``"censored_normal"`` at 0.
    groups
        Coordinate along the members whose values tell groups apart, such as the models of a multi-model ensemble; each group
        is corrected on its own.
    options
        Of the training.
    seed
        Of everything random; the same seed gives the same bits.
    progress
        Whether to show a progress bar.

    Raises
    ------
    OptionError
        `method` or `distribution` is unknown.

    References
    ----------
    Groenquist, P. et al. (2021). Deep learning for post-processing ensemble weather forecasts.
    https://doi.org/10.1098/rsta.2020.0092

    Examples
    --------
    >>> from scisparse.datasets import simulated_ensemble
    >>> data = simulated_ensemble(nlat=8, nlon=16, times=40, members=5)
    >>> model = PostProcessor("emos", target="temperature")
    >>> model.fit(data.isel(time=slice(0, 30)), data["observed"])
    PostProcessor('emos', target='temperature', fitted on 30 cases, LatLonGrid(8 x 16, ...))
    >>> corrected = model.predict(data.isel(time=slice(30, None)))
    >>> sorted(corrected.data_vars)
    ['temperature_mean', 'temperature_std']
    """

    def __init__(
        self,
        method: str = "unet_local",
        *,
        target: str,
        distribution: str = "normal",
        groups: str | None = None,
        options: Options | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        if method not in METHODS:
            raise OptionError(
                f"`method` (={method!r}) must be one of {', '.join(map(repr, METHODS))}"
            )
        self.method, self.target, self.groups, self.seed = method, target, groups, seed
        self.distribution: Distribution = _distribution(distribution)
        self.options = options if options is not None else Options()
        self.progress = progress
        self._fitted: _Fitted | None = None

    def fit(self, forecast: xr.Dataset | xr.DataArray, observed: xr.Dataset | xr.DataArray) -> Self:
        """Learn the correction from the times that forecast and observation share.

        Parameters
        ----------
        forecast
            Variable `target` with dims time and grid, and members if it is an ensemble, in any order; other variables of a
            Dataset on the same grid are predictors. Further dims, such as lead time, are more cases.
        observed
            The truth on the same grid, NaN where missing.

        Returns
        -------
        PostProcessor
            Itself.

        Raises
        ------
        DataError, GridError
            Grids, units, calendars or dims do not fit, values are infinite, no times are common or fewer than 3.
        """
        forecast = _without(forecast, observed, self.target)
        units = check_same_units(forecast, observed, self.target)
        forecast, observed = align(forecast, observed)
        frame = arrays.Frame.of(as_field(forecast, self.target, "the forecast"))
        seen = as_field(observed, self.target, "the observation", only=True)
        frame_seen = arrays.Frame.on(seen, frame.grid, "the observation")
        cases = read_forecast(forecast, self.target, frame, self.groups)
        truth = read_observed(seen, self.target, frame_seen, cases.leading)
        usable = (np.isfinite(truth) & np.isfinite(cases.mean).all(1)).any(1)
        if usable.sum() < _FEWEST_CASES:
            raise DataError(
                f"{int(usable.sum())} cases have both a forecast and an observation of {self.target!r}; at least "
                f"{_FEWEST_CASES} are needed: train on more times"
            )
        keep = np.flatnonzero(usable)
        cases, truth = cases.take(keep), truth[keep]
        standard = Standard.of(cases, truth)
        weights = np.where(np.isfinite(truth).any(0), frame.grid.areas, 0.0)
        training = Training(
            cases,
            truth,
            standard,
            frame.grid,
            weights,
            self.distribution,
            self.options,
            self.progress,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = METHODS[self.method].fit(training)
        self._fitted = _Fitted(network.eval(), standard, frame.grid, units, cases.names, len(keep))
        return self

    def predict(
        self,
        forecast: xr.Dataset | xr.DataArray,
        *,
        members: bool = False,
        quantiles: Sequence[float] | None = None,
    ) -> xr.Dataset:
        """Correct a forecast.

        Parameters
        ----------
        forecast
            As in :meth:`fit`; its dims may come in another order, latitude may run the other way, longitude may start elsewhere.
        members
            Return as many corrected members as the forecast has, with its rank order (ensemble copula coupling).
        quantiles
            Return these quantiles.

        Returns
        -------
        Dataset
            ``<target>_mean`` and ``<target>_std``; or ``<target>`` with members; or ``<target>_quantile``. Dims, coordinates and
            attributes as in the forecast. NaN where the forecast is missing, or nothing was observed in training.

        Raises
        ------
        DataError
            Not fitted, or grid, units, variables or groups differ from those of the training; both are named.
        OptionError
            `members` and `quantiles` are both asked for.
        """
        fitted = self._require_fit()
        if members and quantiles is not None:
            raise OptionError("`members` and `quantiles` are both given; ask for one of them")
        field = as_field(forecast, self.target, "the forecast")
        arrays.check_units("the forecast", field.attrs.get("units"), fitted.units)
        frame = arrays.Frame.on(field, fitted.grid, "the forecast")
        cases = read_forecast(
            _only(forecast, self.target, fitted.names), self.target, frame, self.groups
        )
        if cases.names != fitted.names:
            raise DataError(
                f"the forecast has predictors {list(cases.names)} but the model was trained on {list(fitted.names)}; "
                "give the same variables and groups of members"
            )
        location, scale = fitted.apply(cases)
        predicted = Predicted(location, scale, self.distribution, self.target, frame, forecast)
        if members:
            result = predicted.members()
        elif quantiles is not None:
            result = predicted.quantiles(quantiles)
        else:
            result = predicted.moments()
        action = f"corrected by scisparse {_version()} (PostProcessor, method {self.method})"
        return arrays.add_history(result, action, forecast.attrs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to one file (safetensors with JSON), whole or not at all.

        Raises
        ------
        DataError
            Not fitted.
        CheckpointError
            The file cannot be written.
        """
        fitted = self._require_fit()
        tensors = {f"network.{k}": v for k, v in fitted.network.state_dict().items()}
        tensors |= {
            f"standard.{k}": torch.from_numpy(v) for k, v in fitted.standard.arrays().items()
        }
        spec = {
            "method": self.method,
            "target": self.target,
            "distribution": self.distribution.name,
            "groups": self.groups,
            "seed": self.seed,
            "options": asdict(self.options),
            "grid": fitted.grid.to_dict(),
            "units": fitted.units,
            "names": list(fitted.names),
            "cases": fitted.cases,
            "versions": {"scisparse": _version(), "torch": str(torch.__version__)},
        }
        write_checkpoint(path, tensors, spec)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            The file does not exist, is cut short, or is something else.
        """
        tensors, spec = read_checkpoint(path)
        try:
            model = cls(
                spec["method"],
                target=spec["target"],
                distribution=spec["distribution"],
                groups=spec["groups"],
                options=Options(**spec["options"]),
                seed=spec["seed"],
            )
            grid = grid_from_dict(spec["grid"])
            parts: dict[str, dict[str, Any]] = {"network": {}, "standard": {}}
            for name, tensor in tensors.items():
                part, _, key = name.partition(".")
                parts[part][key] = tensor
            standard = Standard.from_arrays({k: v.numpy() for k, v in parts["standard"].items()})
            network = METHODS[model.method].restore(
                grid, len(spec["names"]), model.options, parts["network"]
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{os.fspath(path)}: its content does not fit together ({error}); save the model again"
            ) from error
        model._fitted = _Fitted(
            network.eval(), standard, grid, spec["units"], tuple(spec["names"]), spec["cases"]
        )
        return model

    def _require_fit(self) -> _Fitted:
        if self._fitted is None:
            raise DataError("the post-processor is not fitted; call fit(forecast, observed) first")
        return self._fitted

    def __repr__(self) -> str:
        state = "not fitted"
        if self._fitted is not None:
            state = f"fitted on {self._fitted.cases} cases, {self._fitted.grid!r}"
        return f"PostProcessor({self.method!r}, target={self.target!r}, {state})"


class _Fitted:
    """What training leaves behind."""

    def __init__(
        self,
        network: Network,
        standard: Standard,
        grid: Grid,
        units: str | None,
        names: tuple[str, ...],
        cases: int,
    ) -> None:
        self.network, self.standard, self.grid = network, standard, grid
        self.units, self.names, self.cases = units, names, cases

    def apply(self, forecast: Forecast) -> tuple[FloatArray, FloatArray]:
        """Location and scale ``[S, P]`` in units of the target."""
        anomalies = self.standard.predictors(forecast)
        spread = self.standard.spread(forecast)
        missing = ~np.isfinite(anomalies).all(1)
        # A neighbour without a value tells nothing: its anomaly is 0. The point itself stays missing.
        anomalies = np.nan_to_num(anomalies, nan=0.0).transpose(0, 2, 1)
        parts = []
        with torch.no_grad():
            for start in range(0, len(anomalies), _BATCH):
                batch = slice(start, start + _BATCH)
                inputs = [
                    torch.from_numpy(np.ascontiguousarray(a[batch]))
                    for a in (anomalies, np.nan_to_num(spread, nan=1.0))
                ]
                parts.append([t.double().numpy() for t in self.network(*inputs)])
        location, scale = (np.concatenate([p[k] for p in parts]) for k in (0, 1))
        location = self.standard.mean + self.standard.std * location
        scale = self.standard.std * scale
        return np.where(missing, np.nan, location), np.where(missing, np.nan, scale)


def _distribution(name: str) -> Distribution:
    return distribution(name)


def _without(
    forecast: xr.Dataset | xr.DataArray, observed: xr.Dataset | xr.DataArray, target: str
) -> xr.Dataset | xr.DataArray:
    """Forecast without the observation, which must not be a predictor of itself."""
    if isinstance(forecast, xr.DataArray):
        return forecast
    names = [observed.name] if isinstance(observed, xr.DataArray) else list(observed.data_vars)
    return forecast.drop_vars([n for n in names if n in forecast and n != target])


def _only(
    forecast: xr.Dataset | xr.DataArray, target: str, names: Sequence[str]
) -> xr.Dataset | xr.DataArray:
    """Variables that the model was trained on; others do no harm."""
    if isinstance(forecast, xr.DataArray):
        return forecast
    return forecast[[name for name in forecast.data_vars if name == target or name in names]]


def _version() -> str:
    from importlib.metadata import version

    return version("scisparse")
