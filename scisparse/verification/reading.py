"""Recognise what was handed over: the target, and the form of a prediction."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr

from scisparse.arrays import find_dim
from scisparse.coordinates import field_names
from scisparse.errors import DataError, OptionError
from scisparse.losses import distribution
from scisparse.units import check_no_fill, check_unpacked, spelled
from scisparse.verification.predictions import Deterministic, Ensemble, Parametric, Prediction
from scisparse.verification.tabulated import Probabilities, Quantiles

__all__ = ["field_of", "find_target", "read_prediction", "read_truth", "warn_ragged"]

_Object = xr.DataArray | xr.Dataset
_QUANTILE, _THRESHOLD, _PROBABILITY = "quantile", "threshold", "probability"
# scisparse.postprocess writes it beside members that are no random draws.
_MEMBERS_ARE, _EQUIDISTANT = "ensemble_members", "equidistant quantiles"
# Share of the cases that are left out for some of their members, beyond which it is told.
_MOST_RAGGED = 0.1


def find_target(prediction: _Object, observed: _Object) -> str:
    """Find the name of the variable that is predicted.

    Raises
    ------
    OptionError
        There is not exactly one candidate; all are named.
    """
    if isinstance(prediction, xr.DataArray):
        named = prediction.name if prediction.name is not None else observed_name(observed)
        return "prediction" if named is None else str(named)
    names = field_names(prediction)
    single = ((name, name) for name in ("_quantile", "_probability"))
    pairs = (("_mean", "_std"), ("_location", "_scale"), *single)
    found = [
        name.removesuffix(first)
        for first, second in pairs
        for name in names
        if name.endswith(first) and name.removesuffix(first) + second in names
    ]
    if not found:
        found = [name for name in names if name == observed_name(observed)] or names
    found = list(dict.fromkeys(found))
    if len(found) != 1:
        raise OptionError(
            f"`target` is not given and the prediction has {len(found)} candidates "
            f"({', '.join(map(repr, found)) or 'no variables'}); name one"
        )
    return found[0]


def field_of(obj: _Object, target: str, what: str) -> xr.DataArray:
    """Take the target, or the only variable there is.

    Raises
    ------
    DataError
        There is no such variable, or several forms of it.
    """
    if isinstance(obj, xr.DataArray):
        return obj
    forms = (f"{target}_{_QUANTILE}", f"{target}_{_PROBABILITY}", target)
    found = [name for name in forms if name in obj.data_vars]
    if len(found) > 1:
        raise DataError(
            f"{what} has {' and '.join(map(repr, found))}, which are scored each in its own way; "
            f"select one, for example with [[{found[-1]!r}]]"
        )
    for name in (*found, f"{target}_mean"):
        if name in obj:
            return obj[name]
    names = field_names(obj)
    if len(names) == 1:
        return obj[names[0]]
    raise DataError(f"{what} has no variable {target!r}, but {names}; rename or select one")


def read_truth(obj: _Object, target: str) -> xr.DataArray:
    """Take the observations.

    Raises
    ------
    DataError
        They have members, or what `checked` finds.
    """
    field = field_of(obj, target, "the observation")
    member = find_dim(field, "member")
    if member is not None:
        raise DataError(
            f"the observation has members along {member!r}; select one, for example with "
            f".isel({member}=0)"
        )
    return checked(field.to_dataset(name=target), "the observation")[target]


def read_prediction(obj: _Object, target: str, estimator: str | None, what: str) -> Prediction:
    """Recognise the form of a prediction.

    Raises
    ------
    DataError
        No form is recognised, or several are, or what `checked` finds.
    OptionError
        The estimator does not suit the members.
    """
    if isinstance(obj, xr.Dataset):
        for first, second in (("location", "scale"), ("mean", "std")):
            if f"{target}_{first}" in obj and f"{target}_{second}" in obj:
                return _parametric(obj, target, (first, second), what)
    field = field_of(obj, target, what)
    member = find_dim(field, "member")
    for dim, suffix, alone in ((_QUANTILE, _QUANTILE, False), (_THRESHOLD, _PROBABILITY, True)):
        stated = str(field.name).endswith(f"_{suffix}") or (alone and member is None)
        if stated and dim in field.coords and field[dim].ndim == 0:
            field = field.expand_dims(dim)  # one was selected
    if member is not None:  # labels of members mean nothing: two models may number theirs alike
        labels = [name for name, coord in field.coords.items() if coord.dims == (member,)]
        field = field.drop_vars(labels)
    data = checked(field.to_dataset(name=target), what)
    if _THRESHOLD in field.dims and spelled(str(field.attrs.get("units", ""))) == "%":
        data = data / 100.0
    for dim, form, values in (
        (_QUANTILE, Quantiles, "levels"),
        (_THRESHOLD, Probabilities, "values"),
    ):
        if dim in field.dims:
            if dim not in field.coords:
                raise DataError(f"{what} has a dim {dim!r} without {values}; assign them to it")
            return form(data, what, dim)
    if member is None:
        return Deterministic(data, what)
    _check_members(data[target], member, what)
    return Ensemble(data, what, member, _estimator(field, estimator, what))


def _check_members(field: xr.DataArray, member: str, what: str) -> None:
    """Raise if some members are missing throughout: no case would be left."""
    missing = field.isnull().all([dim for dim in field.dims if dim != member]).values
    if missing.any() and not missing.all():
        raise DataError(
            f"{missing.sum()} of {missing.size} members of {what}, such as index "
            f"{int(missing.argmax())} along {member!r}, are NaN throughout; drop them, with "
            f".dropna({member!r}, how='all')"
        )


def warn_ragged(prediction: Prediction, truth: xr.DataArray) -> None:
    """Warn where many cases are left out, as of hindcasts with fewer members than forecasts.

    Warns
    -----
    UserWarning
        More than a tenth of the observed cases have some members, but not all.
    """
    ragged = prediction.ragged()
    if ragged is None:
        return
    seen = truth.notnull().broadcast_like(ragged)
    lost, count = int((ragged & seen).sum()), int(seen.sum())
    if lost > _MOST_RAGGED * count:
        warnings.warn(
            f"{lost} of {count} cases of {prediction.what} have some members, but not all, and are "
            "left out of all scores; select the members that all have, or cases of one size",
            UserWarning,
            stacklevel=5,
        )


def _estimator(field: xr.DataArray, asked: str | None, what: str) -> str:
    """Return the estimator of the CRPS that suits the members, or the one asked for."""
    drawn = field.attrs.get(_MEMBERS_ARE) != _EQUIDISTANT
    if asked == "fair" and not drawn:
        raise OptionError(
            f"`estimator` is 'fair', which takes members for random draws, but those of {what} are "
            f"{_EQUIDISTANT} (attribute {_MEMBERS_ARE!r}), which it ranks above a perfect "
            "forecast; use None or 'standard', or drop the attribute to score them as draws"
        )
    if asked is None:
        return "fair" if drawn else "standard"
    return asked


def observed_name(observed: _Object) -> str | None:
    """Return the name of the observed variable, if there is one."""
    if isinstance(observed, xr.DataArray):
        return None if observed.name is None else str(observed.name)
    names = field_names(observed)
    return names[0] if len(names) == 1 else None


def checked(data: xr.Dataset, what: str) -> xr.Dataset:
    """Return float64 values, of which there are some, none infinite, at coordinates that differ.

    They are in memory: every score reads all of them.

    Raises
    ------
    DataError
        Any of it does not hold.
    """
    data = data.compute()
    for name, array in data.items():
        if array.dtype.kind not in "fiub":
            raise DataError(f"{name!r} of {what} has dtype {array.dtype}; it must hold numbers")
        check_unpacked(f"{name!r} of {what}", array.attrs, partial(getattr, array, "values"))
        if array.size == 0:
            raise DataError(
                f"{name!r} of {what} is empty: {dict(array.sizes)}; check the selection"
            )
        infinite = int(np.isinf(array.values).sum())
        if infinite:
            raise DataError(
                f"{name!r} of {what} has {infinite} infinite values; mark missing values as NaN"
            )
        check_no_fill(f"{name!r} of {what}", array.values, array.attrs.get("units"))
    for dim, index in data.indexes.items():
        if index.nlevels > 1:
            raise DataError(
                f"{dim!r} of {what} is a stack of {list(index.names)}; unstack it first, with "
                f".unstack({dim!r})"
            )
        if index.has_duplicates:
            raise DataError(
                f"{dim!r} of {what} holds {index[index.duplicated()][0]} more than once; keep one "
                f"of each, for example with .drop_duplicates({dim!r})"
            )
    return data.astype(np.float64, keep_attrs=True)


def _check_family(obj: xr.Dataset, target: str, attrs: Mapping[Any, Any], what: str) -> None:
    """Raise where no family is told, and parameters are not the moments, as of the default one."""
    location, mean = f"{target}_location", f"{target}_mean"
    if "distribution" in attrs or location not in obj or mean not in obj:
        return
    if bool((abs(obj[location] - obj[mean]) > 1e-5 * abs(obj[mean])).any()):
        raise DataError(
            f"{what} has {mean!r} that is not {location!r}, as of a normal distribution, and no "
            "attribute 'distribution', which operations drop; set it again, for example with "
            ".assign_attrs(distribution='censored_normal')"
        )


def _parametric(obj: xr.Dataset, target: str, pair: tuple[str, str], what: str) -> Parametric:
    """Read a distribution; its moments determine it as well as its parameters do."""
    names = [f"{target}_{suffix}" for suffix in pair]
    data = checked(obj[names], what)
    attrs = {**obj.attrs, **obj[names[0]].attrs}
    _check_family(obj, target, attrs, what)
    lower = float(attrs.get("distribution_lower", 0.0))
    family = distribution(str(attrs.get("distribution", "normal")), lower)
    if pair == ("mean", "std") and family.name != "normal":
        first, second = xr.broadcast(*data.values())
        moments = (torch.from_numpy(np.array(array.values)) for array in (first, second))
        location, scale = family.from_moments(*moments)
        data = data.assign(
            {names[0]: first.copy(data=location.numpy()), names[1]: second.copy(data=scale.numpy())}
        )
    return Parametric(data, what, family)
