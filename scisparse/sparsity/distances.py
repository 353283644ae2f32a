"""How far apart the ends of edges are, where a pattern does not hold it itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scisparse.pattern import Pattern
from scisparse.pattern.geometry import great_circle, on_sphere, points_of

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
    spherical = on_sphere(sources, sites)
    starts, ends = (points_of(grid, spherical) for grid in (sites, sources))
    chord = np.linalg.norm(starts[site.numpy()] - ends[source.numpy()], axis=1)
    return torch.from_numpy(great_circle(chord, spherical))
