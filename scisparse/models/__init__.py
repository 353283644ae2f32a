"""Networks for post-processing, built from layers."""

from __future__ import annotations

from scisparse.models.regression import EnsembleRegression as EnsembleRegression
from scisparse.models.unet import UNet as UNet
from scisparse.models.unet_local import UNetLocal as UNetLocal

__all__ = [
    "EnsembleRegression",
    "UNet",
    "UNetLocal",
]
