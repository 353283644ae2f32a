"""Every layer compiles with free shapes, and may be run anew in the backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scisparse import layers
from scisparse.patterns import sliding_window, window

LINE, FIELD = (7,), (5, 6)
NOT_CALLED = {"PatternEdges"}  # holds indices
OUTSIDE_THE_GRAPH = {"LSHAttention", "BlockTopKAttention"}  # edges depend on the data


class OneGraph(nn.Module):
    """Layer over graphs whose edges stay."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = layers.GraphTransformer(4, 3, heads=2)
        self.edge_index = torch.randint(7, (2, 20), generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, self.edge_index)
        return y


def convolution(name: str, axes: int) -> tuple[Callable[[], Any], tuple[int, ...]]:
    size = (4, 5, 6)[:axes]
    return lambda: getattr(layers, name)(4, 3, 3, input_size=size), (4, *size)


# Layers, and shapes of an input without the batch.
MAKE: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "SparseAttention": (lambda: layers.SparseAttention(sliding_window(7, 3), 4, 2), (7, 4)),
    "LinformerAttention": (lambda: layers.LinformerAttention(4, 2, 7, 3), (7, 4)),
    "LSHAttention": (lambda: layers.LSHAttention(4, 2, 2, 4), (7, 4)),
    "BlockTopKAttention": (lambda: layers.BlockTopKAttention(4, 2, 2, 1), (7, 4)),
    "GraphTransformer": (OneGraph, (4,)),
    "NeighborhoodAttention1d": (
        lambda: layers.NeighborhoodAttention1d(4, 2, 3, input_size=LINE),
        (*LINE, 4),
    ),
    "NeighborhoodAttention2d": (
        lambda: layers.NeighborhoodAttention2d(4, 2, 3, input_size=FIELD),
        (*FIELD, 4),
    ),
    "NeighborhoodAttention3d": (
        lambda: layers.NeighborhoodAttention3d(4, 2, 2, input_size=(2, *FIELD)),
        (2, *FIELD, 4),
    ),
    "ShiftedWindowAttention": (
        lambda: layers.ShiftedWindowAttention(4, 2, (2, 3), input_size=FIELD, shift=True),
        (*FIELD, 4),
    ),
    "SparseLinear": (lambda: layers.SparseLinear(4, 3, fan_in=2), (4,)),
    "LocallyConnected": (
        lambda: layers.LocallyConnected(window(FIELD, 3, padding=1), 4, 3),
        (30, 4),
    ),
    "LowRankLocallyConnected": (
        lambda: layers.LowRankLocallyConnected(window(FIELD, 3, padding=1), 4, 3, 2),
        (30, 4),
    ),
    **{
        f"LocallyConnected{kind}{axes}d": convolution(f"LocallyConnected{kind}{axes}d", axes)
        for kind in ("", "Transpose")
        for axes in (1, 2, 3)
    },
}
MASKED = ["SparseAttention", "NeighborhoodAttention2d", "ShiftedWindowAttention"]


def compiled_form(layer: Any, *, whole: bool = True) -> Any:
    torch._dynamo.reset()
    backend = "aot_eager" if whole else "eager"
    return torch.compile(layer, fullgraph=whole, dynamic=True, backend=backend)


def test_all_layers_are_here() -> None:
    public = {
        name
        for name, value in vars(layers).items()
        if inspect.isclass(value) and issubclass(value, nn.Module)
    }
    assert public - NOT_CALLED == set(MAKE)


# Where torch leaves a compiled graph it looks at `.grad` of what goes on, and warns itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", MAKE)
def test_compiles_with_free_shapes(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MAKE[name]
    layer = make()
    compiled = compiled_form(layer, whole=name not in OUTSIDE_THE_GRAPH)
    # The first is no other size of a layer, which the compiler would take for the same.
    for batch, stance in ((11, "default"), (13, "fail_on_recompile")):
        x = torch.randn(batch, *shape, requires_grad=True)
        with torch.compiler.set_stance(stance):
            y = compiled(x)
        expected = layer(x)
        torch.testing.assert_close(y, expected)
        pull = torch.randn_like(y)
        ours, theirs = (torch.autograd.grad(out, x, pull) for out in (y, expected))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", MAKE)
def test_activations_may_be_recomputed(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MAKE[name]
    layer, x = make(), torch.randn(7, *shape, requires_grad=True)
    pull = torch.randn_like(layer(x))
    taken = (x, *(p for p in layer.parameters() if p.requires_grad))
    found = [
        torch.autograd.grad(y, taken, pull, allow_unused=True)
        for y in (layer(x), checkpoint(layer, x, use_reentrant=False))
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", MAKE)
def test_products_with_the_jacobian_are_taken_later(name: str) -> None:
    """What ``torch.func.vjp`` returns is called when the transform is over."""
    torch.manual_seed(0)
    make, shape = MAKE[name]
    layer, x = make(), torch.randn(7, *shape)
    weights = {name: p for name, p in layer.named_parameters() if p.requires_grad}

    def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, weights, (x,))
        return y

    vjp: Any = torch.func.vjp
    y, pull_back = vjp(call, {name: p.detach() for name, p in weights.items()}, x)
    pull = torch.randn_like(y)
    slopes, slope = pull_back(pull)
    taken = (*weights.values(), x.requires_grad_())
    expected = torch.autograd.grad(layer(x), taken, pull, materialize_grads=True)
    torch.testing.assert_close((*slopes.values(), slope), expected)
    # So are the weights of the layer itself, which the transform only reads.
    y, pull_back = vjp(lambda x: layer(x), x.detach())
    torch.testing.assert_close(pull_back(pull), expected[-1:])


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("batch_of_mask", ["none", "one", "all"])
def test_compiles_with_masks_and_free_shapes(name: str, batch_of_mask: str) -> None:
    make, shape = MAKE[name]
    layer, gen = make(), torch.Generator().manual_seed(0)
    compiled = compiled_form(layer)
    for batch in (3, 5):
        x = torch.randn(batch, *shape, generator=gen)
        sizes = {"none": (), "one": (1,), "all": (batch,)}[batch_of_mask]
        mask = torch.rand(*sizes, *shape[:-1], generator=gen) < 0.6
        torch.testing.assert_close(compiled(x, source_mask=mask), layer(x, source_mask=mask))


@pytest.mark.parametrize("name", ["SparseAttention", "LinformerAttention"])
def test_layers_of_two_sizes_compile_one_after_the_other(name: str) -> None:
    """The compiler frees a size that it has seen with two values."""
    torch._dynamo.reset()
    for tokens in (64, 32):
        layer: nn.Module = layers.LinformerAttention(4, 2, tokens, 3)
        if name == "SparseAttention":
            layer = layers.SparseAttention(sliding_window(tokens, 3), 4, 2)
        x = torch.randn(2, tokens, 4)
        compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))
