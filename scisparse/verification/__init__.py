r"""Verification: scores of predictions against observations, area-weighted, over any dims.

A prediction has one of five forms:

- a distribution: ``<target>_mean`` and ``<target>_std``, or ``<target>_location`` and
  ``<target>_scale``, with the attribute ``distribution`` (default ``"normal"``) and, for a lower
  bound other than 0, ``distribution_lower``;
- an ensemble: ``<target>`` with a member dim, with the attribute ``ensemble_members`` of
  ``"equidistant quantiles"`` where members are the quantiles (k - 1/2) / R, as of the R corrected
  members of ``PostProcessor.predict``, and no random draws;
- quantiles: ``<target>_quantile`` with a dim ``quantile`` that has the levels as its coordinate;
- probabilities of exceedance: ``<target>_probability`` with a dim ``threshold`` that has the
  thresholds as its coordinate, in units of the target;
- one value: ``<target>``.

A few quantiles determine no CRPS, so they have a score of their own:

.. math:: \mathrm{QS} = 2 \sum_k w_k \, \rho_{p_k}(y - q_k), \quad
          \rho_p(u) = \max(p \, u, (p - 1) \, u),

where q_k is the quantile at level p_k, y the observation, and w_k the probability nearer to p_k
than to other levels. It is proper, in the units of the target, tends to the CRPS as levels fill
the range from 0 to 1 (Laio and Tamea 2007), and is the standard CRPS of R members that are the
quantiles (k - 1/2) / R (Bröcker 2012). With few levels it differs from the CRPS, and with which
levels there are: what quantiles are compared with is scored at the same ones.

The Brier score of an event, here that the observation exceeds a threshold, is
:math:`(p - o)^2` for its probability p, with o = 1 if it happened and 0 if not (Brier 1950).

References
----------
Brier, G. W. (1950). Verification of forecasts expressed in terms of probability.
doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2

Bröcker, J. (2012). Evaluating raw ensembles with the continuous ranked probability score.
doi:10.1002/qj.1891

Ferro, C. A. T. (2014). Fair scores for ensemble forecasts. doi:10.1002/qj.2270

Fortin, V., Abaza, M., Anctil, F. and Turcotte, R. (2014). Why should ensemble spread match the RMSE
of the ensemble mean? doi:10.1175/JHM-D-14-0008.1

Laio, F. and Tamea, S. (2007). Verification tools for probabilistic forecasts of continuous
hydrological variables. doi:10.5194/hess-11-1267-2007
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import check_object, with_coordinates
from scisparse.errors import DataError, MissingDependencyError, OptionError
from scisparse.losses.rising import exceedance_thresholds
from scisparse.names import check_name
from scisparse.times import check_starts, warn_months
from scisparse.units import check_scale, check_units
from scisparse.verification.described import described, in_order
from scisparse.verification.matching import (
    area_weights,
    check_meaning,
    check_repeated,
    match,
    place_weights,
)
from scisparse.verification.pointwise import along_thresholds
from scisparse.verification.predictions import Deterministic, Ensemble, Prediction
from scisparse.verification.reading import (
    field_of,
    find_target,
    read_prediction,
    read_truth,
    warn_ragged,
)
from scisparse.verification.scoring import Mean, all_scores
from scisparse.verification.tabulated import Probabilities
from scisparse.verification.trained import warn_trained

__all__ = ["evaluate"]

FloatArray = NDArray[np.float64]
_ESTIMATORS = ("fair", "standard")
_SUFFIXES = ("", "_reference")


def evaluate(
    prediction: xr.Dataset | xr.DataArray,
    observed: xr.Dataset | xr.DataArray,
    *,
    reference: xr.Dataset | xr.DataArray | None = None,
    target: str | None = None,
    dims: str | Iterable[Hashable] | None = None,
    weights: str | xr.DataArray | None = "area",
    estimator: str | None = None,
    thresholds: Sequence[float] | FloatArray | None = None,
    bins: int = 10,
) -> xr.Dataset:
    """Score a prediction against observations, and against a reference prediction.

    All are matched by coordinates, in any order of dims. A coordinate of one value without a dim,
    as ``.isel(time=0)`` leaves it, must be the same in all that have it; a single time of the
    prediction is looked up in the others. A case in which any of them is missing (NaN) is left out
    of every score alike.

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
        Dims to average over; default all, which must be known then: members, times, lead times,
        the grid, or dims that prediction and observation have. ``()`` scores each case.
    weights
        ``"area"``: areas of cells (as cos(latitude) on a regular grid), equal where these are not
        known (no grid, a curvilinear one, one point, stations); a DataArray; ``None``: equal.
    estimator
        Estimator of the CRPS and the Brier score of ensembles: ``"fair"`` (as if of very many
        members, of which these are random draws; Ferro 2014) or ``"standard"`` (of these members
        alone). Default for each ensemble the one that suits its members: standard where they are
        equidistant quantiles, which have the best standard CRPS of all ensembles of their size
        (Bröcker 2012), and which the fair one would rank above a perfect forecast; else fair.
    thresholds
        Values, in units of the target, to score the probabilities of exceeding them: strictly
        rising numbers. Default those of a prediction, or else reference, of probabilities. Values
        are compared with them in the lowest precision that any comes in.
    bins
        Bins of the PIT histogram.

    Returns
    -------
    xarray.Dataset
        ``crps``, but of quantiles ``quantile_score``; ``bias`` and ``rmse`` of the mean (of
        quantiles, the median); ``spread``, the root of the mean predicted variance (of R members,
        times 1 + 1 / R); ``spread_skill_ratio``, spread / rmse, 1 when calibrated;
        ``rank_histogram`` or ``pit_histogram``, shares that sum to 1; with thresholds
        ``brier_score`` along dim ``threshold``, which is all there is of probabilities; ``count``
        of cases. With a reference ``<score>_reference`` and, of ``crps``, ``rmse``,
        ``quantile_score`` and ``brier_score``, ``<score>_skill``: 1 - score / that of the
        reference. Next to a reference of quantiles, any prediction has a ``quantile_score`` at its
        levels. CRPS and Brier score of an ensemble tell their ``estimator``.
        Spread and ranks take members for draws.

    Raises
    ------
    DataError
        Units, dims or coordinates do not fit, times of starts meet valid times, values are
        infinite, none is left, a member is alone, or levels of quantiles or thresholds of
        probabilities differ.
    GridError
        Areas are asked for, and coordinates of the grid break its rules, as with unknown units.
    OptionError
        Unknown option, dim or target; the fair CRPS of members that are quantiles; thresholds that
        do not rise, or of a prediction that is quantiles.
    MissingDependencyError
        The extra ``verify`` is not installed.

    Warns
    -----
    UserWarning
        One has a time a month and the other has days; more than a tenth of the cases lack some
        members, which leaves them out; or times were in the training of the model, by the
        coordinate ``in_training`` that `PostProcessor.predict` gives.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> noise = np.random.default_rng(0).normal(size=(1200, 9))
    >>> ensemble = xr.DataArray(noise, dims=("time", "member"), name="t2m")
    >>> scores = evaluate(ensemble[:, 1:], ensemble[:, 0])
    >>> round(float(scores["spread_skill_ratio"]), 1)
    1.0

    Probabilities of more than 1.5, as the share of the members:

    >>> scores = evaluate(ensemble[:, 1:], ensemble[:, 0], thresholds=[1.5])
    >>> scores["brier_score"].round(2).values
    array([0.06])
    """
    _require(weights, estimator, bins)
    given = {"the prediction": prediction, "the observation": observed}
    given |= {} if reference is None else {"the reference": reference}
    for what, data in given.items():
        check_object(data, what)
    if target is not None:
        check_name("target", target)
    given = {what: with_coordinates(data, target) for what, data in given.items()}
    seen = given.pop("the observation")
    if target is None:
        target = find_target(given["the prediction"], seen)
    scored = [read_prediction(data, target, estimator, what) for what, data in given.items()]
    truth = read_truth(seen, target)
    units, told = _common_units(truth, scored), truth.attrs.get("units")
    areas = area_weights(scored[0].data, scored[0].what) if isinstance(weights, str) else None
    scored, truth = _matched(scored, truth)
    for each in scored:
        warn_trained(each, truth)
    if isinstance(weights, xr.DataArray):
        areas = place_weights(weights, truth.to_dataset(name=target))
    for each in scored:
        check_scale(each.what, each.units, told, partial(_means, each, truth))
    over = _dims_over(dims, truth)
    for each in scored if dims is None else []:
        check_meaning(each.data, seen, each.what, each.own_dim)
    if dims is None:
        check_repeated(scored[0].data, truth, scored[0].what)
    compared = [seen, *(given[p.what] for p in scored if isinstance(p, Deterministic | Ensemble))]
    dtypes = [field_of(data, target, "data").dtype for data in compared]
    limits = _thresholds(thresholds, scored, dtypes)
    scores = all_scores(scored, truth, _averaging(areas, over, truth), bins, limits)
    scores["count"] = truth.notnull().sum(over)
    kind = "equal" if areas is None else "area" if isinstance(weights, str) else "given"
    attrs = {"Conventions": "CF-1.11", "title": f"scores of {target}", "weights": kind}
    attrs |= {"averaged_over": ", ".join(over) or "nothing"}
    scores = described(in_order(scores, scored[0]), units).assign_attrs(attrs)
    for suffix, each in zip(_SUFFIXES, scored, strict=False):
        for name in {f"crps{suffix}", f"brier_score{suffix}"} & {*scores}:
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
    for each in scored:
        warn_months(each.data, truth, (each.what, "the observation"))
    placed = [p.with_data(d) for p, d in zip(scored, [base, *others[:-1]], strict=True)]
    return placed, _usable(others[-1]["observed"], placed)


def _usable(truth: xr.DataArray, scored: Sequence[Prediction]) -> xr.DataArray:
    """Return the observations of all cases, NaN where anything is missing."""
    valid = truth.notnull()
    for prediction in scored:
        warn_ragged(prediction, truth)
        valid = prediction.present() & valid
    if not bool(valid.any()):
        raise DataError(
            f"of {valid.size} cases none has {', '.join(p.what for p in scored)} and the "
            "observation; check for variables that are NaN throughout"
        )
    return truth.broadcast_like(valid).where(valid)


def _means(prediction: Prediction, truth: xr.DataArray) -> tuple[float, float]:
    """Mean of the best guess, by its mean error, and of the truth; 0 where there is no guess."""
    best = prediction.point()
    if best is None:
        return 0.0, 0.0
    usual = float(truth.mean())
    return usual + float((best - truth).mean()), usual


def _dims_over(dims: str | Iterable[Hashable] | None, truth: xr.DataArray) -> list[str]:
    """Return the dims to average over."""
    present = [str(dim) for dim in truth.dims]
    over = present if dims is None else [dims] if isinstance(dims, str) else [str(d) for d in dims]
    if len({*over}) < len(over):
        raise OptionError(f"`dims` (={over}) names a dim more than once; give each of them once")
    unknown = [dim for dim in over if dim not in present]
    if unknown:
        raise OptionError(f"`dims` names {unknown}, but the data have {present}")
    return over


def _averaging(weights: xr.DataArray | None, over: Sequence[str], truth: xr.DataArray) -> Mean:
    """Return the function that averages cases, leaving missing ones out."""
    if weights is None or not over:
        return lambda values: values.mean(over) if over else values
    known = {dim: truth.indexes[dim] for dim in weights.dims if dim in truth.indexes}
    placed = weights.reindex(known)
    return lambda values: values.weighted(placed).mean(over)


def _thresholds(
    given: Sequence[float] | FloatArray | None,
    scored: Sequence[Prediction],
    dtypes: Sequence[np.dtype[Any]],
) -> xr.DataArray | None:
    """Thresholds to score: the given ones, or the first that a prediction has.

    In the lowest precision of them and of `dtypes`, those of the values to compare with them.
    """
    held = next((each for each in scored if isinstance(each, Probabilities)), None)
    if given is not None:
        values, own = exceedance_thresholds(given), np.asarray(given).dtype
    elif held is not None:
        values, own = held.thresholds, held.data[held.dim].dtype
    else:
        return None
    floats = [np.dtype(np.float64), *(each for each in (own, *dtypes) if each.kind == "f")]
    return along_thresholds(values, min(floats, key=lambda dtype: dtype.itemsize))
