"""Material that tests of losses share."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from scisparse.losses import CensoredNormal, Distribution, Normal, TruncatedNormal

INF = math.inf
FAMILIES: tuple[Distribution, ...] = (Normal(), TruncatedNormal(-0.5), CensoredNormal(0.7))


def draws(count: int, seed: int, *, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Locations, scales (log-normal) and observations."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(3, count, generator=generator, dtype=torch.float64)
    return 3.0 * normal[0], torch.exp(spread * normal[1]), 4.0 * normal[2]


def assert_close(ours: Tensor, theirs: object, tolerance: float = 1e-10) -> None:
    expected = np.asarray(theirs)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=tolerance, atol=tolerance)
