"""Figures of what a sparsifier has done: one report, or several taken during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scisparse.errors import OptionError
from scisparse.plots.canvas import BLUE, ORANGE, new_figure, tidy
from scisparse.sparsity.report import DISTANCE_BINS, LayerReport, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["sparsity_efficiency", "sparsity_history", "sparsity_report"]

FloatArray = NDArray[np.float64]

# Okabe and Ito's colours, but for their yellow, which is hard to see on white.
_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_WIDTH = 8.4  # inches
_LONGEST = 30  # letters of a name
_ROW = 0.27  # inches
_MOST_NAMES = 40  # of columns
_MOST_CELLS = 12  # columns of a table whose cells hold numbers
_HISTORY = {
    "sparsity": "sparsity",
    "exploration": "weights explored / size",
    "churn": "new at last change / active",
}


def sparsity_report(report: Report) -> Figure:
    """Draw sparsity by layer, by region of sites and edges by distance, where these are known.

    Parameters
    ----------
    report
        Report of a sparsifier.

    Returns
    -------
    matplotlib.figure.Figure
        One panel below the other.

    Raises
    ------
    OptionError
        There is no layer in it.
    MissingDependencyError
        The extra ``plot`` is not installed.

    Examples
    --------
    >>> figure = sparsity_report(Report(10, (LayerReport("weight", 100, 25, 50, 0.2, 400),)))
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['weight']
    """
    if not report.layers:
        raise OptionError("`report` holds no layers; take it from a sparsifier")
    names = dict(zip((r.name for r in report.layers), _short(_names(report)), strict=True))
    by_region = [r for r in report.layers if r.regions]
    by_distance = [r for r in report.layers if sum(r.distances)]
    heights = [_height(len(report.layers)) + 0.6]
    heights += [_table_height(rows) for rows in (by_region, by_distance) if rows]
    figure, axes = new_figure(len(heights), 1, (_WIDTH, sum(heights)), heights=heights)
    panels = iter(axes)
    _draw_layers(next(panels), report, list(names.values()))
    title = f"After {report.steps:,} steps: sparsity {report.sparsity:.4f}"
    if report.accuracy is not None:
        title += f", accuracy {report.accuracy:.6g}, {report.efficiency:.3g} for each weight"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    if by_region:
        _draw_regions(next(panels), by_region, names)
    if by_distance:
        _draw_distances(next(panels), by_distance, names)
    return figure


def sparsity_history(reports: Sequence[Report]) -> Figure:
    """Draw sparsity, exploration and churn of every layer over the steps of training.

    Parameters
    ----------
    reports
        Reports of one sparsifier, taken during training, in any order.

    Returns
    -------
    matplotlib.figure.Figure
        Three panels, a line for each layer.

    Raises
    ------
    OptionError
        There is no report, or they are of different layers.
    MissingDependencyError
        The extra ``plot`` is not installed.

    Examples
    --------
    >>> first = Report(0, (LayerReport("weight", 100, 100, 100, 0.0, 400),))
    >>> last = Report(50, (LayerReport("weight", 100, 25, 100, 0.0, 400),))
    >>> figure = sparsity_history([first, last])
    >>> figure.axes[0].lines[0].get_ydata().tolist()
    [0.0, 0.75]
    """
    reports = sorted(reports, key=lambda report: report.steps)
    names = _check_history(reports)
    steps = [report.steps for report in reports]
    height = max(6.6, 0.45 + 0.19 * len(names))  # of the legend, where that is higher
    figure, axes = new_figure(3, 1, (_WIDTH, height), share_x=True)
    for ax, (key, label) in zip(axes, _HISTORY.items(), strict=True):
        for k, name in enumerate(_short(names)):
            values = [getattr(report.layers[k], key) for report in reports]
            ax.plot(steps, values, label=name, clip_on=False, **_line(k, len(reports)))
        top = max(getattr(layer, key) for report in reports for layer in report.layers)
        ax.set_ylim(0.0, max(1.05 * top, 0.05) if key == "churn" else max(1.0, top))
        ax.set_ylabel(label)
        tidy(ax)
    axes[-1].set_xlabel("steps of training")
    if steps[0] == steps[-1]:
        axes[-1].set_xticks(steps[:1])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8.5, frameon=False)
    return figure


def sparsity_efficiency(reports: Sequence[Report] | Mapping[str, Sequence[Report]]) -> Figure:
    """Draw accuracy, and accuracy for each weight, over the weights that are not pruned.

    Parameters
    ----------
    reports
        Reports with an accuracy, of models of several sparsities or of one in training; or several
        such lists by the name of their line. Points of a line go by their number of weights.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels; axes are logarithmic where all numbers are above 0.

    Raises
    ------
    OptionError
        There is no report, or one is without an accuracy.
    MissingDependencyError
        The extra ``plot`` is not installed.

    Examples
    --------
    >>> dense = Report(100, (LayerReport("weight", 100, 100, 100, 0.0, 400),), accuracy=0.9)
    >>> sparse = Report(100, (LayerReport("weight", 100, 10, 100, 0.0, 400),), accuracy=0.8)
    >>> figure = sparsity_efficiency({"rigl": [dense, sparse]})
    >>> figure.axes[1].lines[0].get_ydata().tolist()
    [0.08, 0.009000000000000001]
    """
    lines = dict(reports) if isinstance(reports, Mapping) else {"": reports}
    if not lines:
        raise OptionError("`reports` is empty; give lists of reports by the name of their line")
    for name, line in lines.items():
        _check_accuracies(f"`reports[{name!r}]`" if name else "`reports`", line)
    figure, axes = new_figure(2, 1, (_WIDTH, 5.2), share_x=True)
    for k, line in enumerate(lines.values()):
        rising = sorted(line, key=lambda report: report.active)
        weights = [report.active for report in rising]
        for ax, key in zip(axes, ("accuracy", "efficiency"), strict=True):
            ax.plot(weights, [getattr(r, key) for r in rising], **_line(k, len(rising)))
    axes[0].set_ylabel("accuracy")
    axes[1].set_ylabel("accuracy / weight")
    axes[1].set_xlabel("weights that are not pruned")
    every = [report for line in lines.values() for report in line]
    if min(report.active for report in every) > 0:
        axes[0].set_xscale("log")
    if min(report.efficiency or 0.0 for report in every) > 0:
        axes[1].set_yscale("log")
    for ax in axes:
        tidy(ax)
    if isinstance(reports, Mapping):
        names = _short(list(lines))
        figure.legend(axes[0].lines, names, loc="outside right upper", fontsize=8.5, frameon=False)
    return figure


def _check_accuracies(argument: str, reports: Sequence[Report]) -> None:
    """Raise unless there are reports, all of them with an accuracy."""
    if not reports:
        raise OptionError(f"{argument} is empty; collect sparsifier.report(accuracy=...)")
    for report in reports:
        if report.accuracy is None:
            raise OptionError(
                f"{argument} has a report, after {report.steps} steps, without an accuracy; take "
                "it by sparsifier.report(accuracy=...)"
            )


def _check_history(reports: Sequence[Report]) -> list[str]:
    """Return the names of the layers, or raise unless all reports have the same."""
    if not reports:
        raise OptionError("`reports` is empty; collect sparsifier.report() during training")
    names = _names(reports[0])
    for report in reports:
        if not names or _names(report) != names:
            raise OptionError(
                f"`reports` are of different layers: {', '.join(names)} after {reports[0].steps} "
                f"steps, {', '.join(_names(report))} after {report.steps}; give those of one "
                "sparsifier"
            )
    return names


# -- panels ------------------------------------------------------------------------------------


def _draw_layers(ax: Axes, report: Report, names: list[str]) -> None:
    """Bars of sparsity, diamonds at exploration."""
    rows = np.arange(len(names))
    sparsity = [r.sparsity for r in report.layers]
    explored = [r.exploration for r in report.layers]
    ax.barh(rows, sparsity, height=0.68, color=BLUE, label="pruned now (sparsity)")
    ax.plot(
        explored,
        rows,
        "D",
        color=ORANGE,
        markeredgecolor="white",
        markersize=7,
        clip_on=False,
        zorder=3,
        label="exploration",
    )
    for row, layer in enumerate(report.layers):
        text = f"{layer.active:,} of {layer.size:,} left"
        ax.annotate(
            text,
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    _rows(ax, names)
    ax.set_xlim(0.0, max(1.0, *explored, *sparsity))
    ax.set_xlabel("weights / size of the layer")
    place: dict[str, Any] = {"bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.0}
    ax.legend(loc="lower left", ncols=2, fontsize=8.5, frameon=False, **place)
    tidy(ax)


def _draw_regions(ax: Axes, layers: list[LayerReport], names: dict[str, str]) -> None:
    labels = list(dict.fromkeys(region.label for r in layers for region in r.regions))
    values = np.full((len(layers), len(labels)), np.nan)
    for row, layer in enumerate(layers):
        for region in layer.regions:
            values[row, labels.index(region.label)] = region.sparsity
    short = _short([str(label) for label in labels])
    _draw_table(ax, values, [names[r.name] for r in layers], short, "sparsity", 1.0)
    ax.set_xlabel("region of the sites")


def _draw_distances(ax: Axes, layers: list[LayerReport], names: dict[str, str]) -> None:
    ends = [f"{end / 1e3:g}" for end in DISTANCE_BINS]
    counts = np.array([r.distances for r in layers], dtype=np.float64)
    values = counts / counts.sum(1, keepdims=True)
    shown = [names[r.name] for r in layers]
    _draw_table(ax, values, shown, ends, "fraction of edges", float(values.max()))
    ax.set_xlabel("distance between site and source [km]")


def _draw_table(
    ax: Axes,
    values: FloatArray,
    rows: list[str],
    columns: list[str],
    label: str,
    top: float,
) -> None:
    """Bars for one row; for several, a cell for each row and column.

    `columns` are labels of the columns, or of their ends: one more.
    """
    count = values.shape[1]
    if len(rows) == 1:
        between = len(columns) > count
        ax.bar(np.arange(count), values[0], width=0.94 if between else 0.8, color=BLUE)
        ax.set_xlim(-0.5, count - 0.5)
        ax.set_ylim(0.0, top if top == 1.0 else 1.08 * top)
        ax.set_ylabel(label)
        ax.set_title(rows[0], loc="left")
    else:
        mesh = ax.pcolormesh(
            np.arange(count + 1) - 0.5,
            np.arange(len(rows) + 1) - 0.5,
            np.ma.masked_invalid(values),
            cmap="cividis",
            vmin=0.0,
            vmax=top,
            edgecolors="white",
            linewidth=1.0 if count <= _MOST_CELLS else 0.2,
        )
        _rows(ax, rows)
        bar = ax.figure.colorbar(mesh, ax=ax, label=label, pad=0.02, aspect=12)
        bar.outline.set_visible(False)
        if count <= _MOST_CELLS:
            _write_cells(ax, values, top)
    _name_columns(ax, columns, count)
    tidy(ax)


def _name_columns(ax: Axes, names: Sequence[str], count: int) -> None:
    """Name columns or their ends; turned where they are long, every second where they are many."""
    every = -(-len(names) // _MOST_NAMES)
    at = np.arange(len(names)) - 0.5 * (len(names) - count)
    turned = sum(map(len, names)) > 60
    ax.set_xticks(at[::every], names[::every], rotation=90 if turned else 0)


def _write_cells(ax: Axes, values: FloatArray, top: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < 0.55 * top else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)


# -- what panels share -------------------------------------------------------------------------


def _height(rows: int) -> float:
    return 0.95 + _ROW * max(2, rows)


def _table_height(layers: Sequence[LayerReport]) -> float:
    """Inches of a panel of bars, or of a table with room for turned labels."""
    return 2.6 if len(layers) == 1 else _height(len(layers)) + 0.35


def _rows(ax: Axes, names: Sequence[str]) -> None:
    """Name the rows, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)


def _line(number: int, points: int) -> dict[str, Any]:
    """Colour and dashes of a line, and marks where there are few points."""
    style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
    mark = "o" if points <= 20 else None
    colour = _COLOURS[number % len(_COLOURS)]
    return {"color": colour, "linestyle": style, "linewidth": 1.6, "marker": mark, "markersize": 4}


def _names(report: Report) -> list[str]:
    return [layer.name for layer in report.layers]


def _short(names: Sequence[str]) -> list[str]:
    """Cut long names, in the middle or where all of them stay different; else leave them.

    Examples
    --------
    >>> _short(["weight", "a_module_of_a_model.with_a_long_name.weight"])
    ['weight', 'a_module_of_a_…ong_name.weight']
    >>> _short([f"a_module_of_a_model.blocks.{i}.with_a_long_name.weight" for i in (0, 1)])
    ['a_module_of_a_model.blocks.0.…', 'a_module_of_a_model.blocks.1.…']
    """
    for head in (14, 19, 24, _LONGEST - 1, 9, 4, 0):
        tail = _LONGEST - 1 - head
        cut = [n if len(n) <= _LONGEST else f"{n[:head]}…{n[len(n) - tail :]}" for n in names]
        if len(set(cut)) == len(set(names)):
            return cut
    return list(names)
