"""The demonstration: correct a real seasonal rainfall ensemble, or a simulated one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xarray as xr

from scisparse import datasets
from scisparse.errors import DataError, MissingDependencyError
from scisparse.files import write_data
from scisparse.postprocess.cross import CrossPrediction, Fold, join_times, leave_one_out
from scisparse.verification import evaluate

__all__ = ["Case", "baselines", "rainfall_case", "run", "simulated_case"]

METHODS = ("emos", "emos_local", "local", "unet_local")
_TRAINED = 0.75  # share of the simulated cases that is trained on


@dataclass(frozen=True)
class Case:
    """A forecast, its truth, and how to split them.

    Attributes
    ----------
    title
        One line on what it is.
    forecast, observed, target, groups
        As in :class:`~scisparse.postprocess.PostProcessor`.
    folds
        Training and test cases.
    last
        What the last test case is, as the title of its map.
    """

    title: str
    forecast: xr.Dataset
    observed: xr.DataArray
    target: str
    groups: str | None
    folds: list[Fold]
    last: str

    @property
    def tested(self) -> xr.DataArray:
        """Observations of the test cases."""
        return self.observed.isel(time=np.concatenate([test for _, test in self.folds]))


def rainfall_case() -> Case:
    """Seasonal rainfall over South Asia, 30 members of two models, each year left out in turn.

    Raises
    ------
    DataError
        The data are neither here nor to be had.
    """
    data = datasets.load("nmme_south_asia")
    return Case(
        "June to August rainfall over South Asia, forecast in May 1991-2020, leave one year out",
        data[["precipitation"]],
        data["observed"],
        "precipitation",
        "model",
        leave_one_out(data.sizes["time"]),
        f"June to August rainfall of {int(data['time'].dt.year[-1])}",
    )


def simulated_case() -> Case:
    """Temperature of a simulated climate, the last quarter of the times left out."""
    data = datasets.simulated_ensemble()
    cases = np.arange(data.sizes["time"])
    fold = np.split(cases, [round(_TRAINED * len(cases))])
    return Case(
        "temperature of a simulated climate, trained on the first three quarters of the times",
        data[["temperature"]],
        data["observed"],
        "temperature",
        None,
        [(fold[0], fold[1])],
        f"temperature of {np.datetime_as_string(data['time'].values[-1], 'D')}",
    )


def baselines(case: Case) -> dict[str, xr.Dataset]:
    """Raw ensemble, bias removed per model and point, climatology (normal, and as an ensemble)."""
    parts: dict[str, list[xr.Dataset]] = {}
    for train, test in case.folds:
        for name, part in _baselines_of_fold(case, train, test).items():
            parts.setdefault(name, []).append(part)
    return {name: join_times(found) for name, found in parts.items()}


def _baselines_of_fold(case: Case, train: np.ndarray, test: np.ndarray) -> dict[str, xr.Dataset]:
    field, target = case.forecast[case.target], case.target
    past, seen = field.isel(time=train), case.observed.isel(time=train)
    mean = past.mean(["time", "member"])
    if case.groups is not None:
        group = field[case.groups]
        mean = past.mean("time").groupby(group).mean("member").sel({case.groups: group})
    unbiased = field.isel(time=test) - mean + seen.mean("time")
    times = field["time"].isel(time=test)
    climatology = xr.Dataset(
        {f"{target}_mean": seen.mean("time"), f"{target}_std": seen.std("time", ddof=1)}
    ).expand_dims(time=times)
    ensemble = seen.drop_vars("time").rename(time="member").expand_dims(time=times)
    made = {
        "raw ensemble": field.isel(time=test).to_dataset(name=target),
        "bias removed": unbiased.to_dataset(name=target),
        "climatology, normal": climatology,
        "climatology, ensemble": ensemble.to_dataset(name=target),
    }
    for dataset in made.values():
        for variable in dataset.data_vars.values():
            variable.attrs["units"] = field.attrs.get("units", "1")
    return {
        name: dataset.drop_vars(case.groups or [], errors="ignore")
        for name, dataset in made.items()
    }


def run(
    output: Path,
    *,
    simulated: bool = False,
    jobs: int | None = None,
    say: Callable[[str], None] = print,
) -> xr.Dataset:
    """Correct, score and draw; write all of it to `output`.

    Parameters
    ----------
    output
        Folder for ``corrected.nc``, ``scores.csv`` and figures; made when missing.
    simulated
        Use the simulated ensemble even where the real one can be had.
    jobs
        Processes; ``None``: one a core.
    say
        What to do with a line of text.

    Returns
    -------
    Dataset
        CRPS and seconds of each method.

    Raises
    ------
    DataError
        `output` is a file, or cannot be written.
    MissingDependencyError
        The extra ``verify`` or ``plot`` is not installed.
    """
    _require_extras()
    with _writing(output):
        output.mkdir(parents=True, exist_ok=True)
        drafts = Path(tempfile.mkdtemp(dir=output, prefix=".demo."))
    try:
        case = simulated_case() if simulated else _real_or_simulated(say)
        say(case.title)
        predictions, seconds = _predictions(case, jobs, say)
        scores = {
            name: evaluate(prediction, case.tested, target=case.target)
            for name, prediction in predictions.items()
        }
        best = min(METHODS, key=lambda method: float(scores[method]["crps"]))
        table = _table(scores, seconds)
        with _writing(output):
            write_data(predictions[best], drafts / "corrected.nc")
            table.to_dataframe().to_csv(drafts / "scores.csv")
            _draw(case, predictions, scores, best, drafts)
            for path in drafts.iterdir():
                path.replace(output / path.name)
    finally:
        shutil.rmtree(drafts, ignore_errors=True)
    units = scores["raw ensemble"]["crps"].attrs.get("units", "")
    for name, crps in zip(table["forecast"].values, table["crps"].values, strict=True):
        say(f"  {name:24s} CRPS {crps:8.2f} {units}")
    better = table["forecast"].values[table["crps"].values < float(scores[best]["crps"])]
    but = f"; better: {', '.join(better)}" if better.size else ""
    say(
        f"wrote corrected.nc (by {best}, the best of the trained methods{but}), scores.csv, "
        f"figures to {output}"
    )
    return table


def _require_extras() -> None:
    """Raise, before any work, where scores or figures cannot be made."""
    missing = [name for name in ("scores", "scoringrules", "matplotlib") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"the demonstration needs {' and '.join(missing)}, which is not installed; "
            'pip install "scisparse[verify,plot]"'
        )


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Name `output` where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written ({error.strerror or error}); free space or choose "
            "another folder"
        ) from error


def _predictions(
    case: Case, jobs: int | None, say: Callable[[str], None]
) -> tuple[dict[str, xr.Dataset], dict[str, float]]:
    """Baselines and corrections by all methods, and the seconds that these took."""
    predictions, seconds = baselines(case), {}
    cross = CrossPrediction(
        forecast=case.forecast,
        observed=case.observed,
        target=case.target,
        folds=case.folds,
        groups=case.groups,
        jobs=jobs,
    )
    models = "1 model" if len(case.folds) == 1 else f"{len(case.folds)} models"
    for method, prediction, took in cross.predict(METHODS):
        predictions[method], seconds[method] = prediction, took
        say(f"  {method}: {models} trained, {took:.0f} s on one core")
    return predictions, seconds


def _real_or_simulated(say: Callable[[str], None]) -> Case:
    try:
        return rainfall_case()
    except DataError as error:
        say(f"the rainfall data cannot be had, so a simulated ensemble is used: {error}")
        return simulated_case()


def _table(scores: dict[str, xr.Dataset], seconds: dict[str, float]) -> xr.Dataset:
    """Scores by method, worst CRPS first."""
    names = sorted(scores, key=lambda name: -float(scores[name]["crps"]))
    columns = ("crps", "bias", "rmse", "spread_skill_ratio", "count")
    variables = {
        column: ("forecast", [float(scores[name][column]) for name in names]) for column in columns
    }
    variables["seconds"] = ("forecast", [seconds.get(name, np.nan) for name in names])
    return xr.Dataset(variables, coords={"forecast": names})


def _draw(
    case: Case,
    predictions: dict[str, xr.Dataset],
    scores: dict[str, xr.Dataset],
    best: str,
    output: Path,
) -> None:
    from scisparse import plots

    target = case.target
    raw, corrected = predictions["raw ensemble"], predictions[best]
    reference = "climatology, ensemble"
    skill = evaluate(
        corrected, case.tested, reference=predictions[reference], target=target, dims="time"
    )
    mean = raw[target].mean("member").isel(time=-1).where(case.tested.isel(time=-1).notnull())
    figures = {
        "scores": plots.score_table(scores, reference=reference),
        "correction": plots.map_correction(
            mean.assign_attrs(raw[target].attrs), corrected[f"{target}_mean"].isel(time=-1)
        ),
        "skill": plots.map_skill(skill),
        "calibration": plots.rank_histogram(
            {"raw ensemble": scores["raw ensemble"], best: scores[best]},
            independent=case.tested.sizes["time"],  # cells of one time are alike
        ),
    }
    figures["scores"].suptitle(f"CRPS, and how far it is from {reference}")
    figures["correction"].suptitle(f"{case.last}, corrected by {best}")
    figures["skill"].suptitle(f"CRPS of {best} against {reference}")
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=150, bbox_inches="tight")
