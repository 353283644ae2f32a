"""State of optimizers that a sparsifier was not given moves with the weights all the same."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from sparsity_cases import OFTEN, adam, batches, fields, locally, masks, network, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.layers import SparseLinear
from scisparse.sparsity import Sparsifier, growth, optimizer_state, schedules
from scisparse.sparsity.optimizer_state import clear_rows

EVERY_OTHER = schedules.Steady(2)


def linked() -> nn.Sequential:
    return nn.Sequential(SparseLinear(12, 20, fan_in=4), nn.Tanh(), SparseLinear(20, 6, fan_in=5))


def dense(layer: Any, values: Tensor) -> Tensor:
    """Numbers of weights at their places, so that layers with other edges can be compared."""
    if not isinstance(layer, SparseLinear):
        return values
    pattern = layer.pattern
    placed = values.new_zeros(pattern.shape)
    placed[pattern.rows(), pattern.col.long()] = values[: pattern.num_edges].detach()
    return placed


def numbers(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    found = []
    layers: list[Any] = [model[0], model[2]]
    for layer in layers:
        state = optimizer.state[layer.weight]
        for values in (layer.weight, state["exp_avg"], state["exp_avg_sq"]):
            found.append(dense(layer, values).detach().clone())
    return found


@pytest.mark.parametrize("build", [network, linked])
@pytest.mark.parametrize("given", ["nothing", "another"])
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_an_optimizer_that_is_made_later(build: Any, given: str, method: str) -> None:
    """The same numbers as of one that is given."""
    expected: list[Tensor] = []
    for known in (True, False):
        seed()
        model = build()
        first = adam(model)
        optimizer = None if not known and given == "nothing" else first
        sparsifier = Sparsifier(model, optimizer, method, sparsity=0.7, schedule=OFTEN)
        last = first if known else adam(model)
        train(model, last, sparsifier, batches(9))
        if known:
            expected = numbers(model, last)
    torch.testing.assert_close(numbers(model, last), expected, rtol=0, atol=0)


def test_rewinding_forgets_what_a_later_optimizer_has() -> None:
    model = network()
    schedule = schedules.Iterative(rounds=2, every=3)
    sparsifier = Sparsifier(model, adam(model), "lottery", sparsity=0.5, schedule=schedule)
    last = adam(model)
    train(model, last, sparsifier, batches(3))
    assert not last.state


@pytest.mark.parametrize("method", ["l0", "movement", "top_kast", "sparse_momentum"])
def test_gradients_that_are_gathered_at_the_steps_of_another_optimizer(method: str) -> None:
    model = network()
    first = adam(model)
    sparsifier = Sparsifier(model, first, method, sparsity=0.5, total_steps=400)
    train(model, first, sparsifier, batches(6))
    with pytest.raises(OptionError, match=r"0.weight is stepped by another optimizer than `opt"):
        train(model, adam(model), sparsifier, batches(30))


@pytest.mark.parametrize("method", ["l0", "movement", "top_kast", "sparse_momentum"])
def test_others_may_step_more_often(method: str) -> None:
    model = network()
    first = adam(model)
    schedule = schedules.Steady(end=1000, every=1) if method == "top_kast" else None
    given: Any = {"total_steps": 40} if schedule is None else {"schedule": schedule}
    sparsifier = Sparsifier(model, first, method, sparsity=0.5, **given)
    others = torch.optim.SGD(model.parameters(), lr=0.01)
    for x, y in batches(12):
        (model(x) - y).square().mean().backward()
        for one in (first, others, others):
            one.step()
        sparsifier.step()
        first.zero_grad()
    assert sparsifier.progress.moved
    with pytest.raises(OptionError, match=r"0.weight is stepped by another optimizer than `opt"):
        train(model, others, sparsifier, batches(12))


def test_rows_of_factored_states_start_anew() -> None:
    layer = locally()
    optimizer = torch.optim.Adafactor(layer.parameters(), lr=0.01)
    train(layer, optimizer, None, fields(2))
    state = optimizer.state[layer.weight]
    before = {key: state[key].clone() for key in ("row_var", "col_var")}
    clear_rows(optimizer, layer.weight, torch.tensor([3, 5]))
    for key, values in before.items():
        assert len(values) == len(layer.weight)
        assert values[[3, 5]].any()
        values[[3, 5]] = 0
        assert torch.equal(state[key], values)


def test_a_wrapper_and_what_it_wraps() -> None:
    """State of both is the same: it moves once."""

    class Wrapper(torch.optim.Adam):
        def __init__(self, inner: torch.optim.Adam) -> None:
            super().__init__(inner.param_groups, lr=0.01)
            self.inner, self.state = inner, inner.state

        def step(self, closure: Any = None) -> Any:
            return self.inner.step(closure)

    for method in ("rigl", "sparse_momentum"):
        expected: list[Tensor] = []
        for wrapped in (False, True):
            seed()
            model = linked()
            optimizer = Wrapper(adam(model)) if wrapped else adam(model)
            sparsifier = Sparsifier(model, optimizer, method, sparsity=0.7, schedule=OFTEN)
            train(model, optimizer, sparsifier, batches(9))
            expected = expected or numbers(model, optimizer)
        torch.testing.assert_close(numbers(model, optimizer), expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's own
def test_a_compiled_step_of_an_optimizer_that_is_made_later() -> None:
    seed()
    model = network()
    sparsifier = Sparsifier(model, None, "set", sparsity=0.7, schedule=OFTEN)
    last = adam(model)
    last.step = torch.compile(last.step, backend="eager")  # type: ignore[method-assign]
    train(model, last, sparsifier, batches(8))
    first: Any = model[0]
    moments, gone = last.state[first.weight]["exp_avg_sq"], ~masks(sparsifier)[0]
    assert not moments[gone].any()


class Unhashable(torch.optim.SGD):
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


def test_an_optimizer_without_a_hash_is_one_like_others() -> None:
    seed()
    model = network()
    sparsifier = Sparsifier(model, None, "set", sparsity=0.7, schedule=OFTEN)
    last = Unhashable(model.parameters(), lr=0.1, momentum=0.9)
    train(model, last, sparsifier, batches(8))
    first: Any = model[0]
    assert not last.state[first.weight]["momentum_buffer"][~masks(sparsifier)[0]].any()


def test_steps_are_noticed_as_long_as_a_sparsifier_needs_it(monkeypatch: Any) -> None:
    for name, empty in (("_notices", weakref.WeakSet()), ("_hook", [])):
        monkeypatch.setattr(optimizer_state, name, empty)  # sparsifiers of other tests
    sparsifier: Sparsifier | None = None
    for _ in range(2):
        sparsifier = Sparsifier(network(), None, "set", sparsity=0.5, schedule=OFTEN)
        copied = copy.deepcopy(sparsifier)
        sparsifier.release()
        assert optimizer_state._hook
        copied.release()
        assert not optimizer_state._hook
    sparsifier = Sparsifier(network(), None, "set", sparsity=0.5, schedule=OFTEN)
    last = adam(network())
    last.step()
    assert optimizer_state._steps(last) is not None
    sparsifier = None
    gc.collect()
    last = adam(network())
    last.step()
    assert optimizer_state._steps(last) is None
    optimizer_state._hook.pop().remove()


def test_optimizers_that_step_in_other_threads() -> None:
    """They come and go while those that have stepped are listed."""
    model = network()
    sparsifier = Sparsifier(model, adam(model), "set", sparsity=0.5, schedule=OFTEN)
    ended, failed = threading.Event(), []

    def others() -> None:
        try:
            while not ended.is_set():
                for one in [adam(nn.Linear(1, 1)) for _ in range(20)]:
                    one.step()
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=others)
    thread.start()
    train(model, adam(model), sparsifier, batches(40))
    ended.set()
    thread.join()
    assert not failed


STATEFUL = [
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.NAdam, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.5}),
    (torch.optim.Rprop, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.LBFGS, {"lr": 0.1, "max_iter": 3}),
]


def losses_by_closure(model: nn.Module, optimizer: Any, sparsifier: Sparsifier) -> list[float]:
    losses = []

    def closure(x: Tensor, y: Tensor) -> float:
        optimizer.zero_grad()
        loss: Tensor = (model(x.double()) - y).square().mean()
        loss.backward()
        return float(loss.item())

    for batch in batches(16):
        losses.append(optimizer.step(functools.partial(closure, *batch)))
        sparsifier.step()
    return losses


@pytest.mark.parametrize(("kind", "options"), STATEFUL)
def test_any_optimizer_trains_edges_as_weights_under_a_mask(kind: Any, options: Any) -> None:
    losses: list[list[float]] = []
    for compact in (False, True):
        seed()
        model: Any = network((12, 6)).double()
        if compact:
            model[0] = SparseLinear.from_dense(model[0])
        optimizer = kind(model.parameters(), **({"lr": 0.01} | options))
        sparsifier = Sparsifier(model, optimizer, "rigl", sparsity=0.6, schedule=OFTEN, seed=1)
        losses.append(losses_by_closure(model, optimizer, sparsifier))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize(
    ("build", "method", "options"),
    [
        (network, "movement", {}),
        (network, "gmp", {"score": "optimal_brain_surgeon"}),
        (network, "sparse_momentum", {"schedule": OFTEN}),
        (linked, "sparse_momentum", {"schedule": OFTEN}),
        (network, "l0", {}),
        (network, "top_kast", {"growth": growth.superset(penalty=0.1), "schedule": EVERY_OTHER}),
    ],
)
def test_what_fused_optimizers_unscale_themselves(
    build: Any, method: str, options: dict[str, Any]
) -> None:
    """Gathered before, with a scale that changes, and not in a step that overflows."""

    def run(scaled: bool) -> list[Tensor]:
        seed()
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=scaled)
        scaler = torch.amp.GradScaler("cpu", 2.0**8, 4.0, 0.25, 2, enabled=scaled)
        rule = {"total_steps": 20, "sparsity": 0.5} | options
        sparsifier = Sparsifier(model, optimizer, method, **rule)
        for step, (x, y) in enumerate(batches(20)):
            overflows = step in (4, 9)
            if overflows:  # gradients of one sample are infinite, where sums are NaN
                x, y = x[:1], y[:1]
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean() * (torch.inf if overflows else 1.0)
            scaler.scale(loss).backward()
            if scaled or not overflows:
                scaler.step(optimizer)
            scaler.update()
            sparsifier.step()
        sparsifier.release()
        return [parameter.detach() for parameter in model.parameters()]

    torch.testing.assert_close(run(True), run(False))
