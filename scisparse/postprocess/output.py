"""Predicted distributions as CF Datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import Frame, find_axes
from scisparse.coordinates import told_names
from scisparse.errors import OptionError
from scisparse.losses import Distribution
from scisparse.losses.distributions import on_certain
from scisparse.losses.rising import exceedance_thresholds, quantile_levels
from scisparse.postprocess.samples import as_field, case_dims

__all__ = ["Predicted"]

FloatArray = NDArray[np.float64]
_CONVENTIONS = "CF-1.11"
# Attributes that tell about the values, and so do not hold for others.
_OF_VALUES = (
    "_FillValue", "actual_range", "add_offset", "ancillary_variables", "cell_methods",
    "ensemble_members", "long_name", "missing_value", "scale_factor", "valid_max", "valid_min",
    "valid_range",
)  # fmt: skip
# Attributes that tell about the target, also of its thresholds, and so not about probabilities.
_OF_TARGET = ("standard_name", "units")
# As these, but of no use to thresholds.
_IN_FILES = ("GRIB_", "short_name")
# scisparse.verification reads it: such members are no random draws.
_MEMBERS_ARE = {"ensemble_members": "equidistant quantiles"}


@dataclass(frozen=True)
class Predicted:
    """Location and scale of every case and point, and where they came from.

    Attributes
    ----------
    location, scale
        ``[S, P]`` in canonical order, in units of the target.
    distribution
        Their family.
    target, units
        Name of the target, and its units where training knew them.
    frame, template
        Where the forecast lies, and the forecast.
    """

    location: FloatArray
    scale: FloatArray
    distribution: Distribution
    target: str
    units: str | None
    frame: Frame
    template: xr.Dataset | xr.DataArray

    def moments(self) -> xr.Dataset:
        """Mean and standard deviation: ``<target>_mean`` and ``<target>_std``.

        Where a bound acts, also the parameters ``<target>_location`` and ``<target>_scale``.
        """
        location, scale = self._tensors()
        moments = {
            "mean": (self.distribution.mean(location, scale), "mean", "realization: mean"),
            "std": (
                self.distribution.std(location, scale),
                "standard deviation",
                "realization: standard_deviation",
            ),
        }
        if self.distribution.name != "normal":
            moments["location"] = (location, "location parameter", "")
            moments["scale"] = (scale, "scale parameter", "")
        return self._dataset(
            {
                f"{self.target}_{suffix}": self._wrap(
                    values.numpy()[None], [], f"{what} of the corrected {self.target}", method
                )
                for suffix, (values, what, method) in moments.items()
            }
        )

    def quantiles(self, levels: Sequence[float] | FloatArray) -> xr.Dataset:
        """Quantiles: ``<target>_quantile`` along dim ``quantile``.

        Raises
        ------
        OptionError
            There is no level, one is not strictly between 0 and 1, or they do not strictly rise.
        """
        probabilities = quantile_levels(levels)
        array = self._wrap(
            self._quantile(probabilities), ["quantile"], f"quantiles of the corrected {self.target}"
        )
        coordinate = ("quantile", probabilities, {"long_name": "probability", "units": "1"})
        return self._dataset({f"{self.target}_quantile": array.assign_coords(quantile=coordinate)})

    def exceedance(self, thresholds: Sequence[float] | FloatArray) -> xr.Dataset:
        """Probabilities of more than each threshold: ``<target>_probability``, dim ``threshold``.

        1 - F(threshold), where F is the predicted cumulative distribution function: a threshold at
        the bound of a censored normal distribution is exceeded by what lies above the bound.

        Raises
        ------
        OptionError
            There is no threshold, one is not finite, or they do not strictly rise.
        """
        values = exceedance_thresholds(thresholds)
        limits = torch.from_numpy(values)[:, None, None]
        location, scale = self._tensors()
        limits = on_certain(limits, location, scale)
        upto: FloatArray = self.distribution.cdf(limits, location, scale).numpy()
        what = f"probability that the corrected {self.target} exceeds the threshold"
        array = self._wrap(1.0 - upto, ["threshold"], what)
        told = {name: array.attrs[name] for name in _OF_TARGET if name in array.attrs}
        coordinate = ("threshold", values, {"long_name": f"threshold of {self.target}", **told})
        kept = {
            name: value
            for name, value in array.attrs.items()
            if name not in _OF_TARGET and not str(name).startswith(_IN_FILES)
        }
        array = array.assign_coords(threshold=coordinate)
        array.attrs = {**kept, "units": "1"}
        return self._dataset({f"{self.target}_probability": array})

    def members(self) -> xr.Dataset:
        """As many members as the forecast has: its ranks at every point, the corrected values.

        Ensemble copula coupling (Schefzik et al. 2013) with equidistant quantiles: members stay
        coherent in space and time. A missing member stays missing.

        The attribute ``ensemble_members`` of the variable, ``"equidistant quantiles"``, tells that
        the members are not drawn at random: a score such as the fair CRPS, which takes members for
        random draws, would be too good.

        References
        ----------
        Schefzik, R., Thorarinsdottir, T. L., Gneiting, T. (2013). Uncertainty quantification in
        complex simulation models using ensemble copula coupling. https://doi.org/10.1214/13-STS443

        Raises
        ------
        OptionError
            The forecast has no members.
        """
        field = as_field(self.template, self.target, "the forecast")
        axes = find_axes(field)
        if axes.member is None:
            raise OptionError(
                "members=True needs a forecast with members; this one has none: ask for quantiles"
            )
        raw = self.frame.values(field, [axes.member, *case_dims(axes)])
        raw = raw.reshape(len(raw), *self.location.shape)
        # NaN sorts last: members that are there have the ranks below their number.
        ranks = np.argsort(np.argsort(raw, axis=0, kind="stable"), axis=0, kind="stable")
        present = np.isfinite(raw)
        levels = np.where(present, (ranks + 0.5) / np.maximum(present.sum(0), 1), np.nan)
        array = self._wrap(self._quantile(levels), [axes.member], f"corrected {self.target}")
        return self._dataset({self.target: array.assign_attrs(_MEMBERS_ARE)})

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.location), torch.from_numpy(self.scale)

    def _quantile(self, levels: FloatArray) -> FloatArray:
        """Quantiles at `levels`, the same everywhere ``[Q]`` or ``[Q, S, P]``."""
        location, scale = self._tensors()
        probability = torch.from_numpy(levels if levels.ndim == 3 else levels[:, None, None])
        values: FloatArray = self.distribution.quantile(probability, location, scale).numpy()
        return values

    def _wrap(
        self, values: NDArray[Any], first: list[str], long_name: str, method: str = ""
    ) -> xr.DataArray:
        """Give values ``[1 or more, S, P]`` coordinates, dims and attributes of the forecast."""
        field = as_field(self.template, self.target, "the forecast")
        leading = case_dims(find_axes(field))
        sizes = [field.sizes[dim] for dim in leading]
        shape = [len(values)] if first else []
        array = values.reshape(*shape, *sizes, *self.frame.grid.shape).astype(np.float32)
        result = self.frame.wrap(array, [*first, *leading], field)
        methods = f"{field.attrs.get('cell_methods', '')} {method}".strip()
        kept = {name: value for name, value in field.attrs.items() if name not in _OF_VALUES}
        known = {} if self.units is None else {"units": self.units}
        result.attrs = {"long_name": long_name, **known, **kept}
        if methods:
            result.attrs["cell_methods"] = methods
        if "grid_mapping" in field.encoding:
            result.encoding["grid_mapping"] = field.encoding["grid_mapping"]
        return result

    def _dataset(self, variables: dict[str, xr.DataArray]) -> xr.Dataset:
        """Join variables, attributes of the forecast, and what variables refer to."""
        attrs = {**self.template.attrs} if isinstance(self.template, xr.Dataset) else {}
        attrs |= {"Conventions": _CONVENTIONS, "distribution": self.distribution.name}
        dataset = xr.Dataset(variables, attrs=attrs)
        if isinstance(self.template, xr.DataArray):
            return dataset
        named = told_names(dataset)
        missing = [n for n in self.template.variables if n in named and n not in dataset]
        dataset = dataset.assign({name: self.template[name] for name in missing})
        growing = {*self.template.encoding.get("unlimited_dims", ())} & {*dataset.dims}
        dataset.encoding = {"unlimited_dims": growing} if growing else {}
        return dataset
