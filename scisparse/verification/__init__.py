"""Verification: scores of predictions against observations, area-weighted, over any dims.

A prediction has one of four forms:

- a distribution: ``<target>_mean`` and ``<target>_std``, or ``<target>_location`` and
  ``<target>_scale``, with the attribute ``distribution`` (default ``"normal"``) and, for a lower
  bound other than 0, ``distribution_lower``;
- an ensemble: ``<target>`` with a member dim, with the attribute ``ensemble_members`` of
  ``"equidistant quantiles"`` where members are the quantiles (k - 1/2) / R, as of the R corrected
  members of ``PostProcessor.predict``, and no random draws;
- quantiles: ``<target>_quantile`` with a dim ``quantile`` that has the levels as its coordinate;
- one value: ``<target>``.

References
----------
Bröcker, J. (2012). Evaluating raw ensembles with the continuous ranked probability score.
doi:10.1002/qj.1891

Ferro, C. A. T. (2014). Fair scores for ensemble forecasts. doi:10.1002/qj.2270

Fortin, V., Abaza, M., Anctil, F. and Turcotte, R. (2014). Why should ensemble spread match the RMSE
of the ensemble mean? doi:10.1175/JHM-D-14-0008.1
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from importlib.util import find_spec
from numbers import Integral

import xarray as xr

from scisparse.arrays import check_object, check_units
from scisparse.errors import DataError, MissingDependencyError, OptionError
from scisparse.times import check_starts
from scisparse.verification.matching import area_weights, match, place_weights
from scisparse.verification.predictions import Ensemble, Prediction
from scisparse.verification.reading import find_target, read_observed, read_prediction

__all__ = ["evaluate"]

_ESTIMATORS = ("fair", "standard")
_Mean = Callable[[xr.DataArray], xr.DataArray]

_DESCRIPTIONS: dict[str, tuple[str, bool]] = {
    "crps": ("continuous ranked probability score", False),
    "bias": ("mean error of the best guess", False),
    "rmse": ("root mean square error of the best guess", False),
    "spread": ("root of the mean predicted variance", False),
    "spread_skill_ratio": ("spread over root mean square error", True),
    "rank_histogram": ("share of observations at each rank among the members", True),
    "pit_histogram": ("share of observations in each bin of predicted probability", True),
    "crps_reference": ("continuous ranked probability score of the reference", False),
    "bias_reference": ("mean error of the best guess of the reference", False),
    "rmse_reference": ("root mean square error of the best guess of the reference", False),
    "crps_skill": ("CRPS skill over the reference", True),
    "rmse_skill": ("RMSE skill over the reference", True),
    "count": ("number of cases", True),
}


def evaluate(
    prediction: xr.Dataset | xr.DataArray,
    observed: xr.Dataset | xr.DataArray,
    *,
    reference: xr.Dataset | xr.DataArray | None = None,
    target: str | None = None,
    dims: str | Iterable[Hashable] | None = None,
    weights: str | xr.DataArray | None = "area",
    estimator: str | None = None,
    bins: int = 10,
) -> xr.Dataset:
    """Score a prediction against observations, and against a reference prediction.

    All are matched by coordinates, in any order of dims. A coordinate of one value without a dim,
    as ``.isel(time=0)`` leaves it, must be the same in all that have it. A case in which any of
    them is missing (NaN) is left out of every score alike.

    Parameters
    ----------
    prediction
        In any form that `scisparse.verification` lists.
    observed
        Observations.
    reference
        Prediction in any form to compare with, such as the raw ensemble or the climatology.
    target
        Name of the predicted variable; default the only one that `prediction` can mean.
    dims
        Dims to average over; default all. ``()`` scores each case.
    weights
        ``"area"``: areas of cells (as cos(latitude) on a regular grid), equal where these are not
        known (no grid, one point, stations); a DataArray; ``None``: equal.
    estimator
        Of the CRPS of ensembles: ``"fair"`` (as if of very many members, of which these are random
        draws; Ferro 2014) or ``"standard"`` (of these members alone). Default for each ensemble the
        one that suits its members: standard where they are equidistant quantiles, which have the
        best standard CRPS of all ensembles of their size (Bröcker 2012), and which the fair one
        would rank above a perfect forecast; else fair.
    bins
        Bins of the PIT histogram.

    Returns
    -------
    xarray.Dataset
        ``crps``; ``bias`` and ``rmse`` of the mean (of quantiles, the median); ``spread``, the root
        of the mean predicted variance (of R members, times 1 + 1 / R); ``spread_skill_ratio``,
        spread / rmse, 1 when calibrated; ``rank_histogram`` or ``pit_histogram``, shares that sum
        to 1; ``count`` of cases. With a reference ``crps_reference``, ``bias_reference``,
        ``rmse_reference`` and ``crps_skill``, ``rmse_skill``: 1 - score / that of the reference.
        The CRPS of an ensemble tells its ``estimator``. Spread and ranks take members for draws.

    Raises
    ------
    DataError
        Units, dims or coordinates do not fit, times of starts meet valid times, values are
        infinite, none is left, or a member is alone.
    OptionError
        Unknown option, dim or target; the fair CRPS of members that are quantiles.
    MissingDependencyError
        The extra ``verify`` is not installed.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> noise = np.random.default_rng(0).normal(size=(1200, 9))
    >>> ensemble = xr.DataArray(noise, dims=("time", "member"), name="t2m")
    >>> scores = evaluate(ensemble[:, 1:], ensemble[:, 0])
    >>> round(float(scores["spread_skill_ratio"]), 1)
    1.0
    """
    _require(weights, estimator, bins)
    given = {"the prediction": prediction, "the observation": observed}
    given |= {} if reference is None else {"the reference": reference}
    for what, data in given.items():
        check_object(data, what)
    del given["the observation"]
    target = find_target(prediction, observed) if target is None else target
    scored = [read_prediction(p, target, estimator, w) for w, p in given.items()]
    truth = read_observed(observed, target)
    units = _common_units(truth, scored)
    areas = area_weights(scored[0].data) if isinstance(weights, str) else None
    scored, truth = _matched(scored, truth)
    if isinstance(weights, xr.DataArray):
        areas = place_weights(weights, truth.to_dataset(name=target))
    over = _dims_over(dims, truth)
    scores = _scores(scored, truth, _averaging(areas, over, truth), bins)
    scores["count"] = truth.notnull().sum(over)
    kind = "equal" if areas is None else "area" if isinstance(weights, str) else "given"
    attrs = {"Conventions": "CF-1.11", "title": f"scores of {target}", "weights": kind}
    attrs |= {"averaged_over": ", ".join(over) or "nothing"}
    scores = _described(scores, units).assign_attrs(attrs)
    for name, each in zip(("crps", "crps_reference"), scored, strict=False):
        if isinstance(each, Ensemble):
            scores[name].attrs["estimator"] = each.estimator
    return scores


def _require(weights: object, estimator: str | None, bins: int) -> None:
    """Raise unless options are known and libraries there."""
    if isinstance(weights, str) and weights != "area":
        raise OptionError(f"`weights` is {weights!r}; give 'area', a DataArray or None")
    if estimator is not None and estimator not in _ESTIMATORS:
        known = ", ".join(_ESTIMATORS)
        raise OptionError(f"`estimator` is {estimator!r}; choose one of {known}, or None")
    if isinstance(bins, bool) or not isinstance(bins, Integral) or bins < 1:
        raise OptionError(f"`bins` (={bins!r}) must be a whole number of at least 1")
    missing = [name for name in ("scores", "scoringrules") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"evaluate needs {' and '.join(missing)}, which is not installed; "
            'pip install "scisparse[verify]"'
        )


def _common_units(truth: xr.DataArray, scored: Sequence[Prediction]) -> str | None:
    """Units of all, as far as they are known; an error where they differ."""
    units: str | None = truth.attrs.get("units")
    for prediction in scored:
        check_units(prediction.what, prediction.units, units)
        units = prediction.units if units is None else units
    return units


def _matched(
    scored: Sequence[Prediction], truth: xr.DataArray
) -> tuple[list[Prediction], xr.DataArray]:
    """Return all on shared coordinates, with observations only where nothing is missing."""
    own = [prediction.own_dim for prediction in scored if prediction.own_dim is not None]
    data = [prediction.data for prediction in scored]
    names = [prediction.what for prediction in scored]
    for each in scored:
        check_starts(each.data, truth, (each.what, "the observation"))
    base, *others = match(
        data[0],
        [*data[1:], truth.to_dataset(name="observed")],
        [*names, "the observation"],
        own,
    )
    placed = [p.with_data(d) for p, d in zip(scored, [base, *others[:-1]], strict=True)]
    return placed, _usable(others[-1]["observed"], placed)


def _usable(truth: xr.DataArray, scored: Sequence[Prediction]) -> xr.DataArray:
    """Return the observations of all cases, NaN where anything is missing."""
    valid = truth.notnull()
    for prediction in scored:
        valid = prediction.present() & valid
    if not bool(valid.any()):
        raise DataError(
            f"of {valid.size} cases none has {', '.join(p.what for p in scored)} and the "
            "observation; check for variables that are NaN throughout"
        )
    return truth.broadcast_like(valid).where(valid)


def _dims_over(dims: str | Iterable[Hashable] | None, truth: xr.DataArray) -> list[str]:
    """Return the dims to average over."""
    present = [str(dim) for dim in truth.dims]
    over = present if dims is None else [dims] if isinstance(dims, str) else [str(d) for d in dims]
    unknown = [dim for dim in over if dim not in present]
    if unknown:
        raise OptionError(f"`dims` names {unknown}, but the data have {present}")
    return over


def _averaging(weights: xr.DataArray | None, over: Sequence[str], truth: xr.DataArray) -> _Mean:
    """Return the function that averages cases, leaving missing ones out."""
    if weights is None or not over:
        return lambda values: values.mean(over) if over else values
    known = {dim: truth.indexes[dim] for dim in weights.dims if dim in truth.indexes}
    placed = weights.reindex(known)
    return lambda values: values.weighted(placed).mean(over)


def _scores(
    scored: Sequence[Prediction], truth: xr.DataArray, mean: _Mean, bins: int
) -> xr.Dataset:
    """Return all scores without attributes."""
    prediction = scored[0]
    scores = xr.Dataset(_basic(prediction, truth, mean))
    variance = prediction.variance()
    if variance is not None:
        spread = mean(variance.where(truth.notnull())) ** 0.5
        scores["spread"] = spread
        scores["spread_skill_ratio"] = _divide(spread, scores["rmse"])
    shares = prediction.bins(truth, bins)
    if shares is not None:
        scores[prediction.histogram] = mean(shares)
    for reference in scored[1:]:
        for name, score in _basic(reference, truth, mean).items():
            scores[f"{name}_reference"] = score
        for name in ("crps", "rmse"):
            scores[f"{name}_skill"] = 1.0 - _divide(scores[name], scores[f"{name}_reference"])
    return scores


def _basic(prediction: Prediction, truth: xr.DataArray, mean: _Mean) -> dict[str, xr.DataArray]:
    """Return the scores that every form has."""
    from scores.continuous import additive_bias, mse

    point, observed = xr.broadcast(prediction.point(), truth)
    return {
        "crps": mean(prediction.crps(truth)),
        "bias": mean(additive_bias(point, observed, preserve_dims="all")),
        "rmse": mean(mse(point, observed, preserve_dims="all")) ** 0.5,
    }


def _divide(top: xr.DataArray, bottom: xr.DataArray) -> xr.DataArray:
    """Return the ratio, NaN where the divisor is 0."""
    return top / bottom.where(bottom != 0)


def _described(scores: xr.Dataset, units: str | None) -> xr.Dataset:
    """Give every variable its long name and units."""
    for name, score in scores.items():
        long_name, dimensionless = _DESCRIPTIONS[str(name)]
        score.attrs = {"long_name": long_name}
        if dimensionless or units is not None:
            score.attrs["units"] = "1" if dimensionless else units
    return scores
