"""Predictions for unseen cases: every fold by a model trained on the others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from scisparse.postprocess.options import Options
from scisparse.postprocess.processor import PostProcessor

__all__ = ["CrossPrediction", "Fold", "MethodPrediction", "join_times", "leave_one_out"]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def leave_one_out(count: int) -> list[Fold]:
    """Training and test cases when each case in turn is left out.

    Examples
    --------
    >>> [(train.tolist(), test.tolist()) for train, test in leave_one_out(3)]
    [([1, 2], [0]), ([0, 2], [1]), ([0, 1], [2])]
    """
    cases = np.arange(count)
    return [(np.delete(cases, case), cases[case : case + 1]) for case in cases]


class MethodPrediction(NamedTuple):
    """Predictions of one method, and the seconds that training and predicting took."""

    method: str
    prediction: xr.Dataset
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CrossPrediction:
    """Predict every fold by a :class:`PostProcessor` trained on the others, in several processes.

    Parameters
    ----------
    forecast, observed
        As in :meth:`PostProcessor.fit`, with the same times in the same order along dim ``time``.
    target, groups, distribution, options, seed
        As in :class:`PostProcessor`.
    folds
        Training and test cases of each fold.
    jobs
        Processes; ``None``: one a core.
    """

    forecast: xr.Dataset
    observed: xr.DataArray
    target: str
    folds: Sequence[Fold]
    groups: str | None = None
    distribution: str = "normal"
    options: Options | None = None
    seed: int = 0
    jobs: int | None = None

    def predict(self, methods: Sequence[str]) -> Iterator[MethodPrediction]:
        """Give each method's predictions of all test cases, and the seconds over all folds."""
        tasks = [(method, number) for method in methods for number in range(len(self.folds))]
        jobs = min(self.jobs or os.cpu_count() or 1, len(tasks))
        if jobs <= 1:
            yield from _by_method(methods, len(self.folds), (self.run(task) for task in tasks))
            return
        context = get_context("spawn")  # a forked copy of torch's thread pool would hang
        with _one_thread_each(), ProcessPoolExecutor(jobs, context, _start, (self,)) as pool:
            yield from _by_method(methods, len(self.folds), pool.map(_run, tasks))

    def run(self, task: tuple[str, int]) -> MethodPrediction:
        """Train one method without one fold and predict that fold."""
        start = time.perf_counter()
        method, number = task
        train, test = self.folds[number]
        model = PostProcessor(
            method,
            target=self.target,
            distribution=self.distribution,
            groups=self.groups,
            options=self.options,
            seed=self.seed,
        )
        model.fit(self.forecast.isel(time=train), self.observed.isel(time=train))
        prediction = model.predict(self.forecast.isel(time=test))
        return MethodPrediction(method, prediction, time.perf_counter() - start)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Start processes whose linear algebra keeps to one core each: it reads this at import."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_shared: list[CrossPrediction] = []


def _start(cross: CrossPrediction) -> None:
    torch.set_num_threads(1)
    _shared[:] = [cross]


def _run(task: tuple[str, int]) -> MethodPrediction:
    return _shared[0].run(task)


def _by_method(
    methods: Sequence[str], folds: int, predictions: Iterator[MethodPrediction]
) -> Iterator[MethodPrediction]:
    for method in methods:
        parts = [next(predictions) for _ in range(folds)]
        joined = join_times([part.prediction for part in parts])
        yield MethodPrediction(method, joined, sum(part.seconds for part in parts))


def join_times(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join Datasets of different times along ``time``."""
    return xr.concat(
        parts,
        "time",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        combine_attrs="override",
    )
