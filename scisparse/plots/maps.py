"""Maps on grids with rows and columns, and of points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from scisparse.arrays import Frame, find_axes, find_dim, same_points
from scisparse.errors import DataError
from scisparse.grids.same import labels_of, order_of
from scisparse.plots.canvas import label_of
from scisparse.plots.panels import Panel, Scale, check_array, draw, new_panels
from scisparse.times import check_starts
from scisparse.units import check_units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["map_correction", "map_field", "map_skill"]

_SKILL = "RdBu"


def map_field(
    field: xr.DataArray,
    *,
    title: str = "",
    centre: float | None = None,
    limits: tuple[float, float] | None = None,
    colours: str | None = None,
) -> Figure:
    """Draw a field as cells of its grid, or as a marker for each point; missing ones are grey.

    Stations, HEALPix, icosahedral and reduced Gaussian grids are points. Markers of points that are
    evenly spaced and dense are discs on the sphere that make up a field; others are round dots, of
    a size that goes by their number. Points all around the globe are drawn from 180°W to 180°E,
    others in one piece, wherever they lie.

    Parameters
    ----------
    field
        With the dims of its grid alone, in any order. Its ``long_name`` and ``units`` label the
        colours.
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
        `field` has no grid, or a coordinate repeats or is not sorted.
    OptionError
        `centre` or `limits` are not finite, or `limits` fall.
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
    panel = Panel.of(field)
    figure, axes = new_panels([panel])
    scale = Scale.of([panel], centre, limits, colours)
    draw(axes, [panel], [title], scale, label_of(field))
    return figure


def map_correction(
    raw: xr.DataArray, corrected: xr.DataArray, *, colours: str | None = None
) -> Figure:
    """Draw the mean raw forecast, the mean corrected one, and their difference.

    Parameters
    ----------
    raw, corrected
        Forecasts on one grid; means are taken over all other dims, such as times and members. Of
        times, and other dims that both have, only those in both count, and at each point only
        those at which neither is missing: means of other cases would differ by more than the
        correction. Of starts and valid times, those that both have are compared.
    colours
        Name of a diverging colour map for the difference; default ``RdBu_r``, in which red is more.

    Returns
    -------
    matplotlib.figure.Figure
        Three maps: two that share a scale, and the difference around 0.

    Raises
    ------
    DataError
        Units or grids differ, a forecast is a Dataset, one has starts and the other valid times, no
        times are in both, or no point has finite values in both.
    GridError
        A forecast has no grid.
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
        check_array(forecast)
    check_units("the corrected forecast", corrected.attrs.get("units"), raw.attrs.get("units"))
    before, after = _means(*_matched(raw, corrected))
    change = Panel(before.frame, after.values - before.values)
    if not np.isfinite(change.values).any():
        raise DataError("raw and corrected are finite at no point in common; check their masks")
    figure, axes = new_panels([before, after, change])
    titles = ["raw forecast", "corrected forecast"]
    scale = Scale.of([before, after], None, None, None)
    draw(axes[:2], [before, after], titles, scale, label_of(raw))
    units = raw.attrs.get("units", "")
    label = f"change [{units}]" if units else "change"
    scale = Scale.of([change], 0.0, None, colours)
    draw(axes[2:], [change], ["corrected minus raw"], scale, label)
    return figure


def _matched(raw: xr.DataArray, corrected: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Means over members, on the times, and other dims that both have, that are in both."""
    axes = find_axes(raw), find_axes(corrected)
    first, second = (
        field if axis.member is None else field.mean(axis.member)
        for field, axis in zip((raw, corrected), axes, strict=True)
    )
    first, second = _on_one_time(first, second, (axes[0].time, axes[1].time))
    first, second = _widened(first, second), _widened(second, first)
    check_starts(first, second, ("raw", "corrected"))
    check_starts(second, first, ("corrected", "raw"))
    ours, theirs = find_dim(first, "time"), find_dim(second, "time")
    if ours and theirs and ours not in second.dims and theirs not in first.dims:
        second = second.drop_vars(ours, errors="ignore").rename({theirs: ours})
    space = {*axes[0].space, *axes[1].space}
    try:
        matched = xr.align(first, second, join="inner", exclude=space)
    except ValueError as error:  # sizes differ without coordinates, or a coordinate repeats
        reason = str(error).splitlines()[0]
        raise DataError(
            f"cases of raw and corrected cannot be matched ({reason}); give both coordinates "
            "without repeats"
        ) from error
    for dim in {*first.dims} & {*second.dims} - space:
        if matched[0].sizes[dim] == 0:
            raise DataError(
                f"raw and corrected have no value of {dim!r} in common; select the same ones"
            )
    return matched


def _on_one_time(
    first: xr.DataArray, second: xr.DataArray, times: tuple[str | None, str | None]
) -> tuple[xr.DataArray, xr.DataArray]:
    """Both along one coordinate of times that both have; of one time, it stays without a dim."""
    parts = first, second
    for name in ("valid_time", *filter(None, times)):
        if not all(_has_times(part, name, dim) for part, dim in zip(parts, times, strict=True)):
            continue
        # Another name may mean starts in one and valid times in the other.
        meanings = [part[name].attrs.get("standard_name") for part in parts]
        if name == "valid_time" or meanings[0] == meanings[1] is not None:
            first, second = (
                part if dim is None else part.swap_dims({dim: name})
                for part, dim in zip(parts, times, strict=True)
            )
            break
    return first, second


def _has_times(field: xr.DataArray, name: str, dim: str | None) -> bool:
    """Whether a coordinate has one value for each time, no two of them alike."""
    if name not in field.coords or field[name].dims != (() if dim is None else (dim,)):
        return False
    return dim is None or bool(field[name].to_index().is_unique)


def _widened(field: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """With dims of length 1 of single times, and of single values of a dim that `other` has."""
    single = [
        name
        for name, coord in field.coords.items()
        if coord.ndim == 0 and name in other.coords
        if name in other.dims or (other[name].ndim == 0 and _is_time(coord))
    ]
    return field.expand_dims(single)


def _is_time(coord: xr.DataArray) -> bool:
    """Whether one value is a date, also of cftime, or a duration: names may differ."""
    return coord.dtype.kind in "mM" or hasattr(coord.item(), "calendar")


def _means(raw: xr.DataArray, corrected: xr.DataArray) -> tuple[Panel, Panel]:
    """Means over the cases that have both, at each point."""
    frames = Frame.of(raw), Frame.of(corrected)
    grids = frames[1].grid, frames[0].grid
    order = order_of(*grids, (labels_of(corrected), labels_of(raw)))
    if order is not None:
        frames = frames[0], Frame(grids[1], frames[1].space, (order,))
    elif not same_points(*grids):
        raise DataError(
            f"raw is on {frames[0].grid!r} but corrected on {frames[1].grid!r}; interpolate "
            "one to the grid of the other"
        )
    dims = [
        [str(dim) for dim in f.dims if dim not in frame.space]
        for f, frame in zip((raw, corrected), frames, strict=True)
    ]
    shared = [dim for dim in dims[0] if dim in dims[1]]
    values = [
        frame.values(field.mean([dim for dim in own if dim not in shared]), shared)
        for frame, field, own in zip(frames, (raw, corrected), dims, strict=True)
    ]
    both = np.isfinite(values[0]) & np.isfinite(values[1])
    over = tuple(range(len(shared)))
    count = both.sum(over)
    first, second = (
        np.divide(
            np.where(both, array, 0.0).sum(over), count,
            out=np.full(count.shape, np.nan), where=count > 0,
        )
        for array in values
    )  # fmt: skip
    return Panel(frames[0], first), Panel(frames[1], second)


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
        It has no grid.
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
    panel = Panel.of(skill)
    reach = min(1.0, float(np.nanquantile(np.abs(panel.values), 0.99)))
    reach = reach if reach > 0 else 1.0
    figure, axes = new_panels([panel])
    scale = Scale.of([panel], 0.0, (-reach, reach), _SKILL if colours is None else colours)
    better = float(np.mean(panel.values[np.isfinite(panel.values)] > 0))
    title = f"better than the reference at {100 * better:.0f} % of points"
    draw(axes, [panel], [title], scale, label_of(skill))
    return figure
