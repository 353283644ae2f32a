"""Linear post-processing in the space of standardised anomalies, as a sparse layer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scisparse.grids import Grid
from scisparse.layers import LocallyConnected
from scisparse.pattern import Pattern

__all__ = ["Calibration", "EnsembleRegression"]


class Calibration(NamedTuple):
    """How a predicted location becomes a distribution: ``shift + gain * location`` and its scale.

    Attributes
    ----------
    shift, gain
        Of the location; 0 and 1 but for distributions with a bound.
    sigma
        Factor on the climatological spread, one number or ``[P]``.
    rho
        Share of the variance that follows the ensemble's, in [0, 1].
    """

    shift: float
    gain: float
    sigma: float | NDArray[np.float64]
    rho: float

    def on_grid(self, points: NDArray[np.int64], size: int) -> Calibration:
        """Spread `sigma` of some points over a grid; the others get their mean."""
        sigma = np.full(size, np.mean(self.sigma))
        sigma[points] = self.sigma
        return self._replace(sigma=sigma)


class EnsembleRegression(nn.Module):
    """Location from a stencil of predictors, scale from the ensemble (Gneiting et al. 2005).

    ``location = shift + layer(a)`` and ``scale = sigma * sqrt(1 - rho + rho * v)``, with anomalies
    ``a`` and relative spread ``v``; ``sigma`` may differ from point to point.

    Parameters
    ----------
    grid
        Grid of the P points.
    row_ptr, col
        Which points each point reads, in compressed-row form, `col` rising in each row.
    features
        Number of predictors F.
    tie
        As in :class:`~scisparse.layers.LocallyConnected`: ``"all"`` for one set of coefficients,
        ``None`` for own ones.

    Shapes
    ------
    Anomalies ``[B, P, F]`` and spread ``[B, P]`` give location and scale ``[B, P]``, float64.

    References
    ----------
    Gneiting, T., Raftery, A. E., Westveld, A. H., Goldman, T. (2005). Calibrated probabilistic
    forecasting using ensemble model output statistics and minimum CRPS estimation.
    https://doi.org/10.1175/MWR2904.1

    Examples
    --------
    >>> import torch
    >>> from scisparse.grids import LatLonGrid
    >>> points = torch.arange(13)
    >>> model = EnsembleRegression(LatLonGrid.regular(3, 4), points, points[:-1], 2, tie="all")
    >>> location, scale = model(torch.randn(5, 12, 2), torch.ones(5, 12))
    >>> location.shape, scale.shape
    (torch.Size([5, 12]), torch.Size([5, 12]))
    """

    shift: Tensor
    sigma: Tensor
    rho: Tensor

    def __init__(
        self, grid: Grid, row_ptr: Tensor, col: Tensor, features: int, *, tie: str | None = None
    ) -> None:
        super().__init__()
        pattern = Pattern(
            row_ptr=row_ptr.long(),
            col=col.int(),
            num_sources=grid.size,
            tap=torch.zeros(len(col), dtype=torch.int32),
            site_grid=grid,
            source_grid=grid,
        )
        self.layer = LocallyConnected(
            pattern, features, 1, tie=tie, bias=False, dtype=torch.float64
        )
        # Part of the saved state: a stencil is data, not code.
        self.register_buffer("row_ptr", pattern.row_ptr.clone())
        self.register_buffer("col", pattern.col.clone())
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))
        self.register_buffer("sigma", torch.ones(grid.size, dtype=torch.float64))
        self.register_buffer("rho", torch.zeros((), dtype=torch.float64))

    def set_(self, weight: NDArray[np.float64], calibration: Calibration) -> None:
        """Set the coefficients ``[T, F, 1]``, times the gain, and the numbers of the scale."""
        shift, gain, sigma, rho = calibration
        with torch.no_grad():
            self.layer.weight.copy_(torch.from_numpy(gain * weight))
            self.shift.fill_(shift)
            self.sigma.copy_(torch.as_tensor(sigma))
            self.rho.fill_(rho)

    def forward(self, anomalies: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale ``[B, P]``."""
        location = self.shift + self.layer(anomalies.to(self.layer.weight.dtype))[..., 0]
        scale = self.sigma * (1 - self.rho + self.rho * spread).clamp(min=0).sqrt()
        return location, scale.expand_as(location)
