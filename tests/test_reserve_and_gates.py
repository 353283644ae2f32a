"""Weights that are trained while they are not in use, and weights behind learned gates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sparsity_cases import adam, batches, fields, locally, masks, network, seed, train
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from scisparse.errors import OptionError
from scisparse.layers import SparseLinear
from scisparse.sparsity import Sparsifier, growth, importance, schedules, structures
from scisparse.sparsity.gated import GatedTarget
from scisparse.sparsity.gates import HardConcrete
from scisparse.sparsity.reserve import ReserveTarget

EVERY, EXTRA, PENALTY, DECAY = 3, 0.5, 1e-2, 0.1


def largest(weight: Tensor, count: int) -> Tensor:
    chosen = torch.zeros(weight.numel(), dtype=torch.bool)
    chosen[weight.abs().flatten().argsort(descending=True)[:count]] = True
    return chosen.reshape(weight.shape)


def top_kast_by_hand(model: nn.Linear, data: list[tuple[Tensor, Tensor]], count: int) -> Any:
    """Dense weights, masks A and B by size, decay 1 on A and 1 / density on the rest of B."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=DECAY)
    used = largest(model.weight.detach(), count)
    trained = largest(model.weight.detach(), int(count * (1 + EXTRA)))
    losses = []
    for step, (x, y) in enumerate(data, 1):
        sparse = (model.weight.detach() * used).requires_grad_()
        loss = (functional_call(model, {"weight": sparse}, (x,)) - y).square().mean()
        grad, bias = torch.autograd.grad(loss, [sparse, model.bias])
        share = torch.where(used, 1.0, used.numel() / count)
        model.weight.grad = (grad + PENALTY * share * model.weight.detach()) * trained
        model.bias.grad = bias
        waiting = model.weight.detach().clone()
        optimizer.step()
        with torch.no_grad():
            model.weight.copy_(torch.where(trained, model.weight, waiting))
        losses.append(loss.item())
        if step % EVERY == 0:
            used = largest(model.weight.detach(), count)
            now = largest(model.weight.detach(), int(count * (1 + EXTRA)))
            for moments in ("exp_avg", "exp_avg_sq"):
                optimizer.state[model.weight][moments].masked_fill_(now ^ trained, 0)
            trained = now
    return losses, model.weight.detach() * used


def test_top_kast_is_what_its_paper_says() -> None:
    seed()
    first, data = nn.Linear(12, 6), batches(20)
    model = copy.deepcopy(first)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=DECAY)
    sparsifier = Sparsifier(
        model,
        optimizer,
        "top_kast",
        sparsity=0.75,
        schedule=schedules.Steady(EVERY),
        growth=growth.superset(EXTRA, PENALTY),
    )
    losses = train(model, optimizer, sparsifier, data)
    expected, weight = top_kast_by_hand(first, data, 18)
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(model.weight.detach(), weight)
    report = sparsifier.report().layers[0]
    assert report.active == 18
    assert report.explored > 18  # weights came back that had been out of use


def test_what_waits_is_not_seen_and_not_lost() -> None:
    seed()
    model, data = nn.Linear(12, 6), batches(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    start = model.weight.detach().clone()
    sparsifier = Sparsifier(
        model, optimizer, "top_kast", sparsity=0.75, schedule=schedules.Steady(100)
    )
    (target,) = sparsifier.targets
    assert isinstance(target, ReserveTarget)
    train(model, optimizer, sparsifier, data)
    assert int((model.weight != 0).sum()) == 18
    assert int((~target.learning).sum()) == 72 - 36
    rest = target.state_dict()["rest"]
    assert torch.equal(rest[~target.learning], start[~target.learning])
    tried = target.learning & ~target.mask
    assert bool((rest[tried] != start[tried]).all())
    before = rest.clone()
    model.weight.grad = None
    sparsifier.step()  # a step that a scaler skipped
    assert torch.equal(target.state_dict()["rest"], before)


def test_a_moving_average_takes_part_in_what_comes_back() -> None:
    seed()
    model, data = nn.Linear(12, 6), batches(12)
    optimizer = adam(model)
    sparsifier = Sparsifier(
        model, optimizer, "top_kast", sparsity=0.75, schedule=schedules.Steady(2)
    )
    mean = AveragedModel(model)
    sparsifier.follow(mean.module)
    for batch in data:
        train(model, optimizer, sparsifier, [batch])
        mean.update_parameters(model)
    (mask,) = masks(sparsifier)
    averaged: Any = mean.module
    assert not bool(averaged.weight[~mask].any())
    assert bool((averaged.weight[mask] != 0).all())


@pytest.mark.parametrize("kind", ["unstructured", "channels"])
def test_gates_get_the_gradient_of_loss_and_price(kind: str) -> None:
    seed()
    model, (x, y) = nn.Linear(12, 6), batches(1)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, optimizer, "l0", sparsity=0.5, total_steps=100, structure=kind)
    (target,) = sparsifier.targets
    assert isinstance(target, GatedTarget)
    state = target.state_dict()
    model.train()
    target._price = price = 2.0
    # The same draw, through autograd from end to end.
    weight = target.parameter.detach().clone().requires_grad_()
    gates = HardConcrete(state["gates"].shape)
    with torch.no_grad():
        gates.log_alpha.copy_(state["gates"])
    drawn = gates(torch.Generator().manual_seed(0).set_state(state["generator"]))
    each = drawn.reshape(-1, 1) if kind == "channels" else drawn.reshape(6, 12)
    loss = (nn.functional.linear(x, weight * each, model.bias) - y).square().mean()
    (loss + price * gates.open_probability().mean()).backward()

    optimizer.zero_grad()
    ours = (model(x) - y).square().mean()
    assert ours.item() == pytest.approx(loss.item())
    ours.backward()
    torch.testing.assert_close(target.parameter.grad, weight.grad)
    optimizer.step()
    torch.testing.assert_close(target._gates.log_alpha.grad, gates.log_alpha.grad)


def test_evaluation_uses_settled_gates_and_training_new_ones() -> None:
    seed()
    model, data = nn.Linear(12, 6), batches(3)
    optimizer = adam(model)
    score = importance.hard_concrete(open_probability=0.5)
    sparsifier = Sparsifier(model, optimizer, "l0", sparsity=0.5, total_steps=100, score=score)
    drawn = []
    for batch in data:
        model.train()
        drawn.append(model(batch[0]).detach())
        assert torch.equal(model(batch[0]), drawn[-1])  # one draw for each step
        before = model.weight.detach().clone()
        train(model, optimizer, sparsifier, [batch])
        assert not torch.equal(before == 0, model.weight == 0)
        model.eval()
        (target,) = sparsifier.targets
        assert isinstance(target, GatedTarget)
        torch.testing.assert_close(
            model.weight,
            target.parameter * target._gates.settled().reshape(6, 12),
        )
    settled = model.weight.detach().clone()
    sparsifier.release()
    torch.testing.assert_close(model.weight.detach(), settled)


def test_release_leaves_the_model_as_it_was_built() -> None:
    seed()
    model, data = network(), batches(10)
    names = list(model.state_dict())
    parameters = list(model.parameters())
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, "l0", sparsity=0.7, total_steps=10)
    mean = AveragedModel(model)
    sparsifier.follow(mean.module)
    for batch in data:
        train(model, optimizer, sparsifier, [batch])
        mean.update_parameters(model)
    snapshot = copy.deepcopy(model).eval()
    before = snapshot(data[0][0])
    sparsifier.release()
    assert torch.equal(snapshot(data[0][0]), before)
    torch.testing.assert_close(model(data[0][0]), before)
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    for mask, name in zip(masks(sparsifier), ("0.weight", "2.weight"), strict=True):
        assert not bool(model.get_parameter(name)[~mask].any())
    assert list(mean.module.state_dict()) == names
    for a, b in zip(model.parameters(), mean.module.parameters(), strict=True):
        assert a.shape == b.shape
        assert bool((b[a == 0] == 0).all())


def test_a_step_that_overflowed_changes_no_gate() -> None:
    seed()
    model, data = nn.Linear(12, 6), batches(2)
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, "l0", sparsity=0.5, total_steps=100)
    train(model, optimizer, sparsifier, data[:1])
    (target,) = sparsifier.targets
    before = target.state_dict()["gates"].clone()
    (model(data[1][0]).sum() * torch.inf).backward()
    optimizer.step()  # as a loop without a scaler has it
    assert torch.equal(target.state_dict()["gates"], before)
    assert bool(torch.isfinite(before).all())


def test_edges_behind_gates_are_gone_in_the_end() -> None:
    layer = locally()
    edges = layer.pattern.num_edges
    optimizer, data = adam(layer), fields(30)
    sparsifier = Sparsifier(layer, optimizer, "l0", sparsity=0.6, total_steps=30)
    train(layer, optimizer, sparsifier, data)
    layer.eval()
    x = data[0][0]
    before = layer(x)
    final: Any = sparsifier.finalize()
    assert final.pattern.num_edges == round(0.4 * edges)
    torch.testing.assert_close(final(x), before)


def test_top_kast_on_edges() -> None:
    seed()
    layer = SparseLinear(12, 6, fan_in=8)
    optimizer, data = adam(layer), batches(20)
    sparsifier = Sparsifier(
        layer, optimizer, "top_kast", sparsity=0.5, schedule=schedules.Steady(2)
    )
    train(layer, optimizer, sparsifier, data)
    assert sparsifier.report().layers[0].exploration > 0.5
    final: Any = sparsifier.finalize("condensed")
    assert final.pattern.num_edges == 24


def test_compiled_models_see_every_draw() -> None:
    def run(compiled: bool) -> list[float]:
        seed()
        model, data = nn.Linear(12, 6), batches(6)
        optimizer = adam(model)
        sparsifier = Sparsifier(model, optimizer, "l0", sparsity=0.5, total_steps=6)
        fast: Any = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        return train(fast, optimizer, sparsifier, data)

    torch.compiler.reset()
    assert run(True) == pytest.approx(run(False), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's own, both
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_step_of_training_trains_gates() -> None:
    def run(compiled: bool) -> tuple[list[float], float]:
        seed()
        model, losses = nn.Linear(12, 6), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = Sparsifier(model, optimizer, "l0", sparsity=0.7, total_steps=8)

        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        fast: Any = torch.compile(step, backend="aot_eager") if compiled else step
        for batch in batches(6):
            losses.append(fast(*batch).item())
            sparsifier.step()
        return losses, sparsifier.report().sparsity

    torch.compiler.reset()
    losses, sparsity = run(True)
    expected = run(False)
    assert losses == pytest.approx(expected[0], rel=1e-5)
    assert sparsity == expected[1] > 0


@pytest.mark.parametrize("method", ["rigl", "gmp", "l0"])
def test_a_compiled_graph_may_read_weights_without_their_gradient(method: str) -> None:
    seed()
    model, other = nn.Linear(12, 6), nn.Linear(12, 6)
    sparsifier = Sparsifier(model, adam(model), method, sparsity=0.7, total_steps=8)
    torch.compiler.reset()
    distance = torch.compile(
        lambda: (other.weight - model.weight.detach()).square().sum(), backend="aot_eager"
    )
    distance().backward()
    torch.testing.assert_close(other.weight.grad, 2 * (other.weight - model.weight).detach())
    assert not sparsifier.report().steps
    assert model.bias.grad is None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"method": "set", "score": "hard_concrete"}, "do not open again; choose method='l0'"),
    ({"method": "static", "score": "hard_concrete"}, "do not open again"),
    ({"method": "l0", "growth": "random"}, "do not open again"),
    ({"method": "top_kast", "structure": structures.NM(2, 4)}, "needs a second one"),
    ({"method": "top_kast", "sparsity": None}, "`sparsity` is None"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    model = nn.Linear(12, 8)
    with pytest.raises(OptionError, match=message):
        Sparsifier(model, adam(model), **{"sparsity": 0.5, "total_steps": 10} | options)
    assert list(model.state_dict()) == ["weight", "bias"]


def test_bad_uses() -> None:
    layer = locally()
    with pytest.raises(OptionError, match="build the layer on the candidates"):
        Sparsifier(
            layer,
            adam(layer),
            "top_kast",
            sparsity=0.5,
            total_steps=10,
            candidates=layer.pattern,
        )
    with pytest.raises(OptionError, match="`extra`"):
        growth.superset(0.0)
    with pytest.raises(OptionError, match="must be positive"):
        importance.hard_concrete(learning_rate=0.0)
    model = nn.Linear(4, 4)
    early = copy.deepcopy(model)
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, "l0", sparsity=0.5, total_steps=10)
    with pytest.raises(OptionError, match="copy the model after"):
        sparsifier.follow(early)
    sparsifier.release()
    nn.utils.parametrizations.weight_norm(model)
    with pytest.raises(OptionError, match=r"parametrization|`params`"):
        Sparsifier(model, adam(model), "l0", sparsity=0.5, total_steps=10)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("method", ["top_kast", "l0", "gmp"])
def test_a_state_from_between_the_optimizer_and_the_sparsifier(
    method: str, order: tuple[int, ...]
) -> None:
    """What is lent to the optimizer is kept, and gates that it has trained by get a new draw."""

    def start() -> tuple[Any, Any, Any]:
        seed()
        model = network()
        optimizer = adam(model)
        return model, optimizer, Sparsifier(model, optimizer, method, sparsity=0.6, total_steps=9)

    data = batches(9)
    whole = start()
    train(*whole, data[:3])
    train(whole[0], whole[1], None, data[3:4])
    states = copy.deepcopy([part.state_dict() for part in whole])
    again = start()
    for k in order:
        again[k].load_state_dict(states[k])
    for run in (whole, again):
        run[2].step()
    assert train(*again, data[4:]) == train(*whole, data[4:])


def test_a_state_of_gates_stays_as_it_was() -> None:
    """While training goes on, and while a run that has loaded it does."""
    runs = []
    for _ in range(2):
        seed()
        model = network()
        optimizer = adam(model)
        runs.append(
            (model, optimizer, Sparsifier(model, optimizer, "l0", sparsity=0.6, total_steps=40))
        )
    data = batches(9)
    train(*runs[0], data[:3])
    state = runs[0][2].state_dict()
    before = copy.deepcopy(state)
    train(*runs[0], data[3:6])
    runs[1][2].load_state_dict(state)
    train(*runs[1], data[6:])
    for target in ("0.weight", "2.weight"):
        now, then = (one["targets"][target] for one in (state, before))
        assert torch.equal(now["gates"], then["gates"])
        moments, others = (part["adam"]["state"][0]["exp_avg"] for part in (now, then))
        assert torch.equal(moments, others)
