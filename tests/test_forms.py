"""Stored forms of pruned linear layers behave as modules do, and are loaded again."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import batches, network, seed
from torch import nn

from scisparse.errors import BackendError, OptionError
from scisparse.sparsity import Sparsifier, restore
from scisparse.sparsity.forms import CompressedLinear, SemiStructuredLinear, check_2_of_4

STORED = ("csr", "bsr")


def finalized(to: str, sizes: tuple[int, ...] = (12, 20, 8), **options: object) -> nn.Module:
    seed(4)
    made = Sparsifier(network(sizes), None, "magnitude", sparsity=0.7, **options)  # type: ignore[arg-type]
    return made.finalize(to)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(3, 5), (), (0,)])
def test_product_and_gradients(block: int, bias: bool, batch: tuple[int, ...]) -> None:
    gen = generator(2)
    weight = torch.randn(8, 12, generator=gen, dtype=torch.float64)
    coarse = torch.rand(8 // block, 12 // block, generator=gen) < 0.4
    weight *= coarse.repeat_interleave(block, 0).repeat_interleave(block, 1)
    offset = nn.Parameter(torch.randn(8, generator=gen, dtype=torch.float64)) if bias else None
    layer = CompressedLinear.of(weight, offset, block=block)
    x = torch.randn(*batch, 12, generator=gen, dtype=torch.float64, requires_grad=True)
    wanted = torch.nn.functional.linear(x, weight, offset)
    torch.testing.assert_close(layer(x), wanted)
    inputs = [x] if offset is None else [x, offset]
    g = torch.randn(wanted.shape, generator=gen, dtype=torch.float64)
    for got, expected in zip(
        torch.autograd.grad(layer(x), inputs, g),
        torch.autograd.grad(wanted, inputs, g),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)
    with pytest.raises(OptionError, match="convert one"):
        layer(x.detach().float())


@pytest.mark.parametrize("to", STORED)
def test_a_stored_form_is_a_module_like_others(to: str) -> None:
    model = finalized(to)
    x = batches(1)[0][0]
    expected = model(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(copy.deepcopy(model)(x).detach(), expected)
    double = copy.deepcopy(model).double()
    torch.testing.assert_close(double(x.double()).float().detach(), expected)
    half = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float().detach(), expected, rtol=3e-2, atol=3e-2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float().detach(), expected, rtol=3e-2, atol=3e-2)
    model(x).sum().backward()
    grads = {name: p.grad is not None for name, p in model.named_parameters()}
    assert grads == {n: n.endswith("bias") for n in grads}
    assert sum(grads.values()) == 2


@pytest.mark.parametrize("to", ["condensed", "dense", *STORED])
@pytest.mark.parametrize("structure", ["unstructured", "channels"])
def test_a_finalized_model_is_loaded_into_one_built_anew(to: str, structure: str) -> None:
    model = finalized(to, (12, 21, 9, 5), structure=structure)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = network((12, 21, 9, 5)).eval()
    fresh.get_parameter("0.bias").requires_grad_(False)
    again = restore(fresh, torch.load(file))
    x = batches(1)[0][0]
    assert torch.equal(again(x), model(x))
    assert {type(m) for m in again.modules()} == {type(m) for m in model.modules()}
    assert not any(m.training for m in again.modules())
    assert not again.get_parameter("0.bias").requires_grad
    assert again.get_parameter("2.bias").requires_grad


def test_a_linear_model_and_one_without_biases_are_loaded() -> None:
    seed()
    model = Sparsifier(nn.Linear(6, 4, bias=False), None, "magnitude", sparsity=0.5)
    state = model.finalize("csr").state_dict()
    again = restore(nn.Linear(6, 4, bias=False).double(), state)
    assert isinstance(again, CompressedLinear)
    assert again.values.dtype == torch.float64
    # A neuron that gives a constant moves into a bias that was not there.
    chain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        chain.get_parameter("0.weight")[1] = 0
        chain.get_parameter("0.bias")[1] = 2
    final = Sparsifier(chain, None, "magnitude", sparsity=0.5).finalize("dense")
    fresh = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    x = torch.randn(5, 3)
    assert torch.equal(restore(fresh, final.state_dict())(x), final(x))


@pytest.mark.parametrize("tracked", [True, False])
def test_smaller_norms_are_built_anew(tracked: bool) -> None:
    def build() -> nn.Sequential:
        norm = nn.BatchNorm1d(8, track_running_stats=tracked)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 2))

    seed()
    model = build()
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5, structure="channels")
    final, x = sparsifier.finalize("condensed").eval(), torch.randn(5, 4)
    assert len(final.get_parameter("2.weight")) < 8
    assert torch.equal(restore(build().eval(), final.state_dict())(x), final(x))


def test_another_model_is_not_loaded() -> None:
    state = finalized("condensed").state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        restore(network((12, 20, 8, 3)), state)
    layer = CompressedLinear.of(torch.eye(3, 5), None, block=1)
    other = CompressedLinear.of(torch.eye(3, 4), None, block=1)
    with pytest.raises(OptionError, match="saved layer has 5 inputs, this one 4"):
        other.load_state_dict(layer.state_dict())


def test_2_of_4_keeps_what_it_is_given() -> None:
    gen = generator(5)
    weight = torch.randn(6, 16, generator=gen)
    place = torch.rand(6, 4, 4, generator=gen).argsort(-1)
    weight = weight.masked_fill((place >= 2).view(6, 16), 0)
    weight[0, :4] = 0  # fewer than 2
    layer = SemiStructuredLinear.of(weight, None)
    assert torch.equal(layer.weight, weight)
    assert layer.values.shape == (6, 8)
    assert torch.equal(copy.deepcopy(layer).double().weight, weight.double())
    check_2_of_4("weight", weight != 0)
    with pytest.raises(BackendError, match="NVIDIA"):
        layer(torch.randn(2, 16))
    again = restore(nn.Linear(16, 6, bias=False), layer.state_dict())
    assert isinstance(again, SemiStructuredLinear)
    assert torch.equal(again.weight, weight)


def test_more_than_2_of_4_are_refused() -> None:
    seed()
    sparsifier = Sparsifier(nn.Linear(16, 8), None, "magnitude", sparsity=0.5)
    with pytest.raises(OptionError, match=r"weight keeps [34] of 4 consecutive inputs"):
        sparsifier.finalize("2:4")
    sparsifier = Sparsifier(nn.Linear(6, 8), None, "magnitude", sparsity=0.5)
    with pytest.raises(OptionError, match="has 6 inputs, which 4 must divide"):
        sparsifier.finalize("2:4")
