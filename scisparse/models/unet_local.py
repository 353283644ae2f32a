"""A U-Net followed by an untied head, on top of a regression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scisparse.errors import GridError
from scisparse.grids import Grid
from scisparse.layers import LocallyConnected
from scisparse.models.regression import EnsembleRegression
from scisparse.models.unet import UNet
from scisparse.patterns import window

__all__ = ["UNetLocal", "check_plane"]


class UNetLocal(nn.Module):
    """Regression, U-Net and untied head (after Groenquist et al. 2021).

    ``location, log(scale) = regression(a, v) + head(unet(a))``; the head has its own 2 x 2 matrix
    at every point and starts as the identity, the U-Net starts at zero: an untrained network is the
    regression.

    Parameters
    ----------
    regression
        Where the network starts from; it is not trained further.
    grid
        Latitude-longitude or projected grid of P = H x W points.
    features
        Number of predictors F.
    width, depth
        Of the :class:`~scisparse.models.UNet`.

    Shapes
    ------
    Anomalies ``[B, P, F]`` and spread ``[B, P]`` give location and scale ``[B, P]``.

    Raises
    ------
    GridError
        The grid has no rows and columns, or one point.

    References
    ----------
    Groenquist, P. et al. (2021). Deep learning for post-processing ensemble weather forecasts.
    https://doi.org/10.1098/rsta.2020.0092
    """

    def __init__(
        self, regression: EnsembleRegression, grid: Grid, features: int, *, width: int, depth: int
    ) -> None:
        super().__init__()
        check_plane(grid)
        self.shape = grid.shape
        self.regression = regression.requires_grad_(False)
        modes = ["circular" if closed else "replicate" for closed in grid.periodic]
        self.unet = UNet(features + 1, 2, width=width, depth=depth, padding_mode=modes)
        self.head = LocallyConnected(window(grid, 1), 2, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(2).expand_as(self.head.weight))

    def forward(self, anomalies: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale ``[B, P]``."""
        with torch.no_grad():
            location, scale = self.regression(anomalies, spread)
        shift, factor = self.learned(anomalies, spread)
        return location + shift, scale * factor

    def learned(self, anomalies: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is added to the location and what multiplies the scale, ``[B, P]``."""
        fields = torch.cat([anomalies, spread[..., None].log1p()], -1).float()
        fields = fields.transpose(1, 2).reshape(len(fields), -1, *self.shape)
        out = self.head(self.unet(fields).flatten(2).transpose(1, 2))
        return out[..., 0], out[..., 1].exp()


def check_plane(grid: Grid) -> None:
    """Raise unless the grid has rows and columns, of more than one point.

    Raises
    ------
    GridError
        It has none, or one point.
    """
    if grid.size == 1:
        raise GridError(f"a U-Net needs a grid of several points, not {grid!r}; use 'emos_local'")
    if len(grid.shape) != 2:
        raise GridError(
            f"a U-Net needs a grid with rows and columns, not {grid!r}; use method='local'"
        )
