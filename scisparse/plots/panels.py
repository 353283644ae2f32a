"""Panels of maps: cells of grids with rows and columns, and markers of points."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import Frame
from scisparse.errors import DataError, OptionError
from scisparse.grids import LatLonGrid, ProjectedGrid, UnstructuredGrid
from scisparse.plots.canvas import GREY, new_figure, tidy
from scisparse.plots.markers import Markers, Places

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection, QuadMesh
    from matplotlib.figure import Figure

__all__ = ["Panel", "Scale", "check_array", "draw", "new_panels"]

FloatArray = NDArray[np.float64]
_Ends = tuple[float, float]
_MISSING = "0.82"
_SEQUENTIAL, _DIVERGING = "viridis", "RdBu_r"
_PANEL = 4.2  # width of a map in inches
_NARROWEST, _FLATTEST = 0.3, 8.0  # width over height; maps that would be longer are drawn so
_WIDE = 1.5  # maps wider than this times their height are put below each other
_INCH = 72.0  # points
_LETTERS = 11.0  # of a title, in an inch


def check_array(field: xr.DataArray) -> None:
    """Raise for a Dataset, such as a prediction, of which one variable can be drawn."""
    if isinstance(field, xr.DataArray):
        return
    names = [str(name) for name in getattr(field, "data_vars", ())]
    choice = f" with variables {names}; choose one, such as [{names[0]!r}]" if names else ""
    raise DataError(f"a map needs a DataArray, but this is of type {type(field).__name__}{choice}")


@dataclass(frozen=True)
class Panel:
    """Values in canonical order: rows northward and columns eastward, or points.

    Attributes
    ----------
    frame
        How the field lies on its grid.
    values
        Of shape ``frame.grid.shape``.
    """

    frame: Frame
    values: FloatArray

    @classmethod
    def of(cls, field: xr.DataArray) -> Panel:
        """Make the panel of a field without other dims than those of its grid."""
        check_array(field)
        frame = Frame.of(field)
        extra = [dim for dim in field.dims if dim not in frame.space]
        if extra:
            raise DataError(
                f"{field.name!r} has dims {[str(d) for d in extra]} beside those of its grid; "
                "select or average over them first"
            )
        values = frame.values(field, [])
        if not np.isfinite(values).any():
            raise DataError(f"{field.name!r} has no finite values to draw")
        return cls(frame, values)

    @property
    def axes(self) -> tuple[FloatArray, FloatArray]:
        """Centres of columns and of rows, in degrees or kilometres."""
        grid = self.frame.grid
        if isinstance(grid, LatLonGrid):
            return np.rad2deg(grid.lon_axis), np.rad2deg(grid.lat_axis)
        if isinstance(grid, ProjectedGrid):
            return grid.x_axis / 1e3, grid.y_axis / 1e3
        raise TypeError(f"no columns and rows: {grid!r}")

    @cached_property
    def edges(self) -> tuple[FloatArray, FloatArray]:
        """Ends of columns and of rows, in degrees or kilometres; of all points together.

        Columns and rows that a regular grid leaves out are one wide column or row.
        """
        if isinstance(self.frame.grid, UnstructuredGrid):
            across, up = self.places.limits
            return np.array(across), np.array(up)
        east, north = self.axes
        columns, rows = _edges(east, north), _edges(north, east)
        return columns, np.clip(rows, -90.0, 90.0) if self.frame.grid.spherical else rows

    @property
    def cells(self) -> FloatArray:
        """Values between the edges, missing where columns or rows are left out."""
        values = self.values
        for axis, centres in zip((1, 0), self.axes, strict=True):
            values = np.insert(values, _gaps(centres) + 1, np.nan, axis)
        return values

    @cached_property
    def places(self) -> Places:
        """Places of points."""
        return Places.of(self.points)

    @property
    def points(self) -> UnstructuredGrid:
        """The grid, of points."""
        if not isinstance(self.frame.grid, UnstructuredGrid):
            raise TypeError(f"not points: {self.frame.grid!r}")
        return self.frame.grid

    @property
    def stretch(self) -> float:
        """How much longer a unit of the rows is drawn than one of the columns.

        As on the ground in the middle of the map, but for strips, such as a single row of a global
        grid, which would be too thin to be seen.
        """
        columns, rows = self.edges
        middle = 0.5 * (rows[0] + rows[-1]) if self.frame.grid.spherical else 0.0
        true = 1.0 / np.cos(np.deg2rad(np.clip(middle, -60.0, 60.0)))
        flat = (columns[-1] - columns[0]) / ((rows[-1] - rows[0]) * true)
        return float(true * flat / np.clip(flat, _NARROWEST, _FLATTEST))

    @property
    def shape(self) -> float:
        """Width over height."""
        wide, high = (edges[-1] - edges[0] for edges in self.edges)
        return float(np.clip(wide / (high * self.stretch), 0.3, 4.0))

    @property
    def size(self) -> _Ends:
        """Width and height in inches."""
        width = 1.5 * _PANEL if self.shape > _WIDE else _PANEL
        return width, width / self.shape

    @cached_property
    def markers(self) -> Markers:
        """Markers of points."""
        wide, high = (float(edges[-1] - edges[0]) for edges in self.edges)
        width, height = self.size
        unit = _INCH * min(width / wide, height / (high * self.stretch))
        return Markers.of(self.points, self.places, unit, self.stretch)


@dataclass(frozen=True)
class Scale:
    """Ends and colours of a scale, and whether values lie beyond it."""

    ends: _Ends
    colours: str
    extend: str

    @classmethod
    def of(
        cls,
        panels: Sequence[Panel],
        centre: float | None,
        limits: _Ends | None,
        colours: str | None,
    ) -> Scale:
        """Make the scale of some panels; the arguments are those of ``map_field``."""
        _check_scale(centre, limits)
        values = np.concatenate([panel.values.ravel() for panel in panels])
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, (0.01, 0.99)) if limits is None else limits
        if centre is not None and limits is None:
            reach = max(abs(low - centre), abs(high - centre))
            low, high = centre - reach, centre + reach
        if low == high:
            low, high = low - 0.5, high + 0.5
        beyond = {(True, True): "both", (True, False): "min", (False, True): "max"}
        extend = beyond.get((bool((values < low).any()), bool((values > high).any())), "neither")
        name = colours if colours is not None else _SEQUENTIAL if centre is None else _DIVERGING
        return cls((float(low), float(high)), name, extend)


def _check_scale(centre: float | None, limits: _Ends | None) -> None:
    """Raise for a centre or limits of which matplotlib would make other ones without a word."""
    if centre is not None and not np.isfinite(centre):
        raise OptionError(f"`centre` (={centre}) must be finite; leave it out for no centre")
    if limits is None:
        return
    if np.shape(limits) != (2,) or not np.isfinite(limits).all() or limits[0] > limits[1]:
        raise OptionError(
            f"`limits` (={limits}) must be two finite numbers, the lower one first; leave them out "
            "for percentiles 1 and 99"
        )


def new_panels(panels: Sequence[Panel]) -> tuple[Figure, list[Axes]]:
    """Return a figure for maps of one shape, side by side or, when they are wide, stacked."""
    count = len(panels)
    width, height = panels[0].size
    stacked = count > 1 and panels[0].shape > _WIDE
    rows, columns = (count, 1) if stacked else (1, count)
    return new_figure(rows, columns, (columns * width + 1.0, rows * (height + 0.45)), compress=True)


def draw(
    axes: Sequence[Axes], panels: Sequence[Panel], titles: Sequence[str], scale: Scale, label: str
) -> None:
    """Draw maps on one scale; those that stand side by side share a colour bar."""
    for ax, panel, title in zip(axes, panels, titles, strict=True):
        points = isinstance(panel.frame.grid, UnstructuredGrid)
        shown = _points(ax, panel, scale) if points else _cells(ax, panel, scale)
        _finish(ax, panel)
        letters = round(_LETTERS * panel.size[0])
        ax.set_title(_in_lines(title, letters), loc="left")
        if ax is axes[-1] or panel.shape > _WIDE:
            # An inset is as high as the map, whatever the aspect makes of the panel.
            space = ax.inset_axes((1.03, 0.0, 0.035, 1.0))
            bar = ax.figure.colorbar(shown, cax=space, extend=scale.extend)
            bar.set_label(textwrap.fill(label, 34), size=10)
            bar.ax.tick_params(labelsize=9)


def _cells(ax: Axes, panel: Panel, scale: Scale) -> QuadMesh:
    """Draw a grid with rows and columns; missing cells let the grey behind them through."""
    low, high = scale.ends
    ax.set_facecolor(_MISSING)
    return ax.pcolormesh(
        *panel.edges, panel.cells, cmap=scale.colours, vmin=low, vmax=high, rasterized=True
    )


def _points(ax: Axes, panel: Panel, scale: Scale) -> EllipseCollection:
    """Draw a marker for each point; what crosses the ends of the globe is drawn at both."""
    places, markers = panel.places, panel.markers
    shown = _ellipses(ax, panel, scale, places.lon, np.arange(places.lon.size))
    (west, east), _ = places.limits
    if east - west == 360.0:
        over = np.flatnonzero(np.abs(places.lon) + 0.5 * markers.widths > 180.0)
        lon = places.lon[over] - np.copysign(360.0, places.lon[over])
        _ellipses(ax, panel, scale, lon, over)
    return shown


def _ellipses(
    ax: Axes, panel: Panel, scale: Scale, lon: FloatArray, index: NDArray[np.int64]
) -> EllipseCollection:
    """Draw the markers of some points at these longitudes."""
    from matplotlib import colormaps
    from matplotlib.collections import EllipseCollection

    markers, colours = panel.markers, colormaps.get_cmap(scale.colours)
    shown = EllipseCollection(
        markers.widths[index], markers.heights[index], np.zeros(index.size), units="xy",
        offsets=np.stack([lon, panel.places.lat[index]], axis=1), offset_transform=ax.transData,
        array=panel.values[index], cmap=colours.with_extremes(bad=_MISSING),
        linewidths=markers.outline, edgecolors=GREY if markers.outline else "none",
        rasterized=True,
    )  # fmt: skip
    shown.set_clim(*scale.ends)
    ax.add_collection(shown, autolim=False)
    return shown


def _finish(ax: Axes, panel: Panel) -> None:
    """Give a map its ends, ticks and frame."""
    from matplotlib.ticker import MaxNLocator

    ax.set_aspect(panel.stretch)
    tidy(ax)
    if panel.frame.grid.spherical:
        ax.xaxis.set_major_formatter(_meridian)
        ax.yaxis.set_major_formatter(_parallel)
    else:
        ax.set_xlabel("x [km]")
        ax.set_ylabel("y [km]")
    columns, rows = panel.edges
    ax.set_xlim(columns[0], columns[-1])
    ax.set_ylim(rows[0], rows[-1])
    for axis, edges in zip((ax.xaxis, ax.yaxis), panel.edges, strict=True):
        # Of 7, as 360 degrees but for rounding are to be marked every 60 degrees.
        count = 7 if edges[-1] - edges[0] > 90.0 else 5
        axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 3, 5, 6, 10]))
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(GREY)


def _edges(centres: FloatArray, across: FloatArray) -> FloatArray:
    """Return the ends of cells, halfway between centres, and of gaps.

    A single row or column is as wide as the cells of the other axis.
    """
    if centres.size == 1:
        step = float(np.median(np.diff(across))) if across.size > 1 else 1.0
        return np.array([centres[0] - 0.5 * step, centres[0] + 0.5 * step])
    steps = np.diff(centres)
    gaps = _gaps(centres)
    steps[gaps] = np.median(steps)
    left = centres - 0.5 * np.concatenate([steps[:1], steps])
    right = centres + 0.5 * np.concatenate([steps, steps[-1:]])
    return np.concatenate([left[:1], np.insert(right, gaps + 1, left[gaps + 1])])


def _gaps(centres: FloatArray) -> NDArray[np.int64]:
    """Places before steps that are too long for an axis of which most steps are alike."""
    steps = np.diff(centres)
    usual = np.median(steps) if steps.size else 0.0
    regular = 2 * np.count_nonzero(np.abs(steps - usual) < 0.1 * usual) > steps.size
    return np.flatnonzero(steps > 1.5 * usual) if regular else np.empty(0, np.int64)


def _meridian(value: float, _: float = 0.0) -> str:
    degrees = (value + 180.0) % 360.0 - 180.0
    if degrees in (0.0, -180.0):
        return f"{abs(degrees):g}°"
    return f"{abs(degrees):g}°{'E' if degrees > 0 else 'W'}"


def _parallel(value: float, _: float = 0.0) -> str:
    return "0°" if value == 0 else f"{abs(value):g}°{'N' if value > 0 else 'S'}"


def _in_lines(title: str, letters: int) -> str:
    """A title in lines of so many letters; formulas stay whole."""
    joined = re.sub(r"\$[^$]*\$", lambda found: found[0].replace(" ", "\0"), title or "")
    lines = []
    for line in joined.split("\n"):
        plain = "$" not in line
        lines.append(textwrap.fill(line, letters, break_long_words=plain, break_on_hyphens=plain))
    return "\n".join(lines).replace("\0", " ")
