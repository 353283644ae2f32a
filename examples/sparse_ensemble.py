# %% [markdown]
# # Which neighbours matter: learned sparsity inside a stencil
#
# Physics says that a cell's weather depends on its surroundings; it does not say on which of them.
# A network of two locally connected layers corrects forecasts of a simulated ensemble: every cell
# has weights of its own for a window of 7 x 7 cells, half a million in all. The dense network
# trains all of them. Sparse ones have a tenth or a twentieth of the edges from the first step on,
# and differ in whether and how the edges move: never (`static`), along the gradient (`rigl`), or
# so with as many edges in every cell (`srigl`).
#
# It takes about a minute on two cores and writes a table and a figure into `examples_output/`;
# `--seeds 5 --steps 1500 --times 5000` takes five and gives the figures in benchmarks/README.md.
#
# **What to see**
# * The dense network learns its training data by heart: its score on cases set aside soon rises
#   again. It counts at its best step.
# * Edges that move find the neighbours that matter: with a tenth of the weights the score is
#   better than that of the dense network.
# * Edges that are drawn once and stay fall behind, the more the fewer they are: many cells lack
#   even the edge from their own forecast.

# %%
from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from scisparse import Sparsifier
from scisparse.datasets import simulated_ensemble
from scisparse.layers import LocallyConnected
from scisparse.losses import crps_normal, weighted_mean
from scisparse.patterns import window

SHAPE, WIDTH, HIDDEN, BATCH = (16, 32), 7, 4, 32
METHODS = ("static", "rigl", "srigl")
SPARSITIES = (0.9, 0.95)
EVERY = 50  # steps between looks at the cases set aside

# %% [markdown]
# ## Data
#
# The forecast is for four days ahead, every third day over many years: ten members of a model
# that is wrong in known ways. Everything is a departure from the mean of the season at the cell in
# units of its spread, both known from the first eight tenths of the cases, which training sees.
# The ninth tenth is set aside to choose when the dense network stops, the last one is the test.


# %%
class Data(NamedTuple):
    """Cases in the order of time."""

    x: Tensor  # [S, cells, 4]: ensemble mean, logarithm of its spread, season as sine and cosine
    y: Tensor  # [S, cells]: what came
    area: Tensor  # [cells]: weights of a mean over the sphere


def ensemble(times: int) -> Data:
    data = simulated_ensemble(SHAPE, times=times, interval=3)
    angle = 2 * np.pi * data.time.dt.dayofyear / 365.25
    season = np.stack([np.sin(angle), np.cos(angle)], 1)

    def departures(values: xr.DataArray) -> Tensor:
        flat = values.values.reshape(times, -1)
        year = np.concatenate([np.ones((times, 1)), season], 1)
        known = slice(0, times * 8 // 10)
        mean = year @ np.linalg.lstsq(year[known], flat[known])[0]
        return torch.tensor((flat - mean) / (flat - mean)[known].std(0), dtype=torch.float32)

    cells = math.prod(SHAPE)
    seasons = torch.tensor(season, dtype=torch.float32)[:, None].expand(times, cells, 2)
    forecast = departures(data.temperature.mean("member"))
    spread = departures(np.log(data.temperature.std("member")))
    x = torch.cat([torch.stack([forecast, spread], 2), seasons], 2)
    area = np.cos(np.deg2rad(data.lat)).broadcast_like(data.land).values
    return Data(x, departures(data.observed), torch.tensor(area.ravel(), dtype=torch.float32))


# %% [markdown]
# ## One training
#
# The network gives mean and spread of a normal distribution in every cell; the loss is its CRPS.


# %%
class Run(NamedTuple):
    """What one training gave."""

    score: float  # CRPS of the test, in spreads of the observations
    weights: int
    curve: list[float]  # CRPS of the cases set aside, every `EVERY` steps


def run(method: str, sparsity: float, steps: int, seed: int, data: Data) -> Run:
    torch.manual_seed(seed)
    pattern = window(SHAPE, WIDTH, padding=WIDTH // 2, padding_mode=("zeros", "circular"))
    model = nn.Sequential(
        LocallyConnected(pattern, 4, HIDDEN), nn.GELU(), LocallyConnected(pattern, HIDDEN, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    sparsifier = Sparsifier(
        model, optimizer, method, sparsity=sparsity, total_steps=steps, seed=seed
    )

    def score(cases: Tensor | slice) -> Tensor:
        mean, log_std = model(data.x[cases]).unbind(-1)
        crps = crps_normal(mean, nn.functional.softplus(log_std) + 0.05, data.y[cases])
        return weighted_mean(crps, data.area)

    count = len(data.y)
    aside, test = slice(count * 8 // 10, count * 9 // 10), slice(count * 9 // 10, count)
    curve, tests = [], []
    for step in range(1, steps + 1):
        loss = score(torch.randint(0, count * 8 // 10, (BATCH,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparsifier.step()
        slower.step()
        if step % EVERY == 0 or step == steps:
            with torch.no_grad():
                curve.append(score(aside).item())
                tests.append(score(test).item())
    # A sparse network is done when its edges have come to rest; the dense one counts at its best.
    best = int(np.argmin(curve)) if sparsity == 0 else -1
    weights = sum(layer.active for layer in sparsifier.report().layers)
    return Run(tests[best], weights, curve)


# %% [markdown]
# ## Table and figure


# %%
Runs = dict[tuple[str, float], list[Run]]


def mean(some: list[Run], key: Callable[[Run], float]) -> tuple[float, float]:
    """Mean over the trainings, and its standard error."""
    values = np.array([key(one) for one in some])
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def table(runs: Runs) -> list[list[str]]:
    dense, _ = mean(runs["dense", 0.0], lambda one: one.score)
    rows = [["method", "sparsity", "CRPS", "standard error", "beside dense [%]", "weights"]]
    for (method, sparsity), some in runs.items():
        score, error = mean(some, lambda one: one.score)
        weights, _ = mean(some, lambda one: one.weights)
        change = f"{100 * (score / dense - 1):+.1f}"
        rows.append(
            [method, f"{sparsity:g}", f"{score:.4f}", f"{error:.4f}", change, f"{weights:.0f}"]
        )
    return rows


def draw(path: Path, runs: Runs, steps: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    at = [*range(EVERY, steps, EVERY), steps]
    colours = {"dense": "black", "static": "C0", "rigl": "C1", "srigl": "C2"}
    for (method, sparsity), some in runs.items():
        label = method if sparsity == 0 else f"{method}, {100 * sparsity:.0f} %"
        style = "--" if sparsity == 0.95 else "-"
        each = np.mean([one.curve for one in some], 0)
        left.plot(at, each, style, color=colours[method], linewidth=1.4, label=label)
    dense = mean(runs["dense", 0.0], lambda one: one.score)
    right.axhline(dense[0], color="black", linewidth=1)
    right.annotate("dense, at its best", (0.02, dense[0]), xycoords=("axes fraction", "data"))
    for method in METHODS:
        each_sparsity = [runs[method, sparsity] for sparsity in SPARSITIES]
        weights = [mean(some, lambda one: one.weights)[0] for some in each_sparsity]
        scores = np.array([mean(some, lambda one: one.score) for some in each_sparsity])
        scores[:, 1] = np.nan_to_num(scores[:, 1])  # one training has no spread
        right.errorbar(weights, *scores.T, color=colours[method], marker="o", capsize=3)
    left.set(xlabel="steps of training", ylabel="CRPS of cases set aside [spreads]")
    right.set(xlabel="weights", ylabel="CRPS of the test [spreads]")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learned sparsity inside a stencil.")
    parser.add_argument("--output", type=Path, default=Path("examples_output"), help="folder")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind")
    parser.add_argument("--steps", type=int, default=500, help="of each training")
    parser.add_argument("--times", type=int, default=2500, help="forecasts")
    options = parser.parse_args(arguments)
    data, seeds = ensemble(options.times), range(options.seeds)
    # Nothing is pruned at sparsity 0: the dense network.
    runs = {("dense", 0.0): [run("static", 0.0, options.steps, seed, data) for seed in seeds]}
    for sparsity in SPARSITIES:
        for method in METHODS:
            runs[method, sparsity] = [
                run(method, sparsity, options.steps, seed, data) for seed in seeds
            ]
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / "sparse_ensemble"
    rows = table(runs)
    with stem.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for row in rows:
        print("".join(word.ljust(18) for word in row).rstrip())
    draw(stem.with_suffix(".png"), runs, options.steps)


if __name__ == "__main__":
    main()
