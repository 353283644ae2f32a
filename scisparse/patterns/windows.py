"""Windows: a kernel that slides over the axes of a grid or of an index space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from scisparse.errors import GridError, OptionError, ShapeError
from scisparse.grids import Grid, LatLonGrid, ProjectedGrid, UnstructuredGrid
from scisparse.grids.integers import integers, integers_per_axis
from scisparse.memory import check_fits
from scisparse.pattern import Pattern, WindowSpec
from scisparse.patterns.axes import AxisSources, axis_sources, pole_sources

__all__ = ["PADDING_MODES", "window"]

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")
_EDGE_BYTES = 24  # while a pattern is made: source and place in int64, both in int32
_POLES = ("reflect", "clip", "zeros")


def window(
    grid_or_shape: Grid | Sequence[int],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    poles: str = "reflect",
    padding: int | str | Sequence[int] | None = None,
    padding_mode: str | Sequence[str] | None = None,
) -> Pattern:
    """Slide a kernel over a grid, or over an index space as ``torch.nn.Conv1d`` to ``Conv3d`` do.

    Site ``o`` and tap ``k`` of an axis read source ``o * stride - padding + k * dilation``. The tap
    of an edge is the flat index of its place in the kernel, the last axis varying fastest.

    On a ``LatLonGrid`` longitude wraps around when it is periodic, and sources beyond it are
    dropped when it is not. Beyond a pole, ``poles="reflect"`` reads the row on the other side of
    the pole, 180 degrees away; at an edge that is no pole it drops the source.

    Parameters
    ----------
    grid_or_shape
        A ``LatLonGrid``, a ``ProjectedGrid``, or sizes of an index space such as ``(181, 360)``.
        Masked points are neither read nor given edges.
    kernel_size
        Taps along each axis.
    stride, dilation
        Sources between neighbouring sites, and between neighbouring taps, along each axis.
    poles
        What a ``LatLonGrid`` reads beyond its first and last latitude: ``"reflect"``, ``"clip"``
        (the outermost row again) or ``"zeros"`` (nothing).
    padding
        Sources added at either end of each axis; ``None`` or ``"same"`` adds
        ``dilation * (kernel_size - 1)`` in all (the odd one at the end), ``"valid"`` none.
    padding_mode
        ``"zeros"``, ``"circular"``, ``"reflect"`` (without repeating the edge) or ``"replicate"``,
        one or one for each axis; for index spaces and projected grids. ``None`` is ``"zeros"``.

    Returns
    -------
    Pattern
        With taps; with ``window`` set when torch can run it as a convolution. Its ``site_grid`` is
        the grid itself when every point has its window (stride 1, as many sites as sources), else
        the points in the middle of the windows; ``None`` when these lie between or beyond sources,
        as those of an even kernel with a stride do.

    Raises
    ------
    OptionError
        If an option is unknown, not positive, or pads further than the axis is long.
    GridError
        If the grid has no rows and columns, its columns are not in order (a region across Greenwich
        sorted from 0 to 360), or ``poles="reflect"`` cannot shift by 180 degrees.

    Examples
    --------
    >>> from scisparse.grids import LatLonGrid
    >>> window(LatLonGrid.regular(181, 360), 3)
    Pattern(65160 sites x 65160 sources, 586440 edges, fan-in 9)
    >>> window((5,), 3, padding_mode="circular").col.tolist()[:3]
    [0, 1, 4]
    """
    grid = grid_or_shape if isinstance(grid_or_shape, Grid) else None
    shape = _shape_of(grid_or_shape)
    modes = _modes(grid, shape, padding_mode, poles)
    spec = _window_spec(shape, kernel_size, stride, dilation, padding, modes)
    check_fits(
        _EDGE_BYTES * math.prod(spec.output_size) * math.prod(spec.kernel_size),
        torch.device("cpu"),
        dict,
        what=f"the edges of windows of {spec.kernel_size} at {spec.output_size} sites",
        otherwise="use a smaller `kernel_size` or a coarser grid",
    )
    tables = _tables(grid, spec, poles)
    col_MK = _combine(tables, shape)
    site_grid = None if grid is None else _site_grid(grid, spec)
    regular = tables[0].shifted is None
    if grid is not None and grid.mask is not None:
        regular = False
        _drop_masked(col_MK, grid, site_grid)
    row_ptr, col, tap = (torch.from_numpy(array) for array in _edges(col_MK))
    return Pattern(
        row_ptr=row_ptr,
        col=col,
        num_sources=int(np.prod(shape)),
        tap=tap,
        site_grid=site_grid,
        source_grid=grid,
        window=spec if regular else None,
        tap_count=int(np.prod(spec.kernel_size)),
    )


def _shape_of(grid_or_shape: Grid | Sequence[int]) -> tuple[int, ...]:
    if isinstance(grid_or_shape, UnstructuredGrid):
        raise GridError(
            f"`grid_or_shape` (={grid_or_shape!r}) must have rows and columns; use radius or "
            "nearest"
        )
    if isinstance(grid_or_shape, Grid):
        return grid_or_shape.shape
    shape = integers(grid_or_shape)
    if shape is None:
        raise ShapeError(
            f"`grid_or_shape` (={grid_or_shape!r}) must be a grid, or integers, one for each axis, "
            "such as (181, 360)"
        )
    if not shape or min(shape) < 1 or math.prod(shape) >= 2**31:
        raise ShapeError(
            f"`grid_or_shape` (={shape}) must hold sizes of at least 1, fewer than 2**31 points"
        )
    return shape


def _modes(
    grid: Grid | None, shape: tuple[int, ...], padding_mode: str | Sequence[str] | None, poles: str
) -> tuple[str, ...]:
    if poles not in _POLES:
        raise OptionError(f"`poles` (={poles!r}) must be one of {_POLES}")
    if isinstance(grid, LatLonGrid):
        if padding_mode is not None:
            raise OptionError(
                f"`padding_mode` (={padding_mode!r}) is for index spaces and projected grids; "
                "a LatLonGrid takes poles="
            )
        grid.check_columns_in_order()
        return (
            "replicate" if poles == "clip" else "zeros",
            "circular" if grid.periodic[1] else "zeros",
        )
    given = "zeros" if padding_mode is None else padding_mode
    modes = (given,) * len(shape) if isinstance(given, str) else _tuple(given)
    if len(modes) != len(shape) or any(mode not in PADDING_MODES for mode in modes):
        raise OptionError(
            f"`padding_mode` (={padding_mode!r}) must be one of {PADDING_MODES}, or one for each "
            f"of {len(shape)} axes"
        )
    return modes


def _tuple(values: Sequence[str]) -> tuple[str, ...]:
    """Tuple of what may be no sequence at all: empty then."""
    try:
        return tuple(values)
    except TypeError:
        return ()


def _window_spec(
    shape: tuple[int, ...],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    padding: int | str | Sequence[int] | None,
    modes: tuple[str, ...],
) -> WindowSpec:
    axes = len(shape)
    kernel = _per_axis("kernel_size", kernel_size, axes, 1)
    steps, gaps = _per_axis("stride", stride, axes, 1), _per_axis("dilation", dilation, axes, 1)
    reach = tuple(d * (k - 1) for d, k in zip(gaps, kernel, strict=True))
    pads: tuple[tuple[int, int], ...]
    if padding is None or (isinstance(padding, str) and padding == "same"):
        pads = tuple((r // 2, r - r // 2) for r in reach)
    elif isinstance(padding, str) and padding != "valid":
        raise OptionError(f"`padding` (={padding!r}) must be 'same', 'valid' or integers")
    else:
        pads = tuple(
            (p, p)
            for p in _per_axis("padding", 0 if isinstance(padding, str) else padding, axes, 0)
        )
    sizes = []
    for axis, (n, r, (before, after)) in enumerate(zip(shape, reach, pads, strict=True)):
        if n + before + after <= r:
            raise OptionError(
                f"`kernel_size` (={kernel[axis]}, dilation {gaps[axis]}) must fit axis {axis} of "
                f"size {n} with padding {before} + {after}; shrink the kernel or pad more"
            )
        limit = {"circular": n, "reflect": n - 1}.get(modes[axis])
        if limit is not None and max(before, after) > limit:
            raise OptionError(
                f"`padding` (={max(before, after)} on axis {axis}) must be at most {limit} in mode "
                f"{modes[axis]!r} for size {n}; shrink the kernel"
            )
        sizes.append((n + before + after - r - 1) // steps[axis] + 1)
    return WindowSpec(
        kernel_size=kernel,
        stride=steps,
        padding=pads,
        dilation=gaps,
        padding_modes=modes,
        input_size=shape,
        output_size=tuple(sizes),
    )


def _per_axis(name: str, value: int | Sequence[int], axes: int, minimum: int) -> tuple[int, ...]:
    values = integers_per_axis(value, axes)
    if values is None or min(values) < minimum:
        raise OptionError(
            f"`{name}` (={value!r}) must be one integer of at least {minimum}, or one for each of "
            f"{axes} axes"
        )
    return values


def _check_reflects(grid: LatLonGrid) -> None:
    remedy = "use poles='clip' or poles='zeros'"
    if not grid.periodic[1] or not grid.uniform_longitude:
        raise GridError(
            "`poles` (='reflect') needs evenly spaced longitudes all around, not those of "
            f"{grid!r}; {remedy}"
        )
    if grid.shape[1] % 2:
        raise GridError(
            f"`poles` (='reflect') needs an even number of longitudes to shift by 180 degrees, "
            f"not {grid.shape[1]}; {remedy}"
        )


def _tables(grid: Grid | None, spec: WindowSpec, poles: str) -> list[AxisSources]:
    tables = [axis_sources(spec, axis) for axis in range(len(spec.input_size))]
    if isinstance(grid, LatLonGrid) and poles == "reflect":
        # A pole that no tap reaches asks nothing of the longitudes.
        before = spec.padding[0][0]
        reach = spec.dilation[0] * (spec.kernel_size[0] - 1)
        last = (spec.output_size[0] - 1) * spec.stride[0] - before + reach
        beyond = (before > 0, last >= spec.input_size[0])
        if any(end and over for end, over in zip(grid.pole_ends, beyond, strict=True)):
            _check_reflects(grid)
            tables[0] = pole_sources(spec, grid)
    return tables


def _combine(tables: list[AxisSources], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Flat source of each site and tap, -1 where there is none: ``[M, K]``."""
    axes = len(shape)
    col = np.zeros((1,) * (2 * axes), dtype=np.int32)
    for axis, table in enumerate(tables):
        index = table.index
        if axis == 1 and tables[0].shifted is not None:
            # Over a pole the other axis is read half a turn away.
            index = np.where(
                tables[0].shifted[:, None, :, None],
                ((index + shape[1] // 2) % shape[1])[None, :, None, :],
                index[None, :, None, :],
            )
        else:
            layout = [1] * (2 * axes)
            layout[axis], layout[axes + axis] = index.shape
            index = index.reshape(layout)
        col = np.where((col < 0) | (index < 0), np.int32(-1), col * np.int32(shape[axis]) + index)
    sites = int(np.prod(col.shape[:axes]))
    return np.ascontiguousarray(col.reshape(sites, -1), dtype=np.int32)


def _site_grid(grid: Grid, spec: WindowSpec) -> Grid | None:
    """Grid of the centres of the windows; none where they fall between or beyond sources.

    One window for each point makes the points the sites, where an even kernel has no centre too.
    """
    if spec.output_size == spec.input_size and set(spec.stride) == {1}:
        return grid
    picks = []
    for axis in range(2):
        reach = spec.dilation[axis] * (spec.kernel_size[axis] - 1)
        twice = reach - 2 * spec.padding[axis][0]
        if twice < 0 or twice % 2:
            return None
        picks.append(twice // 2 + np.arange(spec.output_size[axis]) * spec.stride[axis])
    mask = None if grid.mask is None else grid.mask[np.ix_(*picks)]
    if isinstance(grid, LatLonGrid):
        return LatLonGrid(grid.lat_axis[picks[0]], grid.lon_axis[picks[1]], mask)
    if not isinstance(grid, ProjectedGrid):
        return None
    lat, lon = (
        (f.reshape(grid.shape)[np.ix_(*picks)] for f in (grid.lat, grid.lon))
        if grid.has_lat_lon
        else (None, None)
    )
    return ProjectedGrid(grid.y_axis[picks[0]], grid.x_axis[picks[1]], mask, lat, lon)


def _drop_masked(col_MK: NDArray[np.int32], grid: Grid, site_grid: Grid | None) -> None:
    # Index -1 reads the last point's mask, which changes nothing: -1 stays -1.
    col_MK[~grid.valid[col_MK]] = -1
    if site_grid is not None:
        col_MK[~site_grid.valid] = -1


def _edges(
    col_MK: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Row pointer, sources and taps, sorted by (source, tap) within each site."""
    sites, taps = col_MK.shape
    tap_MK = np.broadcast_to(np.arange(taps, dtype=np.int32), (sites, taps))
    present = col_MK >= 0
    # Only windows that pass an edge are out of order: sort those rows alone.
    key = np.where(present, col_MK, np.iinfo(np.int32).max)
    unsorted = np.flatnonzero((key[:, 1:] < key[:, :-1]).any(axis=1))
    if unsorted.size:
        order = np.argsort(key[unsorted], axis=1, kind="stable")
        tap_MK = tap_MK.copy()
        tap_MK[unsorted] = order
        col_MK[unsorted] = np.take_along_axis(col_MK[unsorted], order, axis=1)
        present[unsorted] = np.take_along_axis(present[unsorted], order, axis=1)
    row_ptr = np.zeros(sites + 1, dtype=np.int64)
    np.cumsum(present.sum(axis=1), out=row_ptr[1:])
    return row_ptr, col_MK[present], tap_MK[present]
