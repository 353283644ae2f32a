"""How far apart the ends of edges are, where a pattern does not hold it itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scisparse.pattern import Pattern
from scisparse.patterns.geometry import great_circle

__all__ = ["distance_on_grids"]


def distance_on_grids(pattern: Pattern, site: Tensor, source: Tensor) -> Tensor | None:
    """Metres between sites and sources of a pattern on grids; ``None`` without grids.

    Parameters
    ----------
    pattern
        Which holds the grids.
    site, source
        Numbers of points, int64 ``[n]`` each.

    Returns
    -------
    Tensor or None
        Float64 ``[n]``, along the great circle on the sphere.
    """
    sites, sources = pattern.site_grid, pattern.source_grid
    if sites is None or sources is None:
        return None
    ends = sites.positions()[site.numpy()], sources.positions()[source.numpy()]
    chord = np.linalg.norm(ends[0] - ends[1], axis=1)
    return torch.from_numpy(great_circle(chord, sites.spherical))
