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
from scisparse.coordinates import numbers_of
from scisparse.errors import CheckpointError, DataError, OptionError
from scisparse.grids import grid_from_dict
from scisparse.grids.same import has_twins, labels_of
from scisparse.losses import distribution as distribution_of
from scisparse.names import check_name, choice
from scisparse.postprocess.bounds import check_bound
from scisparse.postprocess.checkpoint import check_spec, read_checkpoint, write_checkpoint
from scisparse.postprocess.fitted import Fitted
from scisparse.postprocess.methods import METHODS, Training
from scisparse.postprocess.options import Options
from scisparse.postprocess.output import Predicted
from scisparse.postprocess.samples import (
    as_field,
    cell_areas,
    compare_scales,
    predictor_units,
    read_forecast,
    read_observed,
    refuse_truth,
    same_units,
)
from scisparse.postprocess.seen import SeenTimes
from scisparse.postprocess.standard import Standard
from scisparse.postprocess.times import align, calendar_of, usable

__all__ = ["PostProcessor"]

FloatArray = NDArray[np.float64]
_Object = xr.Dataset | xr.DataArray


class PostProcessor:
    """Correct an ensemble forecast at every point, from past forecasts and observations.

    Parameters
    ----------
    method
        ``"emos"``: one set of regression coefficients (Gneiting et al. 2005). ``"emos_local"``: own
        coefficients at every point, shrunk to the shared ones. ``"local"``: an untied stencil, each
        point reading its surroundings with its own weights. ``"unet_local"``: a U-Net whose output
        is added through an untied head that starts as the identity (Groenquist et al. 2021).
    target
        Name of the variable to correct, in the forecast; the observation may have another name.
    distribution
        ``"normal"``, or for what cannot be negative ``"truncated_normal"`` or
        ``"censored_normal"`` at 0.
    groups
        Coordinate along the members whose values tell groups apart, such as the models of a
        multi-model ensemble; each group is corrected on its own.
    options
        Options of training by gradient descent, a `scisparse.postprocess.Options`; ``None``: its
        defaults. Only ``"unet_local"`` is trained so.
    seed
        Random seed; the same one gives the same bits.
    progress
        Whether to show a progress bar.

    Raises
    ------
    OptionError
        `method` or `distribution` is unknown, or another argument is of another kind.

    References
    ----------
    Groenquist, P. et al. (2021). Deep learning for post-processing ensemble weather forecasts.
    https://doi.org/10.1098/rsta.2020.0092

    Examples
    --------
    >>> from scisparse.datasets import simulated_ensemble
    >>> data = simulated_ensemble((8, 16), times=40, members=5)
    >>> model = PostProcessor("emos", target="temperature")
    >>> model.fit(data.isel(time=slice(0, 30)), data["observed"])
    PostProcessor('emos', target='temperature', fitted on 30 cases of 5 members, LatLonGrid(...))
    >>> corrected = model.predict(data.isel(time=slice(30, None)))
    >>> sorted(corrected.data_vars)
    ['temperature_mean', 'temperature_std']
    """

    def __init__(
        self,
        method: str = "emos_local",
        *,
        target: str,
        distribution: str = "normal",
        groups: str | None = None,
        options: Options | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        if method not in [*METHODS]:  # what has no hash, such as a list, is no name either
            raise OptionError(choice("method", method, METHODS))
        check_name("target", target)
        if not _is_seed(seed):
            raise OptionError(f"`seed` (={seed!r}) must be a whole number from 0 to 2**63 - 1")
        if not isinstance(options, Options | None):
            raise OptionError(
                f"`options` (={options!r}) must be an Options, such as Options(epochs=50)"
            )
        self.method, self.target, self.groups, self.seed = method, target, groups, int(seed)
        self.distribution = distribution_of(distribution)
        self.options = Options() if options is None else options
        self.progress = progress
        self._fitted: Fitted | None = None

    def fit(self, forecast: _Object, observed: _Object) -> Self:
        """Learn the correction from the times that forecast and observation share.

        Parameters
        ----------
        forecast
            Variable `target` with dims time and grid, and members if it is an ensemble, in any
            order; other variables on the same grid are predictors (``"local"`` reads none). The
            dim of members has CF ``standard_name`` ``realization`` or ``axis`` E, or is named
            ``member``, ``members``, ``realization``, ``realisation``, ``number``, ``ensemble``,
            ``ens`` or ``m``; that of lead times has ``standard_name`` ``forecast_period``, or is
            named so or ``lead``, ``lead_time``, ``leadtime``, ``step``, ``l``, ``forecastMonth``,
            ``leadtime_month``, ``ftime``, ``prediction_timedelta``; these and other dims are cases.
        observed
            The truth on the same grid, NaN where missing; without lead times, it holds for all.
            Points, such as stations, are matched by their latitude and longitude in any order;
            those at one place by a coordinate along their dim that names each point in both.

        Returns
        -------
        PostProcessor
            Itself.

        Raises
        ------
        DataError, GridError
            Grids, units, calendars or dims do not fit, values are infinite or below the bound of
            the distribution, no times are common or fewer than 3, or the forecast has a dim that is
            none of these.

        Warns
        -----
        UserWarning
            Values differ as of K and degC, or Pa and hPa, though units do not; months meet days; or
            many observations are at the bound of a truncated normal distribution.
        """
        forecast = arrays.with_coordinates(forecast, self.target)
        observed = arrays.with_coordinates(observed, self.target)
        field = as_field(forecast, self.target, "the forecast")
        seen = as_field(observed, self.target, "the observation", any_name=True)
        units = same_units(field, seen)
        if isinstance(forecast, xr.Dataset) and seen.name != self.target:
            # The truth must not be a predictor of itself.
            forecast = forecast.drop_vars([n for n in forecast.data_vars if n == seen.name])
        frame, member = arrays.Frame.of(field, "the forecast"), arrays.find_axes(field).member
        labels = labels_of(field)
        frame_seen = arrays.Frame.on(seen, frame.grid, "the observation", labels)
        forecast, seen = align(forecast, field, seen)
        cases = METHODS[self.method].reads(read_forecast(forecast, self.target, frame, self.groups))
        truth = read_observed(seen, self.target, frame_seen, cases.leading)
        refuse_truth(cases, truth, forecast, seen)
        check_bound(truth, self.distribution, seen)
        compare_scales(cases, truth, field, seen)
        cases, truth = usable(cases, truth, self.target)
        training = Training(
            forecast=cases,
            observed=truth,
            standard=Standard.of(cases, truth),
            grid=frame.grid,
            weights=np.where(np.isfinite(truth).any(0), cell_areas(frame.grid), 0.0),
            distribution=self.distribution,
            options=self.options,
            progress=self.progress,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = METHODS[self.method].fit(training).eval()
        self._fitted = Fitted(
            network=network,
            standard=training.standard,
            grid=frame.grid,
            units=predictor_units(forecast, cases.names) | ({self.target: units} if units else {}),
            names=cases.names,
            calendar=calendar_of(field),
            cases=len(truth),
            members=None if member is None else field.sizes[member],
            numbers=numbers_of(field),
            labels=labels if has_twins(frame.grid) else {},
            seen=SeenTimes.of(as_field(forecast, self.target, "the forecast"), cases.time),
        )
        return self

    def predict(
        self,
        forecast: _Object,
        *,
        members: bool = False,
        quantiles: Sequence[float] | FloatArray | None = None,
        thresholds: Sequence[float] | FloatArray | None = None,
    ) -> xr.Dataset:
        """Correct a forecast.

        Parameters
        ----------
        forecast
            As in :meth:`fit`; its dims may come in another order, latitude may run the other way,
            longitude may start elsewhere. Fewer members than in training are a warning.
        members
            Return as many corrected members as the forecast has, with its rank order (ensemble
            copula coupling). They are equidistant quantiles, not random draws, and their attribute
            ``ensemble_members`` says so.
        quantiles
            Return these quantiles: rising numbers between 0 and 1.
        thresholds
            Return the probabilities of exceeding these values: rising numbers in the units of the
            target. `evaluate` gives their Brier score.

        Returns
        -------
        Dataset
            ``<target>_mean`` and ``<target>_std``, with a bounded distribution also its parameters
            ``<target>_location`` and ``<target>_scale``; or ``<target>`` with members; or
            ``<target>_quantile`` along dim ``quantile``; or ``<target>_probability``, P(target >
            threshold), along dim ``threshold``. Dims, coordinates and attributes as in the
            forecast, and a coordinate ``in_training``, true for times that the model was trained
            on, which `evaluate` warns of. NaN where the forecast is missing, or nothing was
            observed in training.

        Raises
        ------
        DataError
            Not fitted, or grid, units, calendar, level, lead time, variables or groups differ from
            those of the training; both are named. Or values do, as kelvin and degrees Celsius.
        OptionError
            More than one of `members`, `quantiles` and `thresholds` is asked for, or it cannot be
            given.

        Examples
        --------
        >>> from scisparse.datasets import simulated_ensemble
        >>> data = simulated_ensemble((8, 16), times=40, members=5)
        >>> model = PostProcessor("emos", target="temperature").fit(data, data["observed"])
        >>> warm = model.predict(data, thresholds=[290.0, 300.0])["temperature_probability"]
        >>> warm.dims
        ('threshold', 'time', 'lat', 'lon')
        """
        fitted = self._require_fit()
        asked = {
            "members": members,
            "quantiles": quantiles is not None,
            "thresholds": thresholds is not None,
        }
        several = [f"`{name}`" for name, given in asked.items() if given]
        if len(several) > 1:
            raise OptionError(f"{' and '.join(several)} are given together; ask for one of them")
        forecast = arrays.with_coordinates(forecast, self.target)
        frame, cases = fitted.read(forecast, self.target, self.groups)
        location, scale = fitted.apply(cases)
        forecast = fitted.seen.mark(forecast, self.target)
        units = fitted.units.get(self.target)
        predicted = Predicted(
            location, scale, self.distribution, self.target, units, frame, forecast
        )
        if members:
            result = predicted.members()
        elif quantiles is not None:
            result = predicted.quantiles(quantiles)
        elif thresholds is not None:
            result = predicted.exceedance(thresholds)
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
        arrays = {f"standard.{k}": v for k, v in fitted.standard.arrays().items()}
        arrays["seen.values"] = fitted.seen.values
        tensors |= {k: torch.from_numpy(v) for k, v in arrays.items()}
        spec = {
            "method": self.method,
            "target": self.target,
            "distribution": self.distribution.name,
            "groups": self.groups,
            "seed": self.seed,
            "options": asdict(self.options),
            "grid": fitted.grid.to_dict(),
            "units": dict(fitted.units),
            "names": list(fitted.names),
            "calendar": fitted.calendar,
            "cases": fitted.cases,
            "members": fitted.members,
            "numbers": dict(fitted.numbers),
            "labels": dict(fitted.labels),
            "seen": fitted.seen.to_dict(),
            "versions": {"scisparse": _version(), "torch": str(torch.__version__)},
        }
        write_checkpoint(path, tensors, spec)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            The file does not exist, is cut short, is something else, or does not fit together.
        """
        tensors, spec = read_checkpoint(path)
        try:
            check_spec(spec)
            model = cls(
                spec["method"],
                target=spec["target"],
                distribution=spec["distribution"],
                groups=spec["groups"],
                options=Options(**spec["options"]),
                seed=spec["seed"],
            )
            grid = grid_from_dict(spec["grid"])
            parts: dict[str, dict[str, Any]] = {"network": {}, "standard": {}, "seen": {}}
            for name, tensor in tensors.items():
                part, _, key = name.partition(".")
                parts[part][key] = tensor
            standard = Standard.from_arrays({k: v.numpy() for k, v in parts["standard"].items()})
            standard.check(len(spec["names"]), grid.size)
            network = METHODS[model.method].restore(
                grid, len(spec["names"]), model.options, parts["network"]
            )
            model._fitted = Fitted(
                network=network.eval(),
                standard=standard,
                grid=grid,
                units=dict(spec["units"]),
                names=tuple(spec["names"]),
                calendar=spec["calendar"],
                cases=spec["cases"],
                members=spec["members"],
                numbers={name: tuple(pair) for name, pair in spec["numbers"].items()},
                labels=spec["labels"],
                seen=SeenTimes.from_parts(parts["seen"]["values"].numpy(), spec["seen"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise CheckpointError(
                f"{os.fspath(path)}: its content does not fit together ({reason}); it may be "
                "damaged, or of another version: train it again"
            ) from error
        return model

    def _require_fit(self) -> Fitted:
        if self._fitted is None:
            raise DataError("the post-processor is not fitted; call fit(forecast, observed) first")
        return self._fitted

    def __repr__(self) -> str:
        state = "not fitted"
        if self._fitted is not None:
            count = self._fitted.members
            members = "without members" if count is None else f"of {count} members"
            state = f"fitted on {self._fitted.cases} cases {members}, {self._fitted.grid!r}"
        return f"PostProcessor({self.method!r}, target={self.target!r}, {state})"


def _is_seed(seed: object) -> bool:
    return isinstance(seed, int | np.integer) and bool(0 <= seed < 2**63)


def _version() -> str:
    from importlib.metadata import version

    return version("scisparse")
