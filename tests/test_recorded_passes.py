"""Growth goes by what the optimizer's gradient is made of, however the loop comes by it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import locally, seed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scisparse.layers import SparseAttention, SparseLinear
from scisparse.pattern import Pattern
from scisparse.patterns import sliding_window
from scisparse.sparsity import Sparsifier, schedules
from scisparse.sparsity.attended import AttentionTarget
from scisparse.sparsity.candidates import AllPairs, CandidateEdges, Listed, Pass
from scisparse.sparsity.edge_target import EdgeTarget
from scisparse.sparsity.masked import MaskedTarget
from scisparse.sparsity.target import Target

RULE = schedules.CosineDrop(end=1000, every=1, fraction=0.4)
Loss = Callable[[Any, Tensor], Tensor]


def of_candidates(target: Target) -> Tensor:
    """Gradients that growth would go by."""
    if isinstance(target, MaskedTarget):
        assert target._gradient is not None
        return target._gradient
    assert isinstance(target, EdgeTarget)
    return torch.cat([target._gradients(c) for c in target.candidates.chunks(target.numbers)])


def recorded(target: Target) -> Tensor:
    """Those of active weights."""
    assert isinstance(target, MaskedTarget | EdgeTarget)
    active = target.mask if isinstance(target, MaskedTarget) else target.active
    return of_candidates(target)[active].flatten()


def used(target: Target) -> Tensor:
    assert target.parameter is not None
    assert target.parameter.grad is not None
    if isinstance(target, MaskedTarget):
        return target.parameter.grad[target.mask]
    assert isinstance(target, EdgeTarget)
    return target.parameter.grad[: target.active.numel()].flatten()


def mean_square(model: Any, x: Tensor) -> Tensor:
    loss: Tensor = model(x).square().mean()
    return loss


def penalized(model: Any, x: Tensor) -> Tensor:
    """Of outputs and of their derivatives, as a loss from an equation is."""
    x = x.clone().requires_grad_()
    y = model(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    loss: Tensor = y.square().mean() + slope.square().mean()
    return loss


def attacked(model: Any, x: Tensor) -> Tensor:
    """At inputs that another loss has been differentiated by."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(mean_square(model, x), x)
    return mean_square(model, x.detach() + slope.sign() / 4)


def looked_at(model: Any, x: Tensor) -> Tensor:
    """Gradients of the weights themselves, which no optimizer uses."""
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(3 * mean_square(model, x.flip(0)), trained)
    return mean_square(model, x)


def twice(model: Any, x: Tensor) -> Tensor:
    return mean_square(model, x) + mean_square(model, torch.tanh(2 * x))


def reentrant(model: Any, x: Tensor) -> Tensor:
    """Each part is a backward pass of its own inside the backward pass."""
    y = [checkpoint(model, part.requires_grad_(), use_reentrant=True) for part in (x, x.flip(0))]
    loss: Tensor = torch.stack([one.square().mean() for one in y if one is not None]).sum()
    return loss


def kept_again(model: Any, x: Tensor) -> Tensor:
    y: Any = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    loss: Tensor = y.square().mean()
    return loss


def linears() -> nn.Sequential:
    seed()
    return nn.Sequential(nn.Linear(11, 7), nn.Tanh(), nn.Linear(7, 11))


def condensed() -> nn.Sequential:
    seed()
    return nn.Sequential(SparseLinear(11, 7, fan_in=5), nn.Tanh(), SparseLinear(7, 11, fan_in=3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (linears, (5, 11)),
    "condensed": (condensed, (5, 11)),
    "local": (locally, (3, 40, 2)),
}
LOSSES: list[Loss] = [mean_square, penalized, attacked, looked_at, twice, reentrant, kept_again]


def start(name: str, lr: float = 0.05) -> tuple[nn.Module, Any, Sparsifier, Tensor]:
    build, shape = MODELS[name]
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    sparsifier = Sparsifier(model, optimizer, "rigl", sparsity=0.5, schedule=RULE)
    return model, optimizer, sparsifier, torch.randn(shape, generator=generator(1))


def assert_as_used(sparsifier: Sparsifier) -> None:
    for target in sparsifier.targets:
        torch.testing.assert_close(recorded(target), used(target), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_growth_goes_by_the_gradient_that_the_optimizer_uses(model: str, loss: Loss) -> None:
    net, optimizer, sparsifier, x = start(model)
    for _ in range(2):  # and anew after a change
        optimizer.zero_grad()
        for part in (x, x.roll(1, 0)):  # gradients are accumulated
            loss(net, part.clone()).backward()
        assert_as_used(sparsifier)
        optimizer.step()
        sparsifier.step()


def set_to_none(parameter: nn.Parameter) -> None:
    parameter.grad = None


def write_zeros(parameter: nn.Parameter) -> None:
    assert parameter.grad is not None
    parameter.grad.zero_()


def put_zeros(parameter: nn.Parameter) -> None:
    parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("empty", [set_to_none, write_zeros, put_zeros])
@pytest.mark.parametrize("model", MODELS)
def test_another_loss_through_the_layer_counts_while_its_gradient_does(
    model: str, empty: Callable[[nn.Parameter], None]
) -> None:
    """As where a generator is trained by what its critic says."""
    net, _, sparsifier, x = start(model)
    (net(x) + 1).square().mean().backward()  # the generator's
    for empties in (True, False):
        if empties:
            for parameter in net.parameters():
                empty(parameter)
        mean_square(net, x.roll(2, 0)).backward()
        assert_as_used(sparsifier)
    for target in sparsifier.targets:
        assert target.has_gradients
        if isinstance(target, EdgeTarget):
            assert len(target._passes) == 2


@pytest.mark.parametrize("frozen", [(), ("v_proj",), ("q_proj", "k_proj", "v_proj")])
@pytest.mark.parametrize("loss", [attacked, looked_at])
def test_edges_of_attention_go_by_the_passes_of_the_loss(
    loss: Loss, frozen: tuple[str, ...]
) -> None:
    seed()
    layer = SparseAttention(sliding_window(12, 5), 8, 2)
    for name in frozen:
        layer.get_submodule(name).requires_grad_(False)
    model = nn.Sequential(nn.Linear(8, 8), layer)
    options: dict[str, Any] = {"candidates": sliding_window(12, 9), "params": ["*.edges"]}
    (target,) = Sparsifier(model, None, "rigl", schedule=RULE, **options).targets
    assert isinstance(target, AttentionTarget)
    x, effects = torch.randn(3, 12, 8, generator=generator(2)), []
    for forgets in (False, True):
        model.zero_grad()
        value = loss(model, x)
        if forgets:
            target.record(True)
        value.backward()
        assert len(target._passes) == 1
        effects.append(target._active().edges.effect)
    assert torch.equal(*effects)


@pytest.mark.parametrize("model", MODELS)
def test_passes_that_do_not_count_are_not_kept(model: str) -> None:
    net, _, sparsifier, x = start(model)
    for _ in range(3):
        looked_at(net, x)
        attacked(net, x)
        if model != "dense":
            for target in sparsifier.targets:
                assert isinstance(target, EdgeTarget)
                assert target._watches._step is not None
                assert not target._watches._step.waiting
    assert not any(target.has_gradients for target in sparsifier.targets)
    looked_at(net, x).backward()
    assert_as_used(sparsifier)


@pytest.mark.parametrize("overflows", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_kept_once_no_change_can_follow(model: str, overflows: bool) -> None:
    build, shape = MODELS[model]
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    rule = schedules.CosineDrop(end=7, every=2)
    sparsifier = Sparsifier(net, optimizer, "sparse_momentum", sparsity=0.5, schedule=rule)
    for step in range(10):
        optimizer.zero_grad()
        mean_square(net, torch.randn(shape, generator=generator(step))).backward()
        late = 5 <= step <= 7 and overflows  # the change of step 6 is not done until step 9
        assert all(target.has_gradients for target in sparsifier.targets) == (
            step < (9 if overflows else 7)
        )
        if late:
            for parameter in net.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(torch.inf)
        else:
            optimizer.step()
        sparsifier.step()


@pytest.mark.parametrize("names", [("v_proj",), ("q_proj", "k_proj", "v_proj", "out_proj")])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("method", ["rigl", "sparse_momentum"])
def test_edges_of_attention_move_on_when_maps_are_frozen_or_freed(
    method: str, every: int, names: tuple[str, ...]
) -> None:
    seed()
    layer = SparseAttention(sliding_window(24, 5), 8, 2)
    model = nn.Sequential(nn.Linear(8, 8), layer)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rule = schedules.CosineDrop(end=1000, every=every, fraction=0.5)
    options: dict[str, Any] = {"candidates": sliding_window(24, 15), "params": ["*.edges"]}
    sparsifier = Sparsifier(model, optimizer, method, schedule=rule, **options)
    gen = generator(6)
    for trained in (True, False, True):
        for name in names:
            layer.get_submodule(name).requires_grad_(trained)
        before = layer.pattern
        for step in range(6):
            optimizer.zero_grad()
            loss = looked_at if trained and step else mean_square
            loss(model, torch.randn(4, 24, 8, generator=gen)).backward()
            (target,) = sparsifier.targets
            assert isinstance(target, AttentionTarget)
            assert len(target._passes) <= 1
            optimizer.step()
            sparsifier.step()
        assert layer.pattern != before


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(33))
        self.parts = nn.ModuleList([SparseLinear(33, 33, fan_in=7, bias=False) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.gelu(x * self.scale)
        for part in self.parts:
            h = torch.tanh(h + part(h))
        return h


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_code_that_uses_memory_again_does_not_write_over_what_growth_goes_by() -> None:
    """Inductor's does, where a gradient is needed no more: past a residual connection."""
    gradients = []
    for compiled in (False, True):
        seed()
        net = Residual()
        rule: dict[str, Any] = {"sparsity": 0.8, "schedule": RULE, "params": ["parts.*"]}
        sparsifier = Sparsifier(net, None, "rigl", **rule)
        run: Any = torch.compile(net, backend="inductor") if compiled else net
        (run(torch.randn(64, 33, generator=generator(3))) - 1).square().mean().backward()
        assert_as_used(sparsifier)
        gradients.append([recorded(target) for target in sparsifier.targets])
    for eager, other in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, other)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's own
def test_a_compiled_step_of_training_is_compiled_once() -> None:
    net, optimizer, sparsifier, x = start("local")

    def step() -> None:
        optimizer.zero_grad()
        mean_square(net, x).backward()
        optimizer.step()

    torch.compiler.reset()
    fast: Any = torch.compile(step, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            fast()
            sparsifier.step()
    assert sparsifier.report().layers[0].exploration > 0.5


@pytest.mark.parametrize("kind", [Listed, AllPairs])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_candidates_do_not_overflow(
    kind: Callable[[Pattern], CandidateEdges], dtype: torch.dtype
) -> None:
    gen = generator(4)
    pattern = Pattern.from_dense(torch.rand(5, 9, generator=gen) < 0.7)
    passes, expected = [], torch.zeros(5, 9, 3, 2, dtype=torch.float64)
    for batch in (6, 1):
        x = torch.randn(batch, 9, 3, generator=gen).to(dtype)
        grad = (6e4 * torch.rand(batch, 5, 2, generator=gen)).to(dtype)
        passes.append(Pass.of(x, grad, pattern.col))
        expected += torch.einsum("bnc,bmo->mnco", x.double(), grad.double())
    candidates = kind(pattern)
    (chunk,) = candidates.chunks(6)
    found = candidates.gradients(chunk, passes)
    site, source = candidates.ends(torch.arange(candidates.size))
    assert float(expected.abs().max()) > torch.finfo(torch.float16).max
    torch.testing.assert_close(found.double(), expected[site, source], rtol=1e-5, atol=1.0)


@pytest.mark.parametrize("penalty", [0.0, 0.3])
@pytest.mark.parametrize("model", MODELS)
def test_momentum_is_that_of_the_loss_whatever_is_added_to_it(model: str, penalty: float) -> None:
    """A penalty pulls at the weights that are there, and says nothing about candidates."""
    build, shape = MODELS[model]
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    rule: dict[str, Any] = {"sparsity": 0.5, "total_steps": 10**6}  # nothing changes by then
    sparsifier = Sparsifier(net, optimizer, "sparse_momentum", **rule)
    means: list[Tensor] = []
    for step in range(6):
        optimizer.zero_grad()
        scale, clipped = 8.0 * 3**step, 1 + step / 2
        (scale * mean_square(net, torch.randn(shape, generator=generator(step)))).backward()
        made = [of_candidates(target) / (scale * clipped) for target in sparsifier.targets]
        means = [m.lerp(g, 0.1) for m, g in zip(means, made, strict=True)] if means else made
        sizes = torch.stack([parameter.abs().sum() for parameter in net.parameters()])
        (scale * penalty * sizes.sum()).backward()
        for parameter in net.parameters():
            assert parameter.grad is not None
            parameter.grad.div_(scale * clipped)
        optimizer.step()
        sparsifier.step()
    for target, mean in zip(sparsifier.targets, means, strict=True):
        assert isinstance(target, MaskedTarget | EdgeTarget)
        assert target._momentum is not None
        found = target._momentum
        if isinstance(target, MaskedTarget):
            found, mean = found[~target.mask], mean[~target.mask]
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("method", ["mest", "sparse_momentum"])
def test_edges_of_attention_do_not_see_the_scale_of_the_loss(method: str) -> None:
    """One that a scaler takes out before the optimizer's step, and lowers on the way."""
    patterns = []
    for scaled in (False, True):
        seed()
        layer = SparseAttention(sliding_window(24, 5), 8, 2)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        options: dict[str, Any] = {"candidates": sliding_window(24, 15), "params": ["edges"]}
        options |= {"growth": "gradient"} if method == "mest" else {}
        sparsifier = Sparsifier(layer, optimizer, method, total_steps=40, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, enabled=scaled)
        gen = generator(1)
        for step in range(25):
            optimizer.zero_grad()
            scaler.scale(mean_square(layer, torch.randn(4, 24, 8, generator=gen))).backward()
            scaler.step(optimizer)
            scaler.update(2.0 if scaled and step == 2 else None)
            sparsifier.step()
        assert sparsifier.report().layers[0].churn > 0
        patterns.append(layer.pattern)
    assert patterns[0] == patterns[1]
