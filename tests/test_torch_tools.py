"""Layers under torch's tools: compile, autocast, export, state, copies, training, derivatives."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import (
    MASK,
    REGIONS,
    SHAPE,
    assert_equal,
    build,
    every_tie,
    index_pattern,
    masked_pattern,
    needs_scipy,
    randn,
    randomize,
)
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from scisparse.errors import PatternError
from scisparse.grids import LatLonGrid
from scisparse.layers import (
    LocallyConnected,
    LocallyConnected2d,
    LocallyConnectedTranspose2d,
    LowRankLocallyConnected,
    Scores,
    SparseAttention,
)
from scisparse.patterns import radius, window


def low_rank(**options: Any) -> LowRankLocallyConnected:
    layer = LowRankLocallyConnected(
        masked_pattern(), 2, 4, 3, **{"dtype": torch.float64, **options}
    )
    randomize(layer)
    return layer


def forward_2d(tie: Any = None) -> LocallyConnected2d:
    layer = LocallyConnected2d(
        2, 4, 3, padding=1, input_size=SHAPE, groups=2, tie=tie, dtype=torch.float64
    )
    randomize(layer)
    return layer


def transposed_2d() -> LocallyConnectedTranspose2d:
    layer = LocallyConnectedTranspose2d(
        2, 4, 3, stride=2, output_padding=1, input_size=SHAPE, dtype=torch.float64
    )
    randomize(layer)
    return layer


LAYERS: list[Any] = [
    pytest.param(lambda: build(index_pattern()), (3, 24, 2), id="untied"),
    pytest.param(lambda: build(index_pattern(), "all"), (3, 24, 2), id="convolution"),
    pytest.param(
        lambda: build(masked_pattern(), "longitude", groups=2), (3, 24, 2), id="longitude"
    ),
    pytest.param(lambda: build(masked_pattern(), REGIONS), (3, 24, 2), id="regions"),
    pytest.param(low_rank, (3, 24, 2), id="low rank"),
    pytest.param(forward_2d, (3, 2, *SHAPE), id="2d"),
    pytest.param(lambda: forward_2d("all"), (3, 2, *SHAPE), id="2d convolution"),
    pytest.param(transposed_2d, (3, 2, *SHAPE), id="2d transposed"),
]
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS)


def gradients(function: Any, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and all gradients."""
    x = x.detach().requires_grad_()
    y = function(x)
    pull = randn(*y.shape, seed=9).to(y)
    return [y, *torch.autograd.grad(y, (x, *layer.parameters()), pull)]


@every_layer
def test_compiles_as_one_graph(make: Any, shape: tuple[int, ...]) -> None:
    layer, x = make(), randn(*shape)
    torch._dynamo.reset()
    compiled: Any = torch.compile(layer, fullgraph=True, backend="eager")
    assert_equal(compiled(x), layer(x))


@pytest.mark.parametrize("make", [low_rank, lambda: build(index_pattern(), "longitude")])
def test_compiles_with_derivatives_and_for_other_batches(make: Any) -> None:
    layer, x = make(), randn(3, 24, 2)
    torch._dynamo.reset()
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for mine, want in zip(gradients(compiled, layer, x), gradients(layer, layer, x), strict=True):
        assert_equal(mine, want)
    with torch.compiler.set_stance("fail_on_recompile"):
        twice = torch.cat([x, x]).requires_grad_()
        assert_equal(compiled(twice), layer(twice))


# The compiler makes an instance of an autograd function, which torch itself warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_penalty_compiles_as_one_graph() -> None:
    layer = build(index_pattern())
    layer.smoothness()  # finds the neighbours, once
    torch._dynamo.reset()
    penalty = torch.compile(layer.smoothness, fullgraph=True, backend="aot_eager")
    assert_equal(penalty(), layer.smoothness())
    (compiled,) = torch.autograd.grad(penalty(), layer.weight)
    assert_equal(compiled, torch.autograd.grad(layer.smoothness(), layer.weight)[0])


@every_layer
def test_exports_with_a_free_batch(make: Any, shape: tuple[int, ...]) -> None:
    layer, x = make().eval(), randn(*shape)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    for inputs in (x, randn(7, *shape[1:], seed=3)):
        assert_equal(program.module()(inputs), layer(inputs))


def test_exported_programs_run_where_only_the_kernels_are_imported(tmp_path: Path) -> None:
    x = randn(3, 24, 2)
    model = nn.Sequential(attention(), build(index_pattern())).eval()
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    torch.save((x, model(x)), tmp_path / "sample.pt")
    load = (
        "import torch, scisparse.kernels\n"
        "x, y = torch.load('sample.pt')\n"
        "assert torch.equal(torch.export.load('model.pt2').module()(x), y)\n"
    )
    subprocess.run([sys.executable, "-c", load], cwd=tmp_path, check=True)


@every_layer
def test_autocast_computes_in_bfloat16(make: Any, shape: tuple[int, ...]) -> None:
    layer, x = make().float(), randn(*shape).float()
    exact = gradients(layer, layer, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = gradients(layer, layer, x)
    assert rough[0].dtype == torch.bfloat16
    for mine, want in zip(rough, exact, strict=True):
        assert (mine.float() - want).abs().max() < 0.05 * want.abs().max()
        assert not torch.equal(mine.float(), want)
    for parameter, gradient in zip(layer.parameters(), rough[2:], strict=True):
        assert gradient.dtype == parameter.dtype == torch.float32


@needs_scipy
def test_default_type_is_that_of_geometry_too() -> None:
    """Areas and distances are as precise as those of a layer that is moved to float64."""
    pattern = radius(LatLonGrid.regular(*SHAPE), 4e6)
    scores = Scores(areas=True, knots=3)
    moved = SparseAttention(pattern, 2, 1, scores=scores).double()
    torch.set_default_dtype(torch.float64)
    try:
        layer = SparseAttention(pattern, 2, 1, scores=scores)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, values in moved.named_buffers():
        assert torch.equal(values, layer.get_buffer(name)), name


@every_layer
def test_state_makes_the_round_trip(make: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Through `torch.save` with weights only, and through safetensors."""
    safetensors = pytest.importorskip("safetensors.torch")
    layer, x = make(), randn(*shape)
    states = []
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    states.append(torch.load(buffer, weights_only=True))
    safetensors.save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    states.append(safetensors.load_file(tmp_path / "layer.safetensors"))
    for state in states:
        other = make()
        randomize(other, seed=4)
        assert not torch.equal(other(x), layer(x))
        assert not any(other.load_state_dict(state))
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("kind", [LocallyConnected, LowRankLocallyConnected])
def test_weights_of_another_pattern_are_refused(kind: Any) -> None:
    """Even where every shape fits: a grid that is moved, another mask of as many cells."""
    grid = LatLonGrid.regular(*SHAPE)
    moved = LatLonGrid.from_degrees(np.rad2deg(grid.lat_axis), np.rad2deg(grid.lon_axis) + 1)
    others = [window(moved, 3), window(grid.with_mask(MASK[:, ::-1].copy()), 3)]
    saved = [window(grid, 3), window(grid.with_mask(MASK), 3)]
    rank = {"rank": 2} if kind is LowRankLocallyConnected else {}
    for mine, other in zip(saved, others, strict=True):
        state = kind(mine, 1, 1, **rank).state_dict()
        kind(mine, 1, 1, **rank).load_state_dict(state)
        with pytest.raises(
            PatternError, match="belong to another pattern than this layer's Pattern"
        ):
            kind(other, 1, 1, **rank).load_state_dict(state)


def test_weights_by_tap_are_carried_to_another_grid_as_parameters() -> None:
    coarse, fine = (
        LocallyConnected(window(LatLonGrid.regular(n, 2 * n), 3), 2, 3, tie="all") for n in (6, 9)
    )
    with pytest.raises(PatternError, match=r"or copy its parameters one by one: tie='all' has"):
        fine.load_state_dict(coarse.state_dict())
    with torch.no_grad():
        for mine, given in zip(fine.parameters(), coarse.parameters(), strict=True):
            mine.copy_(given)
    field = torch.randn(2).expand(1, 9 * 18, 2)
    assert_equal(fine(field)[:, :1], coarse(field[:, : 6 * 12])[:, :1])


def test_weights_of_another_tie_are_refused() -> None:
    state = build(index_pattern(), REGIONS).state_dict()
    same = REGIONS.astype(float) * 10  # other names for the same regions
    build(index_pattern(), same).load_state_dict(state)
    for tie, name in ((np.roll(REGIONS, 1, 1), "tie=labels"), ("longitude", "tie='longitude'")):
        with pytest.raises(PatternError, match=f"tied otherwise than this layer's, {name}; build"):
            build(index_pattern(), tie).load_state_dict(state)


@every_layer
def test_copies_and_pickles(make: Any, shape: tuple[int, ...]) -> None:
    layer, x = make(), randn(*shape)
    twin, thawed = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    expected = layer(x)
    for parameter in layer.parameters():
        parameter.data.zero_()
    for other in (twin, thawed, saved):
        assert torch.equal(other(x), expected)
        assert repr(other) == repr(layer)
    assert not layer(x).any()


@every_layer
def test_training_lowers_a_loss(make: Any, shape: tuple[int, ...]) -> None:
    layer, x = make(), randn(*shape)
    target = randn(*layer(x).shape, seed=11)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@every_layer
def test_first_and_second_derivatives(make: Any, shape: tuple[int, ...]) -> None:
    layer = make()
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        out: Tensor = torch.func.functional_call(layer, given, (x,))
        return out

    inputs = (randn(*shape), *(p.detach().clone() for p in layer.parameters()))
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@every_layer
def test_selective_checkpoints_keep_what_operators_return(
    make: Any, shape: tuple[int, ...]
) -> None:
    """They refuse what was written to since."""

    def keep(_: Any, operator: Any, *args: Any, **options: Any) -> CheckpointPolicy:
        ours = operator.namespace == "scisparse"
        return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE

    layer, x = make(), randn(*shape)
    contexts = partial(create_selective_checkpoint_contexts, keep)
    run = partial(checkpoint, layer, use_reentrant=False, context_fn=contexts)
    for mine, want in zip(gradients(run, layer, x), gradients(layer, layer, x), strict=True):
        assert_equal(mine, want)


@every_tie
def test_penalised_gradient_reaches_the_weights(tie: Any) -> None:
    """A physics loss: the derivative of the layer by its input, squared, is trained."""
    layer = build(index_pattern(), tie)
    x = randn(1, 24, 2).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().min() > 0


@every_layer
def test_description_is_short_and_telling(make: Any, shape: tuple[int, ...]) -> None:
    text = repr(make())
    assert "2, 4" in text
    assert "Pattern(" in text
    assert len(text) < 400


# -- ensembles -------------------------------------------------------------------------------------


def attention() -> SparseAttention:
    layer = SparseAttention(masked_pattern(), 2, 1, scores=Scores(taps=True)).double()
    randomize(layer)
    return layer


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    ("make", "shape"), [*LAYERS, pytest.param(attention, (3, 24, 2), id="attention")]
)
def test_stacked_layers_run_as_an_ensemble(make: Any, shape: tuple[int, ...]) -> None:
    """``stack_module_state`` stacks index buffers beside the parameters."""
    layers, x = [make(), make()], randn(*shape)
    for parameter in layers[1].parameters():
        parameter.data.neg_().add_(0.3)
    parameters, buffers = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")

    def call(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(base, (parameters, buffers), (x,))
        return y

    y = torch.func.vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    assert_equal(y, torch.stack([layer(x) for layer in layers]))

    def loss(parameters: Any, buffers: Any) -> Tensor:
        return call(parameters, buffers, x).square().sum()

    slopes = torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
    for n, layer in enumerate(layers):
        expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
        for (name, _), slope in zip(layer.named_parameters(), expected, strict=True):
            assert_equal(slopes[name][n], slope)


@pytest.mark.parametrize("make", [lambda: build(index_pattern()), attention])
def test_mapped_layers_compile_as_one_graph(make: Any) -> None:
    """``torch.vmap`` asks for the repr of what it maps."""
    layer, x = make(), randn(2, 3, 24, 2)
    torch._dynamo.reset()
    mapped = torch.compile(lambda x: torch.vmap(layer)(x), fullgraph=True, backend="eager")
    assert_equal(mapped(x), torch.stack([layer(one) for one in x]))
