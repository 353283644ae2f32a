"""The end of training: what becomes of layers, and that the function stays the same."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import OFTEN, adam, batches, fields, locally, network, seed, train
from torch import nn

from scisparse.errors import BackendError, MemoryLimitError, OptionError
from scisparse.layers import SparseLinear
from scisparse.pattern import Pattern
from scisparse.sparsity import Sparsifier, restore
from scisparse.sparsity.ablation import remove_neurons
from scisparse.sparsity.forms import CompressedLinear, SemiStructuredLinear


@pytest.mark.parametrize("to", ["auto", "condensed", "dense", "csr", "bsr"])
def test_forms_are_the_same_function(to: str) -> None:
    seed()
    model = network((64, 48, 16))
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, "rigl", sparsity=0.9, schedule=OFTEN)
    train(model, optimizer, sparsifier, batches(5, 64, 16))
    x = batches(1, 64, 16)[0][0]
    expected = model(x).detach()
    final = sparsifier.finalize(to)
    torch.testing.assert_close(final(x).detach(), expected, rtol=1e-5, atol=1e-5)
    assert [form.form for form in sparsifier.forms] == [to, to] or to == "auto"
    if to == "condensed":
        assert all(isinstance(final.get_submodule(name), SparseLinear) for name in "02")
    if to == "auto":
        for form in sparsifier.forms:
            assert form.form == min(form.milliseconds, key=lambda key: form.milliseconds[key])
            assert "ms" in str(form)
    if to not in ("csr", "bsr"):  # the others train on, with no hook left
        for parameter in final.parameters():
            parameter.grad = None
        final(x).sum().backward()
        assert all(parameter.grad is not None for parameter in final.parameters())


def sparse_network() -> nn.Sequential:
    seed(4)
    return nn.Sequential(SparseLinear(20, 30, 4), nn.GELU(), SparseLinear(30, 8, 5, bias=False))


@pytest.mark.parametrize("to", ["auto", "condensed", "dense", "csr", "bsr"])
@pytest.mark.parametrize("method", ["set", "gmp"])
def test_sparse_layers_take_the_form_that_is_asked_for(to: str, method: str) -> None:
    model, data = sparse_network(), batches(6, 20, 8)
    optimizer = adam(model)
    sparsity = 0.6 if method == "gmp" else 0.9
    sparsifier = Sparsifier(model, optimizer, method, sparsity=sparsity, total_steps=6)
    train(model, optimizer, sparsifier, data)
    expected = model(data[0][0]).detach()
    final = sparsifier.finalize(to)
    torch.testing.assert_close(final(data[0][0]).detach(), expected, rtol=1e-5, atol=1e-5)
    kinds = {"dense": nn.Linear, "condensed": SparseLinear}
    layers = [final.get_submodule(name) for name in "02"]
    for form, layer in zip(sparsifier.forms, layers, strict=True):
        assert form.form == to or to == "auto"
        assert isinstance(layer, kinds.get(form.form, CompressedLinear))
        times = form.milliseconds
        assert (form.form == min(times, key=lambda key: times[key])) if to == "auto" else not times
    again = restore(sparse_network(), final.state_dict())
    assert torch.equal(again(data[0][0]), final(data[0][0]))


def test_what_has_no_room_as_a_dense_matrix_stays_sparse() -> None:
    size = 1 << 18
    diagonal = Pattern.from_edge_index(torch.arange(size).expand(2, -1), size, size)
    model = nn.Sequential(SparseLinear(size, size, pattern=diagonal))
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5)
    with pytest.raises(MemoryLimitError, match=r"0.weight as a dense matrix.*to='condensed'"):
        sparsifier.finalize("csr")
    assert isinstance(sparsifier.finalize()[0], SparseLinear)  # type: ignore[index]
    assert [str(form) for form in sparsifier.forms] == ["0.weight: condensed"]


@pytest.mark.parametrize(("method", "sparsity"), [("static", 0.95), ("magnitude", 0.8)])
def test_the_report_is_of_the_layers_that_are_left(method: str, sparsity: float) -> None:
    sparsifier = Sparsifier(sparse_network(), None, method, sparsity=sparsity)
    before = sparsifier.report()
    final = sparsifier.finalize("condensed")
    after = sparsifier.report()
    layers = [module for module in final.modules() if isinstance(module, SparseLinear)]
    assert layers[0].out_features < 30
    assert [row.active for row in after.layers] == [layer.weight.numel() for layer in layers]
    assert [row.bytes for row in after.layers] == [4 * row.active for row in after.layers]
    assert [row.size for row in after.layers] == [row.size for row in before.layers]
    sites = [[k % 2 for k in range(layer.out_features)] for layer in layers]
    for k, labels in enumerate(sites):
        assert sum(r.active for r in sparsifier.report(labels).layers[k].regions) == (
            after.layers[k].active
        )


@pytest.mark.parametrize("to", ["condensed", "csr", "dense"])
@pytest.mark.parametrize("method", ["magnitude", "rigl"])
def test_the_report_counts_the_bytes_that_are_left(to: str, method: str) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), SparseLinear(32, 24, fan_in=8))
    sparsifier = Sparsifier(model, adam(model), method, sparsity=0.8, total_steps=40)
    state = sparsifier.finalize(to).state_dict()
    stored = ["values" if to == "csr" else "weight"] * 2
    left = [state[f"{layer}.{name}"].nbytes for layer, name in zip("02", stored, strict=True)]
    assert [layer.bytes for layer in sparsifier.report().layers] == left


def test_a_linear_model_itself() -> None:
    seed()
    model = nn.Linear(12, 6)
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5)
    final = sparsifier.finalize("condensed")
    assert isinstance(final, SparseLinear)
    assert torch.equal(final.to_dense().weight, model.weight)


def test_block_sparse_form_takes_blocks() -> None:
    seed()
    model = nn.Linear(32, 32)
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5, structure="block")
    expected = model.weight.detach().clone()
    final = sparsifier.finalize("bsr")
    assert isinstance(final, CompressedLinear)
    weight = final.weight
    assert weight.values().shape[1:] == (4, 4)
    assert torch.equal(weight.to_dense(), expected)


def test_pattern_layers_lose_their_pruned_edges() -> None:
    layer = locally()
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "gmp", sparsity=0.75, total_steps=12)
    train(layer, optimizer, sparsifier, fields(12))
    x = fields(1)[0][0]
    expected, edges = layer(x).detach(), layer.pattern.num_edges
    assert sparsifier.finalize() is layer
    assert layer.weight.shape[0] == layer.pattern.num_edges == round(0.25 * edges)
    torch.testing.assert_close(layer(x).detach(), expected)


def chain(*, bias: bool = True) -> nn.Sequential:
    seed(3)
    model = nn.Sequential(
        nn.Linear(5, 8),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Linear(8, 7, bias=bias),
        nn.Sequential(nn.ReLU(), nn.Linear(7, 7), nn.Sigmoid(), nn.Linear(7, 3)),
    ).double()
    with torch.no_grad():
        model.get_parameter("0.weight")[[1, 4]] = 0  # nothing reaches these
        model.get_parameter("3.weight")[:, 6] = 0  # this reaches nothing
        model.get_parameter("4.1.weight")[:] = 0  # all idle: left alone
    return model.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_idle_neurons_leave_no_trace(bias: bool) -> None:
    model = chain(bias=bias)
    x = torch.randn(9, 5, dtype=torch.float64, generator=generator(1))
    expected = model(x)
    assert remove_neurons(model) == 3
    torch.testing.assert_close(model(x), expected)
    assert model.get_parameter("0.weight").shape == (5, 5)
    assert model.get_parameter("3.weight").shape == (7, 5)
    assert model.get_submodule("3").training is False
    assert remove_neurons(model) == 0


def test_ablated_neurons_are_removed_from_a_trained_model() -> None:
    seed()
    model, data = network((40, 30, 8)), batches(40, 40, 8)
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, "srigl", sparsity=0.95, total_steps=40)
    train(model, optimizer, sparsifier, data)
    x = data[0][0]
    expected = model(x).detach()
    final = sparsifier.finalize("condensed")
    first = final.get_submodule("0")
    assert isinstance(first, SparseLinear)
    assert first.out_features < 30
    torch.testing.assert_close(final(x).detach(), expected, rtol=1e-5, atol=1e-5)


def test_forms_that_cannot_be() -> None:
    model = network()
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5, structure="2:4", params=["0"])
    with pytest.raises(BackendError, match="NVIDIA"):
        sparsifier.finalize("2:4")
    with pytest.raises(OptionError, match="did you mean 'condensed'"):
        sparsifier.finalize("condense")


class OnGpu(nn.Parameter):
    """Says that it is on a GPU, which only what asks before it computes may believe."""

    is_cuda = True


@pytest.mark.parametrize(
    ("size", "dtype", "said"),
    [
        ((32, 64), torch.float32, "0.weight is torch.float32, and torch multiplies .* in 16 bits"),
        ((64, 10), torch.bfloat16, "10 outputs and 64 inputs in torch.bfloat16"),
        ((20, 64), torch.float16, "64 outputs and 20 inputs in torch.float16"),
        ((16, 48), torch.bfloat16, None),
    ],
)
def test_what_torch_does_not_pack_is_refused_before_anything_is_replaced(
    size: tuple[int, int], dtype: torch.dtype, said: str | None
) -> None:
    linear = nn.Linear(*size, bias=False, dtype=dtype)
    linear.weight = OnGpu(linear.weight.detach())
    model = nn.Sequential(linear)
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5, structure="2:4")
    if said is None:
        layer = sparsifier.finalize("2:4").get_submodule("0")
        assert isinstance(layer, SemiStructuredLinear)
        assert torch.equal(layer.weight, linear.weight)
        return
    with pytest.raises(OptionError, match=said):
        sparsifier.finalize("2:4")
    assert model.get_submodule("0") is linear


def test_a_float32_model_may_become_2_of_4_for_calls_under_autocast() -> None:
    linear = nn.Linear(32, 16, bias=False)
    linear.weight = OnGpu(linear.weight.detach())
    model = nn.Sequential(linear)
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5, structure="2:4")
    with _autocast_on_gpu():
        final = sparsifier.finalize("2:4")
    layer = final.get_submodule("0")
    assert isinstance(layer, SemiStructuredLinear)
    layer.values = OnGpu(layer.values.detach(), requires_grad=False)
    with pytest.raises(BackendError, match=r"the weight is torch\.float32"):
        layer.sparse(torch.float32)


@contextlib.contextmanager
def _autocast_on_gpu() -> Iterator[None]:
    """As ``torch.autocast("cuda")``, which turns itself off without a GPU."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before)


def test_state_is_loaded_into_sparse_layers_of_any_fan_in() -> None:
    """The code that built the dense model cannot load it: neurons are gone, and so are zeros."""
    seed()
    model = network((30, 24, 5))
    with torch.no_grad():
        model.get_parameter("2.weight")[:, [3, 8, 20]] = 0
    sparsifier = Sparsifier(model, method="magnitude", sparsity=0.8)
    x = batches(1, 30, 5)[0][0]
    final = sparsifier.finalize("condensed")
    file = io.BytesIO()
    torch.save(final.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    width = len(state["0.bias"])
    assert width <= 21
    again = nn.Sequential(
        SparseLinear(30, width, fan_in=1), nn.Tanh(), SparseLinear(width, 5, fan_in=1)
    )
    again.load_state_dict(state)
    assert torch.equal(again(x), final(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        network((30, 24, 5)).load_state_dict(state)
