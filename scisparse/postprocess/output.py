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
from scisparse.errors import OptionError
from scisparse.losses import Distribution
from scisparse.postprocess.samples import as_field, case_dims

__all__ = ["Predicted"]

FloatArray = NDArray[np.float64]
_CONVENTIONS = "CF-1.11"


@dataclass(frozen=True)
class Predicted:
    """Location and scale of every case and point, and where they came from.

    Attributes
    ----------
    location, scale
        ``[S, P]`` in canonical order, in units of the target.
    distribution
        Their family.
    target
        Name of the target.
    frame, template
        Where the forecast lies, and the forecast.
    """

    location: FloatArray
    scale: FloatArray
    distribution: Distribution
    target: str
    frame: Frame
    template: xr.Dataset | xr.DataArray

    def moments(self) -> xr.Dataset:
        """Mean and standard deviation: ``<target>_mean`` and ``<target>_std``."""
        location, scale = self._tensors()
        parts = {
            "mean": (self.distribution.mean(location, scale), "mean"),
            "std": (self.distribution.std(location, scale), "standard_deviation"),
        }
        if self.distribution.name != "normal":
            parts["location"] = (location, "location parameter")
            parts["scale"] = (scale, "scale parameter")
        variables = {}
        for suffix, (values, what) in parts.items():
            array = self._wrap(values.numpy()[None], [])
            name = f"{self.target}_{suffix}"
            array.attrs = self._attrs(f"{what.replace('_', ' ')} of the corrected {self.target}")
            if "parameter" not in what:
                array.attrs["cell_methods"] = f"realization: {what}"
            variables[name] = array
        return self._dataset(variables)

    def quantiles(self, levels: Sequence[float]) -> xr.Dataset:
        """Quantiles: ``<target>_quantile`` along dim ``quantile``.

        Raises
        ------
        OptionError
            A level is not strictly between 0 and 1.
        """
        probabilities = np.asarray(levels, dtype=np.float64)
        if probabilities.ndim != 1 or not ((probabilities > 0) & (probabilities < 1)).all():
            raise OptionError(f"`quantiles` (={list(levels)}) must lie strictly between 0 and 1")
        array = self._wrap(self._quantile(probabilities), ["quantile"])
        array = array.assign_coords(quantile=("quantile", probabilities, {"units": "1"}))
        array.attrs = self._attrs(f"quantiles of the corrected {self.target}")
        return self._dataset({f"{self.target}_quantile": array})

    def members(self) -> xr.Dataset:
        """As many members as the forecast has: its ranks at every point, the corrected distribution's values.

        Ensemble copula coupling (Schefzik et al. 2013) with equidistant quantiles: members stay coherent in space and time.

        References
        ----------
        Schefzik, R., Thorarinsdottir, T. L., Gneiting, T. (2013). Uncertainty quantification in complex simulation models
        using ensemble copula coupling. https://doi.org/10.1214/13-STS443

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
        ranks = np.argsort(np.argsort(raw, axis=0, kind="stable"), axis=0, kind="stable")
        levels = (np.arange(len(raw)) + 0.5) / len(raw)
        values = np.take_along_axis(self._quantile(levels), ranks, axis=0)
        array = self._wrap(values, [axes.member])
        array.attrs = self._attrs(f"corrected {self.target}")
        return self._dataset({self.target: array})

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.location), torch.from_numpy(self.scale)

    def _quantile(self, levels: FloatArray) -> FloatArray:
        location, scale = self._tensors()
        probability = torch.from_numpy(levels)[:, None, None]
        values: FloatArray = self.distribution.quantile(probability, location, scale).numpy()
        return values

    def _wrap(self, values: NDArray[Any], first: list[str]) -> xr.DataArray:
        """Values ``[1 or more, S, P]`` with the coordinates and dim order of the forecast."""
        field = as_field(self.template, self.target, "the forecast")
        axes = find_axes(field)
        leading = case_dims(axes)
        sizes = [field.sizes[dim] for dim in leading]
        shape = [len(values)] if first else []
        array = values.reshape(*shape, *sizes, *self.frame.grid.shape).astype(np.float32)
        return self.frame.wrap(array, [*first, *leading], field)

    def _attrs(self, long_name: str) -> dict[str, Any]:
        before = as_field(self.template, self.target, "the forecast").attrs
        kept = {k: before[k] for k in ("standard_name", "units") if k in before}
        return {"long_name": long_name, **kept}

    def _dataset(self, variables: dict[str, xr.DataArray]) -> xr.Dataset:
        attrs = {**self.template.attrs} if isinstance(self.template, xr.Dataset) else {}
        attrs |= {"Conventions": _CONVENTIONS, "distribution": self.distribution.name}
        return xr.Dataset(variables, attrs=attrs)
