"""Histograms of calibration, and tables of scores as figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.errors import DataError, OptionError
from scisparse.plots.canvas import BLUE, FAINT, GREY, ORANGE, label_of, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["rank_histogram", "score_table"]

FloatArray = NDArray[np.float64]
_HISTOGRAMS = {
    "rank_histogram": "rank of the observation",
    "pit_histogram": "predicted probability of lower values",
}
_CONFIDENCE = 0.95
_SKILL = "_skill"
_BEST = {"bias": 0, "spread_skill_ratio": 1}  # scores that are best between high and low
_OVER_ALL = "evaluate over all dims"


def rank_histogram(
    scores: xr.Dataset | Mapping[str, xr.Dataset], *, independent: int | None = None
) -> Figure:
    """Draw rank or PIT histograms, with what a calibrated prediction would show.

    A calibrated prediction has flat bars, up to sampling: within the grey band in 95 % of bins. A
    U says that the spread is too small, a hill that it is too large, a slope that there is a bias.

    Parameters
    ----------
    scores
        Result of ``evaluate`` over all dims, or several by name, one panel each.
    independent
        Number of independent cases, for the band; default the ``count`` of the scores. Points near
        each other are not independent: the band of, say, times * regions is more honest.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    DataError
        The scores have no histogram, or one for each point.
    OptionError
        `independent` is less than 1, or there is nothing to draw.
    MissingDependencyError
        The extra ``plot`` is not installed.

    Examples
    --------
    >>> import xarray as xr
    >>> shares = xr.DataArray([0.2, 0.3, 0.5], {"rank": [1, 2, 3]}, "rank")
    >>> figure = rank_histogram(xr.Dataset({"rank_histogram": shares, "count": 40}))
    >>> len(figure.axes[0].patches)
    3
    """
    named = {"": scores} if isinstance(scores, xr.Dataset) else dict(scores)
    if not named:
        raise OptionError("`scores` is empty; give the result of evaluate, or several by name")
    if independent is not None and independent < 1:
        raise OptionError(f"`independent` (={independent}) must be at least 1")
    panels = [_shares(data) for data in named.values()]
    figure, axes = new_figure(1, len(panels), (0.6 + 3.9 * len(panels), 3.6))
    top = 0.0
    for ax, title, (shares, count) in zip(axes, named, panels, strict=True):
        top = max(top, _draw_histogram(ax, shares, count if independent is None else independent))
        ax.set_title(title, loc="left")
    for ax in axes:
        ax.set_ylim(0.0, 1.12 * top)
    axes[0].set_ylabel("share of observations / even share")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def score_table(
    scores: Mapping[str, xr.Dataset | float],
    *,
    score: str = "crps",
    reference: str | None = None,
) -> Figure:
    """Draw one score of several predictions, best first.

    Where results are of different numbers of cases, which are hard to compare, each row tells its.

    Parameters
    ----------
    scores
        Results of ``evaluate`` over all dims, or numbers, by the name of the prediction.
    score
        Name of the score in the results, lower is better; of a skill (``<score>_skill``), higher is
        better; or ``"bias"`` or ``"spread_skill_ratio"``, which are best at 0 and at 1.
    reference
        Name of the prediction to compare with: a line is drawn, and the change in percent is
        written beside each value, the difference where higher may be better.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    DataError
        A result has no such score, more than one value of it, or one that is not finite.
    OptionError
        There are no scores, or `reference` is not one of them.
    MissingDependencyError
        The extra ``plot`` is not installed.

    Examples
    --------
    >>> figure = score_table({"raw": 2.0, "corrected": 1.5}, reference="raw")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['raw', 'corrected']
    """
    if not scores:
        raise OptionError("`scores` is empty; give results of evaluate by name")
    if reference is not None and reference not in scores:
        raise OptionError(f"`reference` is {reference!r}; the scores are {list(scores)}")
    values = {name: _number(name, data, score) for name, data in scores.items()}
    names = sorted(values, key=lambda name: _badness(score, values[name]), reverse=True)
    figure, (ax,) = new_figure(1, 1, (6.4, 1.1 + 0.34 * len(names)))
    base = None if reference is None else values[reference]
    if base is not None:
        ax.axvline(base, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    _widen(ax, list(values.values()))
    for row, name in enumerate(names):
        _draw_row(ax, row, score, values[name], base)
    ax.set_yticks(range(len(names)), _with_counts(names, scores))
    ax.set_ylim(-0.6, len(names) - 0.4)
    tidy(ax)
    ax.tick_params(axis="y", length=0, labelsize=10)
    ax.spines["left"].set_visible(False)
    order = "higher is better" if score.endswith(_SKILL) else "lower is better"
    order = f"best at {_BEST[score]}" if score in _BEST else order
    ax.set_xlabel(f"{_score_label(scores, score)}, {order}", loc="right")
    return figure


def _shares(scores: xr.Dataset) -> tuple[xr.DataArray, int]:
    """Return the histogram and the number of cases."""
    names = [name for name in _HISTOGRAMS if name in scores]
    if not names:
        raise DataError(
            f"`scores` has no {' or '.join(map(repr, _HISTOGRAMS))}, but "
            f"{[str(name) for name in scores.data_vars]}; a single value has no spread to judge"
        )
    shares = scores[names[0]]
    if shares.ndim != 1:
        raise DataError(
            f"{names[0]!r} has dims {shares.dims}; evaluate over all dims, or select one point"
        )
    return shares, int(scores["count"])


def _draw_histogram(ax: Axes, shares: xr.DataArray, count: int) -> float:
    """Draw bars relative to even ones, and return the height of the highest thing drawn."""
    from scipy.stats import binom

    bins = shares.size
    heights: FloatArray = shares.values * bins
    tail = 0.5 * (1.0 - _CONFIDENCE)
    low, high = binom.ppf([tail, 1.0 - tail], count, 1.0 / bins) * bins / count
    at = np.asarray(shares[shares.dims[0]].values, dtype=np.float64)
    width = float(at[1] - at[0]) if bins > 1 else 1.0
    ax.bar(at, heights, width=0.9 * width, color=BLUE, zorder=2)
    ends = (at[0] - 0.5 * width, at[-1] + 0.5 * width)
    label = f"95 % sampling band ({count:,} cases)"
    ax.fill_between(ends, low, high, color="black", alpha=0.22, linewidth=0, zorder=3, label=label)
    ax.plot(ends, (1.0, 1.0), color="black", linewidth=1.0, zorder=4, label="calibrated")
    ax.set_xlim(*ends)
    ax.set_xlabel(_HISTOGRAMS[str(shares.name)])
    tidy(ax)
    return float(max(heights.max(), high))


def _number(name: str, scores: xr.Dataset | float, score: str) -> float:
    if not isinstance(scores, xr.Dataset):
        value = float(scores)
    elif score not in scores:
        raise DataError(
            f"{name!r} has no score {score!r}, but {[str(n) for n in scores.data_vars]}; name one"
        )
    elif scores[score].size != 1:
        dims = scores[score].dims
        remedy = "select one, with .sel(threshold=...)" if dims == ("threshold",) else _OVER_ALL
        raise DataError(f"{score!r} of {name!r} has dims {dims}; {remedy}")
    else:
        value = float(scores[score].item())
    if not np.isfinite(value):
        raise DataError(f"{score!r} of {name!r} is {value}; leave {name!r} out")
    return value


def _with_counts(names: list[str], scores: Mapping[str, xr.Dataset | float]) -> list[str]:
    """Names as labels, with the numbers of cases where these differ."""
    counts = {
        name: int(data["count"].item())
        for name, data in scores.items()
        if isinstance(data, xr.Dataset) and "count" in data and data["count"].size == 1
    }
    if len({*counts.values()}) < 2:
        return names
    return [f"{name} ({counts[name]:,} cases)" if name in counts else name for name in names]


def _score_label(scores: Mapping[str, xr.Dataset | float], score: str) -> str:
    for data in scores.values():
        if isinstance(data, xr.Dataset):
            return label_of(data[score])
    return score


def _badness(score: str, value: float) -> float:
    """How far from good; 0 is as good as can be where the best value is known."""
    if score in _BEST:
        return abs(value - _BEST[score])
    return -value if score.endswith(_SKILL) else value


def _draw_row(ax: Axes, row: int, score: str, value: float, base: float | None) -> None:
    """Draw one dot with its value, and its change from `base`."""
    left = ax.get_xlim()[0]
    ax.hlines(row, left, value, color=FAINT, linewidth=1.5, zorder=0)
    better = base is None or _badness(score, value) <= _badness(score, base)
    ax.plot(
        value,
        row,
        "o" if better else "D",
        clip_on=False,
        color=BLUE if better else ORANGE,
        markersize=7,
    )
    text = f"{value:.4g}"
    if base is not None and value != base and (score in _BEST or score.endswith(_SKILL)):
        text += f"  ({value - base:+.3g})"
    elif base and value != base:
        text += f"  ({100.0 * (value / base - 1.0):+.1f} %)"
    ax.annotate(
        text,
        (value, row),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )


def _widen(ax: Axes, values: list[float]) -> None:
    """Leave room for the text to the right of the dots."""
    low, high = min(values), max(values)
    span = high - low if high > low else max(abs(high), 1.0)
    ax.set_xlim(low - 0.06 * span, high + 0.45 * span)
