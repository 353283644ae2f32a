"""Maps on latitude-longitude and projected grids."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import Frame, same_points
from scisparse.errors import DataError, GridError
from scisparse.grids import LatLonGrid, ProjectedGrid
from scisparse.plots.canvas import GREY, label_of, new_figure, tidy
from scisparse.units import check_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

__all__ = ["map_correction", "map_field", "map_skill"]

FloatArray = NDArray[np.float64]
_MISSING = "0.82"
_SEQUENTIAL, _DIVERGING, _SKILL = "viridis", "RdBu_r", "RdBu"
_PANEL = 4.2  # width of a map in inches
_WIDE = 1.5  # maps wider than this times their height are put below each other


def map_field(
    field: xr.DataArray,
    *,
    title: str = "",
    centre: float | None = None,
    limits: tuple[float, float] | None = None,
    colours: str | None = None,
) -> Figure:
    """Draw a field on a latitude-longitude or projected grid; missing points are grey.

    Parameters
    ----------
    field
        Two-dimensional, in any order of dims. Its ``long_name`` and ``units`` label the colours.
    title
        Title.
    centre
        Value in the middle of a diverging scale, such as 0 for differences; ``None``: sequential.
    limits
        Ends of the scale; default percentiles 1 and 99, with arrows for what lies beyond.
    colours
        Name of a matplotlib colour map; default ``viridis``, or ``RdBu_r`` around a centre.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    DataError
        `field` is a Dataset, has other dims than those of its grid, or no finite values.
    GridError
        `field` is on no such grid.
    MissingDependencyError
        The extra ``plot`` is not installed.

    Examples
    --------
    >>> import xarray as xr
    >>> coords = {"lat": [10.0, 20.0], "lon": [0.0, 10.0, 20.0]}
    >>> rain = xr.DataArray([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]], coords, ("lat", "lon"))
    >>> figure = map_field(rain.assign_attrs(long_name="rain", units="mm"))
    >>> figure.axes[0].child_axes[0].get_ylabel()  # of the colour bar
    'rain [mm]'
    """
    panel = _Map.of(field)
    figure, axes = _panels([panel])
    scale = _Scale.of([panel], centre, limits, colours)
    _draw(axes, [panel], [title], scale, label_of(field))
    return figure


def map_correction(
    raw: xr.DataArray, corrected: xr.DataArray, *, colours: str | None = None
) -> Figure:
    """Draw the mean raw forecast, the mean corrected one, and their difference.

    Parameters
    ----------
    raw, corrected
        Forecasts on one grid; means are taken over all other dims, such as times and members.
    colours
        Name of a diverging colour map for the difference; default ``RdBu_r``, in which red is more.

    Returns
    -------
    matplotlib.figure.Figure
        Three maps: two that share a scale, and the difference around 0.

    Raises
    ------
    DataError
        Units or grids differ, a forecast is a Dataset, or there are no finite values.
    GridError
        A forecast is on no latitude-longitude or projected grid.
    MissingDependencyError
        The extra ``plot`` is not installed.

    Examples
    --------
    >>> import xarray as xr
    >>> raw = xr.DataArray([[1.0, 2.0]], {"lat": [0.0], "lon": [0.0, 1.0]}, ("lat", "lon"))
    >>> [axes.get_title(loc="left") for axes in map_correction(raw, raw + 1.0).axes[:3]]
    ['raw forecast', 'corrected forecast', 'corrected minus raw']
    """
    for forecast in (raw, corrected):
        _check_array(forecast)
    check_units("the corrected forecast", corrected.attrs.get("units"), raw.attrs.get("units"))
    before, after = _Map.of(raw, mean=True), _Map.of(corrected, mean=True)
    if not same_points(before.frame.grid, after.frame.grid):
        raise DataError(
            f"raw is on {before.frame.grid!r} but corrected on {after.frame.grid!r}; interpolate "
            "one to the grid of the other"
        )
    change = _Map(before.frame, after.values - before.values)
    figure, axes = _panels([before, after, change])
    titles = ["raw forecast", "corrected forecast"]
    scale = _Scale.of([before, after], None, None, None)
    _draw(axes[:2], [before, after], titles, scale, label_of(raw))
    units = raw.attrs.get("units", "")
    label = f"change [{units}]" if units else "change"
    scale = _Scale.of([change], 0.0, None, colours)
    _draw(axes[2:], [change], ["corrected minus raw"], scale, label)
    return figure


def map_skill(scores: xr.Dataset, *, score: str = "crps", colours: str | None = None) -> Figure:
    """Draw where a prediction is better than its reference (blue), and where it is worse (red).

    Parameters
    ----------
    scores
        Result of ``evaluate(prediction, observed, reference=..., dims="time")``.
    score
        ``"crps"``, ``"rmse"``, ``"quantile_score"`` or, after a ``.sel(threshold=...)``,
        ``"brier_score"``.
    colours
        Name of a diverging colour map; default ``RdBu``.

    Returns
    -------
    matplotlib.figure.Figure
        Map of 1 - score / score of the reference, centred on 0.

    Raises
    ------
    DataError
        `scores` has no such skill, or it is not a map: scores over all dims are averages.
    GridError
        It is on no latitude-longitude or projected grid.
    MissingDependencyError
        The extra ``plot`` is not installed.

    Examples
    --------
    >>> from scisparse import evaluate
    >>> from scisparse.datasets import simulated_ensemble
    >>> data = simulated_ensemble((8, 16), times=40, members=5)
    >>> raw, observed = data["temperature"], data["observed"]
    >>> unbiased = raw - (raw.mean("member") - observed).mean("time")
    >>> scores = evaluate(unbiased, observed, reference=raw, dims="time")
    >>> map_skill(scores).axes[0].get_title(loc="left")
    'better than the reference at 88 % of points'
    """
    name = f"{score}_skill"
    if name not in scores:
        raise DataError(
            f"`scores` has no {name!r}, but {[str(n) for n in scores.data_vars]}; give evaluate a "
            "reference"
        )
    skill = scores[name]
    if skill.ndim == 0:
        over = scores.attrs.get("averaged_over", "all dims")
        raise DataError(
            f"{name!r} is one number, averaged over {over}, and no map; average over times alone, "
            'with evaluate(..., dims="time")'
        )
    panel = _Map.of(skill)
    reach = min(1.0, float(np.nanquantile(np.abs(panel.values), 0.99)))
    reach = reach if reach > 0 else 1.0
    figure, axes = _panels([panel])
    scale = _Scale.of([panel], 0.0, (-reach, reach), _SKILL if colours is None else colours)
    better = float(np.mean(panel.values[np.isfinite(panel.values)] > 0))
    title = f"better than the reference at {100 * better:.0f} % of points"
    _draw(axes, [panel], [title], scale, label_of(skill))
    return figure


def _check_array(field: xr.DataArray) -> None:
    """Raise for a Dataset, such as a prediction, of which one variable can be drawn."""
    if isinstance(field, xr.DataArray):
        return
    names = [str(name) for name in getattr(field, "data_vars", ())]
    choice = f" with variables {names}; choose one, such as [{names[0]!r}]" if names else ""
    raise DataError(f"a map needs a DataArray, but this is of type {type(field).__name__}{choice}")


@dataclass(frozen=True)
class _Map:
    """Values in canonical order: rows northward, columns eastward."""

    frame: Frame
    values: FloatArray

    @classmethod
    def of(cls, field: xr.DataArray, *, mean: bool = False) -> _Map:
        _check_array(field)
        frame = Frame.of(field)
        if not isinstance(frame.grid, LatLonGrid | ProjectedGrid):
            raise GridError(
                f"{frame.grid!r} cannot be drawn as a map; interpolate to a latitude-longitude or "
                "projected grid"
            )
        extra = [dim for dim in field.dims if dim not in frame.space]
        if extra and not mean:
            raise DataError(
                f"{field.name!r} has dims {[str(d) for d in extra]} beside those of its grid; "
                "select or average over them first"
            )
        values = frame.values(field.mean(extra) if extra else field, [])
        if not np.isfinite(values).any():
            raise DataError(f"{field.name!r} has no finite values to draw")
        return cls(frame, values)

    @property
    def axes(self) -> tuple[FloatArray, FloatArray]:
        """Coordinates of columns and rows, in degrees or kilometres."""
        grid = self.frame.grid
        if isinstance(grid, LatLonGrid):
            return np.rad2deg(grid.lon_axis), np.rad2deg(grid.lat_axis)
        if isinstance(grid, ProjectedGrid):
            return grid.x_axis / 1e3, grid.y_axis / 1e3
        raise TypeError(f"not a map: {grid!r}")

    @property
    def stretch(self) -> float:
        """How much longer a unit of the rows is drawn than one of the columns."""
        if not isinstance(self.frame.grid, LatLonGrid):
            return 1.0
        rows = self.axes[1]
        return float(1.0 / np.cos(np.deg2rad(np.clip(0.5 * (rows[0] + rows[-1]), -60.0, 60.0))))

    @property
    def shape(self) -> float:
        """Width over height."""
        wide, high = (
            abs(axis[-1] - axis[0]) * (1.0 + 1.0 / axis.size) + 1e-9 for axis in self.axes
        )
        return float(np.clip(wide / (high * self.stretch), 0.3, 4.0))


@dataclass(frozen=True)
class _Scale:
    """Ends and colours of a scale, and whether values lie beyond it."""

    ends: tuple[float, float]
    colours: str
    extend: str

    @classmethod
    def of(
        cls,
        panels: Sequence[_Map],
        centre: float | None,
        limits: tuple[float, float] | None,
        colours: str | None,
    ) -> _Scale:
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


def _panels(panels: Sequence[_Map]) -> tuple[Figure, list[Axes]]:
    """Return a figure for maps of one shape, side by side or, when they are wide, stacked."""
    shape, count = panels[0].shape, len(panels)
    stacked = count > 1 and shape > _WIDE
    width = 1.5 * _PANEL if shape > _WIDE else _PANEL
    rows, columns = (count, 1) if stacked else (1, count)
    size = (columns * width + 1.0, rows * (width / shape + 0.45))
    return new_figure(rows, columns, size, compress=True)


def _draw(
    axes: Sequence[Axes], panels: Sequence[_Map], titles: Sequence[str], scale: _Scale, label: str
) -> None:
    """Draw maps on one scale; those that stand side by side share a colour bar."""
    for ax, panel, title in zip(axes, panels, titles, strict=True):
        mesh = _mesh(ax, panel, scale)
        ax.set_title(title, loc="left")
        if ax is axes[-1] or panel.shape > _WIDE:
            # An inset is as high as the map, whatever the aspect makes of the panel.
            space = ax.inset_axes((1.03, 0.0, 0.035, 1.0))
            bar = ax.figure.colorbar(mesh, cax=space, extend=scale.extend)
            bar.set_label(textwrap.fill(label, 34), size=10)
            bar.ax.tick_params(labelsize=9)


def _mesh(ax: Axes, panel: _Map, scale: _Scale) -> QuadMesh:
    """Draw one map."""
    from matplotlib.ticker import MaxNLocator

    columns, rows = panel.axes
    low, high = scale.ends
    mesh = ax.pcolormesh(
        _edges(columns), _edges(rows), panel.values, cmap=scale.colours, vmin=low, vmax=high,
        rasterized=True,
    )  # fmt: skip
    ax.set_facecolor(_MISSING)
    ax.set_aspect(panel.stretch)
    tidy(ax)
    if isinstance(panel.frame.grid, LatLonGrid):
        ax.xaxis.set_major_formatter(_meridian)
        ax.yaxis.set_major_formatter(_parallel)
        ax.set_ylim(max(_edges(rows)[0], -90.0), min(_edges(rows)[-1], 90.0))
    else:
        ax.set_xlabel("x [km]")
        ax.set_ylabel("y [km]")
    for axis, places in zip((ax.xaxis, ax.yaxis), panel.axes, strict=True):
        count = 6 if abs(places[-1] - places[0]) > 90.0 else 5
        axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 3, 5, 6, 10]))
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(GREY)
    return mesh


def _edges(centres: FloatArray) -> FloatArray:
    """Return the ends of cells, halfway between centres."""
    if centres.size == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _meridian(value: float, _: float = 0.0) -> str:
    degrees = (value + 180.0) % 360.0 - 180.0
    if degrees in (0.0, -180.0):
        return f"{abs(degrees):g}°"
    return f"{abs(degrees):g}°{'E' if degrees > 0 else 'W'}"


def _parallel(value: float, _: float = 0.0) -> str:
    return "0°" if value == 0 else f"{abs(value):g}°{'N' if value > 0 else 'S'}"
