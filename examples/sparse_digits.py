# %% [markdown]
# # How much of a network is needed: handwritten digits
#
# A network of three linear layers (64 - 256 - 256 - 10) learns the 1797 digits of scikit-learn,
# dense and at several sparsities, with the same steps for all. Each method trains a sparse network
# from the first step on; they differ in whether and how connections move.
#
# It takes about a minute on two cores and writes a table and two figures into `examples_output/`;
# `--seeds 5 --steps 1500` takes ten and gives the figures in the README.
#
# **What to see**
# * Sparse networks whose connections follow the gradient (`rigl`) keep nearly all of the accuracy
#   of the dense one, with a tenth of the weights; constant fan-in (`srigl`), which runs as fast
#   gathers, costs a little.
# * Random connections that never move (`static`) fall behind, the more the sparser they are.
# * Accuracy for each weight that is left rises steeply with sparsity: most weights are not needed.
# * The right figure shows what was tried: a sparse network sees many more connections in training
#   than it has at any time.

# %%
from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from scisparse import Sparsifier

METHODS = ("static", "rigl", "srigl")
SPARSITIES = (0.9, 0.95, 0.98)
BATCH, TRAINING = 128, 1200

# %% [markdown]
# ## Data and one training
#
# The loop is the usual one and a line more: `sparsifier.step()`.


# %%
class Run(NamedTuple):
    """What one training gave."""

    accuracy: float  # percent of the digits that training has not seen
    weights: int
    tried: float  # fraction of all weights that were active at some time


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return torch.tensor(images[order], dtype=torch.float32) / 16, torch.tensor(labels[order])


def run(method: str, sparsity: float, steps: int, seed: int, data: tuple[Tensor, Tensor]) -> Run:
    images, labels = data
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    sparsifier = Sparsifier(
        model, optimizer, method, sparsity=sparsity, total_steps=steps, seed=seed
    )
    for _ in range(steps):
        some = torch.randint(0, TRAINING, (BATCH,))
        scores = model(images[some])
        loss = nn.functional.cross_entropy(scores, labels[some], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparsifier.step()
        slower.step()
    with torch.no_grad():
        right = model(images[TRAINING:]).argmax(1) == labels[TRAINING:]
    layers = sparsifier.report().layers
    size = sum(layer.size for layer in layers)
    return Run(
        100 * right.float().mean().item(),
        sum(layer.active for layer in layers),
        sum(layer.explored for layer in layers) / size,
    )


# %% [markdown]
# ## Table and figures


# %%
def table(runs: dict[tuple[str, float], list[Run]]) -> list[list[str]]:
    rows = [["method", "sparsity", "accuracy [%]", "standard error", "weights", "exploration"]]
    for (method, sparsity), some in runs.items():
        accuracy = np.array([one.accuracy for one in some])
        error = accuracy.std(ddof=1) / len(some) ** 0.5 if len(some) > 1 else np.nan
        rows.append(
            [
                method,
                f"{sparsity:g}",
                f"{accuracy.mean():.2f}",
                f"{error:.2f}",
                f"{some[0].weights}",
                f"{np.mean([one.tried for one in some]):.2f}",
            ]
        )
    return rows


def draw(path: Path, runs: dict[tuple[str, float], list[Run]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    dense = np.mean([one.accuracy for one in runs["dense", 0.0]])
    left.axhline(float(dense), color="black", linewidth=1, label="dense")
    for method in METHODS:
        means, errors, tried, weights = [], [], [], []
        for sparsity in SPARSITIES:
            some = runs[method, sparsity]
            accuracy = np.array([one.accuracy for one in some])
            means.append(accuracy.mean())
            errors.append(accuracy.std(ddof=1) / len(some) ** 0.5 if len(some) > 1 else 0.0)
            tried.append(np.mean([one.tried for one in some]))
            weights.append(np.mean([one.weights for one in some]))
        left.errorbar(weights, means, errors, marker="o", markersize=4, capsize=3, label=method)
        right.plot(SPARSITIES, tried, marker="o", markersize=4, label=method)
    left.set(xscale="log", xlabel="weights", ylabel="accuracy on unseen digits [%]")
    right.set(xlabel="sparsity", ylabel="fraction of weights explored", ylim=(0, None))
    left.legend(frameon=False)
    right.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Accuracy of sparse networks on digits.")
    parser.add_argument("--output", type=Path, default=Path("examples_output"), help="folder")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind")
    parser.add_argument("--steps", type=int, default=500, help="of each training")
    options = parser.parse_args(arguments)
    data, seeds = digits(), range(options.seeds)
    # Nothing is pruned at sparsity 0: the dense network.
    runs = {("dense", 0.0): [run("static", 0.0, options.steps, seed, data) for seed in seeds]}
    for sparsity in SPARSITIES:
        for method in METHODS:
            runs[method, sparsity] = [
                run(method, sparsity, options.steps, seed, data) for seed in seeds
            ]
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / "sparse_digits"
    rows = table(runs)
    with stem.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for row in rows:
        print("".join(word.ljust(16) for word in row).rstrip())
    draw(stem.with_suffix(".png"), runs)


if __name__ == "__main__":
    main()
