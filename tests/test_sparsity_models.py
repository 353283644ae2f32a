"""Models that sparsifiers meet seldom: cast while they train, without values, over loaded edges."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sparsity_cases import adam, batches, masks, network, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.layers import SparseLinear
from scisparse.sparsity import Sparsifier, schedules


def cast(optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        state |= {k: v.double() for k, v in state.items() if isinstance(v, Tensor) and v.dim()}


@pytest.mark.parametrize("method", ["sparse_momentum", "movement", "rigl", "top_kast", "l0"])
@pytest.mark.parametrize("build", [network, lambda: nn.Sequential(SparseLinear(12, 6, fan_in=6))])
def test_a_model_that_gets_another_precision_while_it_trains(build: Any, method: str) -> None:
    seed()
    model, data = build(), batches(16)
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, method, sparsity=0.7, total_steps=40)
    train(model, optimizer, sparsifier, data[:6])
    model.double()
    cast(optimizer)
    train(model, optimizer, sparsifier, [(x.double(), y.double()) for x, y in data[6:]])
    assert sparsifier.report().steps == 16


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # of torch's own
def test_weights_without_values() -> None:
    with torch.device("meta"):
        model = network()
    with pytest.raises(OptionError, match=r"0.weight is on the device 'meta' .* model.to_empty"):
        Sparsifier(model, adam(model), "rigl", sparsity=0.7, total_steps=40)
    empty = network((12, 20, 0))
    optimizer = adam(empty)
    sparsifier = Sparsifier(empty, optimizer, "rigl", sparsity=0.7, total_steps=40)
    train(empty, optimizer, sparsifier, batches(3, 12, 0))
    assert [target.name for target in sparsifier.targets] == ["0.weight"]
    assert sparsifier.finalize()(torch.randn(2, 12)).shape == (2, 0)


@pytest.mark.parametrize("method", ["l0", "gmp"])
def test_a_layer_that_loads_other_edges_with_its_gates(method: str) -> None:
    """Random edges are others in a model that is built again without the same seed."""

    def build(number: int) -> tuple[nn.Sequential, torch.optim.Optimizer, Sparsifier]:
        seed(number)
        model = nn.Sequential(SparseLinear(12, 20, fan_in=6), nn.Tanh(), SparseLinear(20, 6, 9))
        optimizer = adam(model)
        schedule = schedules.Cubic(0, 12, 3)
        return (
            model,
            optimizer,
            Sparsifier(model, optimizer, method, sparsity=0.5, schedule=schedule),
        )

    data = batches(14)
    model, optimizer, sparsifier = build(0)
    train(model, optimizer, sparsifier, data[:7])
    states = copy.deepcopy([part.state_dict() for part in (model, optimizer, sparsifier)])
    expected = train(model, optimizer, sparsifier, data[7:])
    parts = build(1)
    assert parts[0][0].pattern != model[0].pattern
    for number, state in enumerate(states):
        part: Any = parts[number]
        part.load_state_dict(state)
    assert train(*parts, data[7:]) == expected
    assert parts[0][0].pattern == model[0].pattern
    x = data[0][0]
    assert torch.equal(parts[2].finalize("condensed")(x), sparsifier.finalize("condensed")(x))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("method", ["rigl", "magnitude", "l0"])
def test_rewinding_leaves_alone_what_another_sparsifier_holds(method: str, first: bool) -> None:
    """Its edges are others by now, its pruned weights were there, its gates were not."""
    seed()
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), SparseLinear(20, 6, 8))
    optimizer, start = adam(model), model.get_parameter("0.weight").detach().clone()
    given: list[dict[str, Any]] = [
        {"method": "lottery", "schedule": schedules.Iterative(2, 4), "params": ["0"]},
        {"method": method, "total_steps": 40, "params": ["2"]},
    ]
    order = 1 if first else -1
    built = [Sparsifier(model, optimizer, sparsity=0.7, **one) for one in given[::order]]
    lottery, other = built[::order]
    for batch in batches(4):
        train(model, optimizer, other, [batch])
        weight = other.targets[0].parameter
        assert weight is not None
        before = weight.detach().clone()
        lottery.step()
        assert torch.equal(weight, before)
    (mask,) = masks(lottery)
    assert 0 < int(mask.sum()) < mask.numel()
    assert torch.equal(model.get_parameter("0.weight"), start * mask)
