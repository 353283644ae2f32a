"""Layers that take no part in the loss of a step, or of none yet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparsity_cases import OFTEN, seed
from torch import nn

from scisparse.errors import OptionError
from scisparse.layers import SparseLinear
from scisparse.sparsity import Sparsifier, schedules, scores
from scisparse.sparsity.schedules import Cubic


class Partly(nn.Module):
    """Two layers, of which a call may leave the second out."""

    def __init__(self, build: Any) -> None:
        super().__init__()
        seed()
        self.first, self.second = build(), build()

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        y: torch.Tensor = self.first(x)
        return self.second(torch.tanh(y)) if both else y


def dense() -> nn.Linear:
    return nn.Linear(9, 9)


def condensed() -> SparseLinear:
    return SparseLinear(9, 9, fan_in=7)


def run(model: Partly, sparsifier: Sparsifier, steps: int, *, late: bool = False) -> None:
    """Leave the second layer out of each step with an even number; `late`: zero_grad is early."""
    optimizer = sparsifier.optimizer
    assert optimizer is not None
    for step in range(1, 1 + steps):
        optimizer.zero_grad()
        model(torch.randn(6, 9), step % 2 == 1).square().mean().backward()
        optimizer.step()
        if late:
            optimizer.zero_grad()
        sparsifier.step()


@pytest.mark.parametrize("build", [dense, condensed])
@pytest.mark.parametrize(
    ("method", "score"), [("rigl", "taylor"), ("set", "snip"), ("mest", None), ("set", scores.snip)]
)
def test_a_layer_that_a_step_leaves_out_stays_as_it_is(build: Any, method: str, score: Any) -> None:
    model = Partly(build)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, optimizer, method, sparsity=0.5, score=score, schedule=OFTEN, budget="uniform"
    )
    run(model, sparsifier, 2)
    first, second = sparsifier.report().layers
    assert first.churn > 0
    assert second.churn == 0


@pytest.mark.parametrize("build", [dense, condensed])
@pytest.mark.parametrize("method", ["mest", "rigl"])
def test_gradients_that_are_emptied_before_a_change_are_missed(build: Any, method: str) -> None:
    model = Partly(build)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule: dict[str, Any] = {"sparsity": 0.5, "schedule": OFTEN, "score": "mest"}
    with pytest.raises(OptionError, match=r"no weight had a .*\.zero_grad\(\) not in between"):
        run(model, Sparsifier(model, optimizer, method, **rule), 2, late=True)


def test_pruning_by_a_gradient_that_is_not_there_names_the_layer() -> None:
    model = Partly(dense)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, optimizer, "gmp", sparsity=0.5, score="taylor", schedule=Cubic(0, 8, 2)
    )
    with pytest.raises(OptionError, match=r"'taylor' reads the gradient of second\.weight, and"):
        run(model, sparsifier, 2)


def test_a_layer_that_was_never_used_has_no_running_mean_to_grow_by() -> None:
    model = Partly(dense)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, optimizer, "sparse_momentum", sparsity=0.5, schedule=OFTEN)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(6, 9), False).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    first, second = sparsifier.report().layers
    assert first.churn > 0
    assert second.churn == 0


SUMS = ["movement", "optimal_brain_damage", "optimal_brain_surgeon"]


def train_the_first(model: Partly, sparsifier: Sparsifier, steps: int) -> None:
    for _ in range(steps):
        assert sparsifier.optimizer is not None
        sparsifier.optimizer.zero_grad()
        model(torch.randn(6, 9), False).square().mean().backward()
        sparsifier.optimizer.step()
        sparsifier.step()


@pytest.mark.parametrize("score", SUMS)
@pytest.mark.parametrize("method", ["set", "rigl", "mest"])
def test_a_layer_without_sums_of_scores_stays_as_it_is(method: str, score: str) -> None:
    model = Partly(dense)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule: dict[str, Any] = {"sparsity": 0.5, "schedule": OFTEN, "budget": "uniform"}
    sparsifier = Sparsifier(model, optimizer, method, score=score, **rule)
    train_the_first(model, sparsifier, 4)
    first, second = sparsifier.report().layers
    assert first.churn > 0
    assert second.churn == 0
    assert second.sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("score", [*SUMS, "taylor", "snip", scores.taylor])
def test_pruning_a_layer_that_was_never_used_names_it_and_the_remedy(score: Any) -> None:
    model = Partly(dense)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule: dict[str, Any] = {"sparsity": 0.5, "schedule": Cubic(0, 8, 2), "score": score}
    sparsifier = Sparsifier(model, optimizer, "gmp", **rule)
    with pytest.raises(OptionError, match=r"of second\.weight.* out of `params`"):
        train_the_first(model, sparsifier, 2)
    sparsifier.release()
    train_the_first(model, Sparsifier(model, optimizer, "gmp", params=["first"], **rule), 8)
    assert int(torch.count_nonzero(model.first.weight)) == 40


@pytest.mark.parametrize("score", SUMS)
def test_sums_that_are_wanted_before_any_training(score: str) -> None:
    model = Partly(dense)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule: dict[str, Any] = {"sparsity": 0.5, "score": score, "params": ["first"]}
    with pytest.raises(OptionError, match=r"of first\.weight over steps, and .*=OneShot\(step\)"):
        Sparsifier(model, optimizer, "magnitude", **rule)
    once = schedules.OneShot(3)
    train_the_first(model, Sparsifier(model, optimizer, "magnitude", schedule=once, **rule), 3)
    assert int(torch.count_nonzero(model.first.weight)) == 40
