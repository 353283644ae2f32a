"""What training leaves behind: enough to check a forecast, and to correct it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import Frame, find_dim
from scisparse.coordinates import Numbers, check_trained
from scisparse.errors import DataError
from scisparse.grids import Grid
from scisparse.grids.same import Labels
from scisparse.postprocess.methods import Network
from scisparse.postprocess.samples import Forecast, as_field, read_forecast
from scisparse.postprocess.seen import SeenTimes
from scisparse.postprocess.standard import Standard
from scisparse.postprocess.times import check_times
from scisparse.units import check_scale, check_units, warn_scale

__all__ = ["Fitted"]

FloatArray = NDArray[np.float64]
_Object = xr.Dataset | xr.DataArray
_BATCH = 64


@dataclass(frozen=True)
class Fitted:
    """A trained model, and what forecasts it was trained on.

    Attributes
    ----------
    network
        In the space of standardised anomalies.
    standard
        Statistics of the training cases.
    grid
        Canonical grid.
    units
        Units of the variables that told theirs.
    names
        Groups and other predictors.
    calendar
        Calendar of the times, where they were dates.
    cases
        Number of training cases.
    members
        Number of members in training; ``None`` when there was no such dim.
    numbers
        Values of the training, such as of level and lead time, with their units.
    labels
        Names of the points, where some lie at one place.
    seen
        Times of the training cases.
    """

    network: Network
    standard: Standard
    grid: Grid
    units: Mapping[str, str]
    names: tuple[str, ...]
    calendar: str | None
    cases: int
    members: int | None
    numbers: Mapping[str, Numbers]
    labels: Labels
    seen: SeenTimes

    def read(self, forecast: _Object, target: str, groups: str | None) -> tuple[Frame, Forecast]:
        """Read a forecast like those of the training.

        Raises
        ------
        DataError
            Grid, units, calendar, level, lead time, variables or groups differ from the training's;
            both are named. Or temperatures of the target differ from it as kelvin and degrees
            Celsius do, or pressures as pascals and hectopascals, though units do not tell.

        Warns
        -----
        UserWarning
            There are fewer members than in training. All methods read the mean and the spread of
            members, which are what they were, but less certain than the model takes them to be.
            Or a predictor differs from the training as two scales do.
        """
        field = as_field(forecast, target, "the forecast")
        if isinstance(forecast, xr.Dataset):
            # Variables that the model was not trained on do no harm.
            forecast = forecast[[n for n in forecast.data_vars if n == target or n in self.names]]
            for name in forecast.data_vars:
                units, expected = forecast[name].attrs.get("units"), self.units.get(str(name))
                check_units(f"variable {str(name)!r} of the forecast", units, expected)
        else:
            check_units("the forecast", field.attrs.get("units"), self.units.get(target))
        frame = Frame.on(field, self.grid, "the forecast", self.labels)
        check_times(field, self.calendar)
        check_trained(field, self.numbers)
        cases = read_forecast(forecast, target, frame, groups)
        if cases.names != self.names:
            raise DataError(
                f"the forecast has predictors {list(cases.names)} but the model was trained on "
                f"{list(self.names)}; give the same variables and groups of members"
            )
        self._compare_scales(forecast, target, cases)
        self._compare_members(field)
        return frame, cases

    def _compare_scales(self, forecast: _Object, target: str, cases: Forecast) -> None:
        """Raise where the target is in another scale than in training; warn where a predictor is.

        A single day of a predictor may lie that far from its mean, such as the top of a cloud.
        """
        groups = cases.mean.shape[1]
        names = [*[target] * groups, *cases.names[groups:]]
        values = [*cases.mean.swapaxes(0, 1), *cases.extra.swapaxes(0, 1)]
        for name, given, usual in zip(names, values, self.standard.forecast_mean, strict=True):
            field = forecast[name] if isinstance(forecast, xr.Dataset) else forecast
            compare = check_scale if name == target else partial(warn_scale, stacklevel=4)
            compare(
                f"variable {name!r} of the forecast",
                field.attrs.get("units"),
                self.units.get(name),
                partial(_means, given, usual),
            )

    def _compare_members(self, field: xr.DataArray) -> None:
        dim = find_dim(field, "member")
        given = 1 if dim is None else field.sizes[dim]
        trained = 1 if self.members is None else self.members
        if 0 < given < trained:
            warnings.warn(
                f"the forecast has fewer members ({given}) than the training ({trained}): their "
                "mean is less certain, and the predicted spread somewhat too narrow; train on as "
                "many members as there will be",
                UserWarning,
                stacklevel=4,
            )

    def apply(self, forecast: Forecast) -> tuple[FloatArray, FloatArray]:
        """Location and scale ``[S, P]`` in units of the target."""
        anomalies = self.standard.predictors(forecast)
        missing = ~np.isfinite(anomalies).all(1)
        # A neighbour without a value tells nothing: its anomaly is 0. The point stays missing.
        inputs = (
            np.nan_to_num(anomalies, nan=0.0).transpose(0, 2, 1),
            self.standard.spread(forecast),
        )
        parts: list[list[FloatArray]] = []
        with torch.no_grad():
            for start in range(0, len(anomalies), _BATCH):
                batch = (np.ascontiguousarray(a[start : start + _BATCH]) for a in inputs)
                predicted = self.network(*(torch.from_numpy(a) for a in batch))
                parts.append([tensor.double().numpy() for tensor in predicted])
        location, scale = (np.concatenate(each) for each in zip(*parts, strict=True))
        location, scale = self.standard.in_units(location, scale)
        return np.where(missing, np.nan, location), np.where(missing, np.nan, scale)


def _means(values: FloatArray, usual: FloatArray) -> tuple[float, float]:
    """Means of a forecast and of the training, NaN of a group of members that is missing."""
    given, trained = (each[np.isfinite(each)] for each in (values, usual))
    return float(given.mean()) if given.size else np.nan, float(trained.mean())
