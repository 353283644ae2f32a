"""The icosahedral mesh as a pattern, at one or at all of its scales."""

from __future__ import annotations

import numpy as np

from scisparse.grids import icosahedral, icosahedral_faces
from scisparse.pattern import Pattern
from scisparse.pattern.geometry import clouds
from scisparse.patterns.neighbours import pattern_of

__all__ = ["mesh"]


def mesh(level: int, *, multiscale: bool = False, include_self: bool = False) -> Pattern:
    """Read the neighbours on a refined icosahedron, on all coarser ones too if wanted.

    The vertices of a coarser mesh are the first of the finer one, so that the edges of all scales
    join the same points (multi-mesh): what is far on the finest is near on a coarse one.

    Parameters
    ----------
    level
        Times to cut the icosahedron, 0 to 10.
    multiscale
        Whether the edges of all coarser levels are there as well.
    include_self
        Whether a vertex reads itself.

    Returns
    -------
    Pattern
        Over :func:`scisparse.grids.icosahedral`, with ``distance`` and ``bearing``; both directions
        of ``30 * 4**level`` edges, or of ``10 * (4**(level + 1) - 1)`` at all scales.

    Raises
    ------
    GridError
        If the level is out of range.

    References
    ----------
    Lam, R. et al. (2023). Learning skillful medium-range global weather forecasting.
    https://doi.org/10.1126/science.adi2336

    Examples
    --------
    >>> mesh(3)
    Pattern(642 sites x 642 sources, 3840 edges, fan-in 5 to 6)
    >>> mesh(3, multiscale=True)
    Pattern(642 sites x 642 sources, 5100 edges, fan-in 6 to 20)
    """
    grid = icosahedral(level)
    levels = range(level + 1) if multiscale else [level]
    pairs = [np.stack([np.arange(grid.size)] * 2, axis=1)] if include_self else []
    for each in levels:
        faces = icosahedral_faces(each)
        # Each side belongs to two faces, which go along it in opposite directions.
        pairs.append(np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2))
    site, source = np.divmod(np.unique(np.concatenate(pairs) @ np.array([grid.size, 1])), grid.size)
    sources, sites = clouds(grid, grid)
    chord = np.linalg.norm(sources.points[source] - sites.points[site], axis=1)
    return pattern_of(iter([(site, source, chord)]), sources, sites, grid, grid)
