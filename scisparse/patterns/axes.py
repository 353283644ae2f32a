"""Which source each site and tap reads along one axis of a window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scisparse.errors import OptionError
from scisparse.grids import LatLonGrid
from scisparse.pattern import WindowSpec

__all__ = ["AxisSources", "axis_sources", "pole_sources"]

_POLE = np.pi / 2 - 1e-6


@dataclass(frozen=True)
class AxisSources:
    """Sources of one axis, ``[sites, taps]``.

    Parameters
    ----------
    index
        int32, -1 where nothing is read.
    shifted
        True where the axis was reflected over a pole, so that longitude is read half a turn away.
    """

    index: NDArray[np.int32]
    shifted: NDArray[np.bool_] | None = None


def axis_sources(spec: WindowSpec, axis: int) -> AxisSources:
    """Apply the padding mode of one axis."""
    raw, n = _raw_index(spec, axis), spec.input_size[axis]
    mode = spec.padding_modes[axis]
    if mode == "circular":
        index = raw % n
    elif mode == "replicate":
        index = np.clip(raw, 0, n - 1)
    elif mode == "reflect":
        index = (n - 1) - np.abs((n - 1) - np.abs(raw))
    else:
        index = np.where((raw >= 0) & (raw < n), raw, -1)
    return AxisSources(index.astype(np.int32))


def pole_sources(spec: WindowSpec, grid: LatLonGrid) -> AxisSources:
    """Reflect latitude over those ends that are poles; drop what lies beyond the others.

    Row ``-1 - k`` is row ``k`` on the other side; where the first row lies on the pole, row ``k +
    1``.
    """
    raw, n = _raw_index(spec, 0), spec.input_size[0]
    on_pole = np.abs(grid.lat_axis[[0, -1]]) >= _POLE
    first, last = grid.pole_ends
    index = np.where((raw >= 0) & (raw < n), raw, -1)
    before, after = (raw < 0) & first, (raw >= n) & last
    index = np.where(before, (0 if on_pole[0] else -1) - raw, index)
    index = np.where(after, (2 * n - 2 if on_pole[1] else 2 * n - 1) - raw, index)
    reflected = before | after
    if ((index < 0) | (index >= n))[reflected].any():
        raise OptionError(
            f"`padding` (={max(spec.padding[0])} rows beyond a pole) must reach at most the other "
            f"pole of a grid of {n} rows; shrink the kernel"
        )
    return AxisSources(index.astype(np.int32), reflected)


def _raw_index(spec: WindowSpec, axis: int) -> NDArray[np.int64]:
    sites = np.arange(spec.output_size[axis]) * spec.stride[axis] - spec.padding[axis][0]
    return sites[:, None] + np.arange(spec.kernel_size[axis]) * spec.dilation[axis]
