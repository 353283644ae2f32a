"""The controller: what it leaves alone, what it moves, and the rules that ports get wrong."""

from __future__ import annotations

import copy
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsity_cases import OFTEN, SIZES, adam, batches, masks, network, seed, train
from torch import nn

from scisparse.errors import OptionError
from scisparse.layers import SparseLinear
from scisparse.pattern import Pattern
from scisparse.sparsity import Sparsifier, schedules
from scisparse.sparsity.methods import BY_NAME

TOTAL = sum(a * b for a, b in itertools.pairwise(SIZES))


def weight_of(model: nn.Module, name: str) -> nn.Parameter:
    return model.get_parameter(f"{name}.weight")


def zeros(model: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)


@pytest.mark.parametrize("method", [m for m in BY_NAME if m != "srigl"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.83])
def test_ends_exactly_on_target(method: str, sparsity: float) -> None:
    seed()
    model, data = network(), batches(30)
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, method, sparsity=sparsity, total_steps=len(data))
    train(model, optimizer, sparsifier, data)
    kept = round((1 - sparsity) * TOTAL)
    assert sum(target.count for target in sparsifier.targets) == kept
    for target, mask in zip(sparsifier.targets, masks(sparsifier), strict=True):
        assert target.parameter is not None
        assert not bool(target.parameter[~mask].any())
    assert sparsifier.report().sparsity == pytest.approx(1 - kept / TOTAL)


def test_constant_fan_in_and_ablation() -> None:
    seed()
    model, data = network((40, 30, 8)), batches(40, 40, 8)
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, "srigl", sparsity=0.95, total_steps=40)
    train(model, optimizer, sparsifier, data)
    fan_in = masks(sparsifier)[0].sum(1)
    assert set(fan_in.tolist()) <= {0, int(fan_in.max())}
    assert 0 < int((fan_in == 0).sum()) < 30  # some neurons are ablated: 2 of 40 weights is little
    total = sum(t.count for t in sparsifier.targets)
    assert 0.85 * 72 <= total <= 72


def test_every_method_trains_where_the_model_is() -> None:
    """On a GPU a tensor that is made without naming it would lie on the CPU."""
    program = Path(__file__).with_name("other_device.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused = json.loads(done.stdout)
    assert len(refused) == len(BY_NAME) - 1
    assert {method: why for method, why in refused.items() if why is not None} == {}


def test_new_connections_start_at_zero_with_clean_moments() -> None:
    seed()
    model, data = network(), batches(20)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True, weight_decay=0.1)
    sparsifier = Sparsifier(
        model, optimizer, "set", sparsity=0.6, schedule=schedules.CosineDrop(100, 5, 0.5)
    )
    weight = weight_of(model, "2")  # its inputs are never 0, so that every weight has a gradient
    train(model, optimizer, sparsifier, data[:4])
    before = weight != 0
    train(model, optimizer, sparsifier, data[4:5])
    mask = masks(sparsifier)[1]
    grown, kept = mask & ~before, mask & before
    assert int(grown.sum()) > 5
    assert not bool(weight[grown].any())
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        state = optimizer.state[weight][key]
        assert not bool(state[~kept].any()), key
        assert bool((state[kept] != 0).all()), key
    train(model, optimizer, sparsifier, data[5:6])
    assert bool((weight[grown] != 0).all())


def test_dropped_and_regrown_at_once_keeps_its_value() -> None:
    """With everything active there is nowhere to grow but where something was just dropped."""
    seed()
    model, data = network(), batches(3)
    optimizer = adam(model)
    sparsifier = Sparsifier(
        model, optimizer, "rigl", sparsity=0.0, schedule=schedules.CosineDrop(10, 1, 0.5)
    )
    plain = copy.deepcopy(model)
    losses = train(model, optimizer, sparsifier, data)
    assert losses == train(plain, adam(plain), None, data)


def test_pruned_weights_feel_neither_decay_nor_momentum_nor_clipping() -> None:
    """Masked training equals the training of a model that has the other weights alone."""
    seed()
    dense = nn.Linear(10, 6)
    optimizer = torch.optim.AdamW(dense.parameters(), lr=0.05, weight_decay=0.2)
    Sparsifier_ = Sparsifier(dense, optimizer, "static", sparsity=0.7)
    sparse = SparseLinear.from_dense(dense)
    other = torch.optim.AdamW(sparse.parameters(), lr=0.05, weight_decay=0.2)
    for x, y in batches(8, 10, 6):
        for model, opt in ((dense, optimizer), (sparse, other)):
            opt.zero_grad()
            (model(x) - y).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            opt.step()
        Sparsifier_.step()
    torch.testing.assert_close(dense.weight, sparse.to_dense().weight, rtol=1e-5, atol=1e-6)


def test_gradient_scaler_and_autocast() -> None:
    """Scaling by a power of two changes no bit of a run in which nothing overflows."""

    def run(scale: float) -> list[float]:
        seed()
        model = network()
        optimizer = adam(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
        sparsifier = Sparsifier(model, optimizer, "rigl", sparsity=0.7, schedule=OFTEN)
        losses = []
        for x, y in batches(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = (model(x).float() - y).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            sparsifier.step()
            losses.append(loss.item())
        assert len({r.churn for r in sparsifier.report().layers} - {0.0})
        return losses

    assert run(2.0**10) == run(1.0)


@pytest.mark.parametrize(
    "method",
    ["rigl", "set", "srigl", "gmp", "movement", "lottery", "sparse_momentum", "top_kast", "l0"],
)
def test_resumes_bit_for_bit(method: str) -> None:
    def start() -> tuple[Any, Any, Any]:
        seed()
        model = network()
        optimizer = adam(model)
        options: dict[str, Any] = {"total_steps": 40}
        if method in ("rigl", "set", "srigl", "sparse_momentum"):
            options = {"schedule": OFTEN}
        return model, optimizer, Sparsifier(model, optimizer, method, sparsity=0.6, **options)

    data = batches(40)
    whole = start()
    losses = train(*whole, data)
    first = start()
    train(*first, data[:17])
    saved = io.BytesIO()
    torch.save([part.state_dict() for part in first], saved)
    saved.seek(0)
    again = start()
    for part, state in zip(again, torch.load(saved, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert train(*again, data[17:]) == losses[17:]
    for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(a, b)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sparsity": 1.0}, r"`sparsity` \(=1.0\) must lie in \[0, 1\)"),
    ({"sparsity": -0.1}, r"must lie in \[0, 1\)"),
    ({"method": "rigel"}, "did you mean 'rigl'"),
    ({"structure": "blocks"}, "did you mean 'block'"),
    ({"budget": "unifrom"}, "did you mean 'uniform'"),
    ({"score": "magnitud"}, "did you mean 'magnitude'"),
    ({"growth": "gradients"}, "did you mean 'gradient'"),
    ({"params": ["1"]}, "`params` is '1'"),
    ({"params": ["0.wieght"]}, "did you mean '0.weight'"),
    ({"total_steps": None}, "needs `total_steps`"),
    ({"total_steps": 40.0}, r"`total_steps` \(=40.0\) must be an integer"),
    ({"total_steps": "40"}, r"`total_steps` \(='40'\) must be an integer"),
    ({"seed": 0.5}, r"`seed` \(=0.5\) must be an integer"),
    ({"sparsity": None}, "`sparsity` is None"),
    ({"method": "gmp", "candidates": Pattern.from_dense(torch.eye(2).bool())}, "only prunes"),
    ({"method": "gmp", "structure": "3:7"}, "must be divisible by 7"),
    ({"method": "magnitude", "structure": "2:4", "sparsity": 0.9, "params": ["0"]}, "0.5"),
    ({"candidates": {"zero": Pattern.from_dense(torch.eye(2).bool())}}, "the choices are none"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_options(options: dict[str, Any], message: str) -> None:
    model = network()
    optimizer = adam(model)

    def run() -> None:
        given = {"sparsity": 0.5, "total_steps": 10, **options}
        train(model, optimizer, Sparsifier(model, optimizer, **given), batches(10))

    with pytest.raises(OptionError, match=message):
        run()


def test_optimizer_that_does_not_hold_the_weights() -> None:
    model = network()
    with pytest.raises(OptionError, match=r"`optimizer` does not hold 0\.weight"):
        Sparsifier(model, adam(network()), sparsity=0.5, total_steps=10)


@pytest.mark.parametrize("method", ["set", "rigl", "mest"])
@pytest.mark.parametrize("sparse", [False, True])
def test_frozen_layers_keep_their_connections(method: str, sparse: bool) -> None:
    seed()
    model = network()
    if sparse:
        model[0] = SparseLinear(SIZES[0], SIZES[1], fan_in=8)
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, method, sparsity=0.5, schedule=OFTEN)
    train(model, optimizer, sparsifier, batches(6))
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    others = masks(sparsifier)[-1].clone()
    train(model, optimizer, sparsifier, batches(6))
    after = model[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not torch.equal(masks(sparsifier)[-1], others)
    model.requires_grad_(False)
    sparsifier.step()
    sparsifier.step()  # a change is due, and nothing is left to change nor to complain of


def test_a_frozen_layer_that_is_thawed() -> None:
    seed()
    model = network()
    model[0].requires_grad_(False)
    optimizer = adam(model)
    options: dict[str, Any] = {"sparsity": 0.5, "schedule": OFTEN, "params": ["0.weight"]}
    sparsifier, weight = Sparsifier(model, optimizer, "rigl", **options), weight_of(model, "0")
    train(model, optimizer, sparsifier, batches(4))
    start = masks(sparsifier)[0].clone()
    weight.requires_grad_(True)
    train(model, optimizer, sparsifier, batches(4))
    assert not torch.equal(masks(sparsifier)[0], start)
    assert weight.grad is not None
    assert not bool(weight.grad[~masks(sparsifier)[0]].any())


@pytest.mark.parametrize("end", ["release", "finalize"])
def test_no_steps_follow_the_end(end: str) -> None:
    model = network()
    sparsifier = Sparsifier(model, adam(model), "gmp", sparsity=0.5, total_steps=40)
    getattr(sparsifier, end)()
    with pytest.raises(OptionError, match="has ended the sparsifier; build a new one"):
        sparsifier.step()


def test_a_gradient_that_overflows_under_the_mask_grows_nothing() -> None:
    """The optimizer does not see it, and a gradient scaler has nothing to skip."""
    layer = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    schedule = schedules.CosineDrop(end=100, every=1, fraction=1.0)
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.5, schedule=schedule)
    (mask,) = masks(sparsifier)
    x = torch.ones(2, 4).masked_fill(~mask, 3e38)
    for inputs, waits in ((x, True), (torch.ones(2, 4), False)):
        optimizer.zero_grad()
        (100 * layer(inputs)).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.isfinite().all()
        optimizer.step()
        sparsifier.step()
        assert (sparsifier.progress.pending is not None) == waits
        assert torch.equal(masks(sparsifier)[0], mask) == waits


@pytest.mark.parametrize("compact", [False, True])
def test_what_a_loop_makes_of_an_overflow_is_no_gradient_to_grow_by(compact: bool) -> None:
    """Such as a 0 in its place: the passes that growth goes by are not finite all the same."""
    seed()
    layer: Any = nn.Linear(12, 6)
    layer = SparseLinear.from_dense(layer) if compact else layer
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.5, schedule=OFTEN)
    for step, (x, y) in enumerate(batches(3)):
        optimizer.zero_grad()
        ((layer(x) - y).square().mean() * (torch.inf if step == 1 else 1.0)).backward()
        layer.weight.grad.nan_to_num_(0.0, 0.0, 0.0)
        layer.bias.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
        sparsifier.step()
        assert (sparsifier.progress.pending is not None) == (step == 1)
    assert sparsifier.report().layers[0].churn > 0
