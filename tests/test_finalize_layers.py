"""The end of training in models that do more with their layers than call them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import network, seed
from torch import Tensor, nn

from scisparse.layers import GraphTransformer, SparseAttention, SparseLinear
from scisparse.patterns import sliding_window
from scisparse.sparsity import Sparsifier

Call = Callable[[nn.Module], Tensor]


def attention() -> tuple[nn.Module, str, Call]:
    pattern = sliding_window(7, 3)
    x, features = torch.randn(2, 7, 16), torch.randn(pattern.num_edges, 3)
    layer = SparseAttention(pattern, 16, 2, edge_dim=3)
    return layer, "edge_proj.weight", lambda model: model(x, edge_attr=features)


def graph() -> tuple[nn.Module, str, Call]:
    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 1, 0, 2, 4]])
    x, features = torch.randn(5, 8), torch.randn(5, 3)
    layer = GraphTransformer(8, 4, heads=2, edge_dim=3)
    return layer, "lin_edge.weight", lambda model: model(x, edges, features)


@pytest.mark.parametrize("make", [attention, graph])
def test_weights_that_a_layer_reads_itself_stay(
    make: Callable[[], tuple[nn.Module, str, Call]],
) -> None:
    seed()
    model, read, call = make()
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5)
    expected = call(model).detach()
    final = sparsifier.finalize("condensed")
    torch.testing.assert_close(call(final).detach(), expected)
    forms = {form.name: form.form for form in sparsifier.forms}
    assert {name for name, form in forms.items() if form == "dense"} == {read}
    assert len(forms) > 4


def test_layers_of_another_sparsifier_stay() -> None:
    seed()
    model = network((6, 12, 10, 3))
    first = Sparsifier(model, None, "magnitude", sparsity=0.5, structure="channels", params=["0"])
    second = Sparsifier(model, None, "gmp", sparsity=0.7, total_steps=4, params=["2", "4"])
    x = torch.randn(5, 6)
    expected = model(x).detach()
    first.finalize("dense")
    assert model.get_parameter("2.weight") is second.targets[0].parameter
    torch.testing.assert_close(model(x).detach(), expected)
    for _ in range(4):
        second.step()
    assert second.report().sparsity == pytest.approx(0.7, abs=0.01)
    assert (model.get_parameter("2.weight") == 0).float().mean() > 0.5
    second.finalize("dense")
    assert model.get_parameter("2.weight").shape[1] <= 6  # now its idle inputs may go


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
def test_frozen_layers_stay_frozen(frozen: str) -> None:
    seed()
    linear = nn.Linear(5, 4)
    flags = {name: frozen not in (name, "both") for name in ("weight", "bias")}
    for name, flag in flags.items():
        linear.get_parameter(name).requires_grad_(flag)
    keep = torch.rand(4, 5, generator=generator(1)) < 0.5
    sparse = SparseLinear.from_dense(linear, keep)
    for layer in (sparse, sparse.to_dense()):
        assert {n: p.requires_grad for n, p in layer.named_parameters()} == flags


HOOKS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]


@pytest.mark.parametrize("to", ["auto", "condensed", "dense", "csr"])
@pytest.mark.parametrize("kind", HOOKS)
def test_layers_with_hooks_stay_and_call_them_as_often(kind: str, to: str) -> None:
    seed()
    model = nn.Sequential(SparseLinear(8, 12, 4), nn.Tanh(), nn.Linear(12, 6), nn.Linear(6, 2))
    layers, calls = list(model), []
    for layer in layers[::2]:
        getattr(layer, f"register_{kind}")(lambda *_: calls.append(kind))
    sparsifier = Sparsifier(model, None, "rigl", sparsity=0.5, total_steps=100)
    final = sparsifier.finalize(to)
    assert isinstance(final, nn.Sequential)
    assert not calls
    final(torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert len(calls) == 2
    assert list(final)[:3] == layers[:3]
    assert [form.form for form in sparsifier.forms][:2] == ["condensed", "dense"]
    assert isinstance(final[3], nn.Linear) == (sparsifier.forms[2].form == "dense")
