"""Memory of large gradients is kept for the next step, never lent twice, and let go."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor

from scisparse import kernels, patterns
from scisparse.grids import LatLonGrid
from scisparse.kernels import _kept
from scisparse.kernels.gather_matmul import cpu, reference
from scisparse.layers import LocallyConnected
from scisparse.pattern import Pattern

CHANNELS = 16
SHAPE = (700, CHANNELS, CHANNELS)  # 0.7 MB, or 1.4 in double precision


def pattern() -> Pattern:
    # 9 * 24 * 15 edges, less those over the poles: gradients of 3 MB
    lat, lon = [-84.0 + 12.0 * row for row in range(15)], [15.0 * column for column in range(24)]
    return patterns.window(LatLonGrid.from_degrees(lat, lon), 3)


def gradient(layer: LocallyConnected, x: Tensor) -> Tensor:
    layer.zero_grad(set_to_none=True)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad


@pytest.fixture
def layer() -> LocallyConnected:
    if cpu.can_run(torch.device("cpu"), torch.float32) is not None:
        pytest.skip("there is no compiler, and the reference keeps no memory")
    torch.manual_seed(3)
    return LocallyConnected(pattern(), CHANNELS, CHANNELS)


@pytest.fixture
def x(layer: LocallyConnected) -> Tensor:
    return torch.randn(2, layer.pattern.num_sources, CHANNELS)


def test_a_step_writes_to_the_memory_of_the_one_before(layer: LocallyConnected, x: Tensor) -> None:
    first = gradient(layer, x)
    expected, place, size = first.clone(), first.data_ptr(), first.shape
    del first
    layer.zero_grad(set_to_none=True)
    others = [torch.empty(size) for _ in range(4)]  # would have it, were it free for all
    again = gradient(layer, x)
    assert again.data_ptr() == place
    assert place not in [other.data_ptr() for other in others]
    torch.testing.assert_close(again, expected, rtol=0, atol=0)


def test_memory_in_use_is_not_lent_again(layer: LocallyConnected, x: Tensor) -> None:
    held = [gradient(layer, x) for _ in range(3)]
    view, array = gradient(layer, x)[5:9].detach(), gradient(layer, x).numpy()
    copies = [each.clone() for each in (*held, view)], array.copy()
    layer.zero_grad(set_to_none=True)
    for _ in range(4):
        gradient(layer, -3.0 * x)
    for each, expected in zip((*held, view), copies[0], strict=True):
        torch.testing.assert_close(each, expected, rtol=0, atol=0)
    assert (array == copies[1]).all()


def test_layers_over_one_pattern_and_gradients_that_add_up(x: Tensor) -> None:
    shared = pattern()
    layers = [LocallyConnected(shared, CHANNELS, CHANNELS) for _ in range(3)]
    double = [copy.deepcopy(layer).double() for layer in layers]
    for _ in range(3):
        for group, given in ((layers, x), (double, x.double())):
            for layer in group:
                layer.zero_grad(set_to_none=True)
            for scale in (1.0, 0.5):  # the second pass adds to the gradients of the first
                out = scale * given
                for layer in group:
                    out = layer(out).tanh()
                out.sum().backward()
    for layer, exact in zip(layers, double, strict=True):
        assert layer.weight.grad is not None
        torch.testing.assert_close(
            layer.weight.grad.double(), exact.weight.grad, rtol=1e-3, atol=1e-3
        )


def test_memory_goes_with_the_edges_or_when_asked() -> None:
    """Where the tensor lives on, its memory stays, but does not come back."""
    for drop in (lambda col: col.clear(), lambda col: kernels.empty_cache()):
        col = [torch.arange(3)]
        lent = _kept.empty(col[0], SHAPE, torch.float64)[0].fill_(7.0)
        free = _kept.empty(col[0], SHAPE, torch.float64)[0]
        blocks = weakref.ref(_kept._kept[col[0]])
        del free
        drop(col)
        gc.collect()
        assert blocks() is None
        assert bool((lent == 7.0).all())
        del lent


def test_what_no_step_needs_any_more_is_let_go() -> None:
    col = torch.arange(3)
    many = [_kept.empty(col, SHAPE, torch.float64)[0] for _ in range(10)]
    other = _kept.empty(col, (*SHAPE, 2), torch.float64)[0]
    many.clear()
    del other
    kept = _kept._kept[col]
    assert sum(map(len, kept._free.values())) == 11
    for _ in range(3 * _kept._WINDOW):
        pair = [_kept.empty(col, SHAPE, torch.float64)[0] for _ in range(2)]
        del pair
    assert sum(map(len, kept._free.values())) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_memory_is_as_that_of_empty(dtype: torch.dtype) -> None:
    col = torch.arange(3)
    for shape in (SHAPE, (4 * SHAPE[0], *SHAPE[1:]), (0, 2, 3)):
        made, plain = _kept.empty(col, shape, dtype)[0], torch.empty(shape, dtype=dtype)
        assert made.shape == plain.shape
        assert made.dtype == plain.dtype
        assert made.stride() == plain.stride()
        assert made.data_ptr() % 64 == 0
        assert made.is_leaf
        assert made._base is None
        assert bool(made.isnan().all())  # as tests ask torch for
        assert made.fill_(2.0).sum() == 2.0 * made.numel()
        assert copy.deepcopy(made).data_ptr() != made.data_ptr() or not made.numel()


def test_outputs_take_the_place_of_those_that_are_gone() -> None:
    if cpu.can_run(torch.device("cpu"), torch.float32) is not None:
        pytest.skip("there is no compiler, and the reference keeps no memory")
    kernels.empty_cache()
    shape = pattern()
    layers = [LocallyConnected(shape, 8, 8) for _ in range(2)]
    x = torch.randn(4000, shape.num_sources, 8)  # 46 MB
    first = layers[0](x)
    expected, places = layers[1](x).detach().clone(), {first.data_ptr()}
    held = layers[0](2.0 * x)
    places.add(held.data_ptr())
    copied = held.detach().clone()
    del first
    again = layers[1](x)
    assert again.data_ptr() in places
    assert again.data_ptr() != held.data_ptr()
    assert torch.equal(again, expected)
    assert torch.equal(held, copied)


def test_few_outputs_lie_idle() -> None:
    kernels.empty_cache()
    rows = _kept._LEAST_OUTPUT // 4 + 1
    many = [_kept.empty_output((rows + k // 8,), torch.float32) for k in range(16)]
    large = _kept.empty_output((_kept._MOST_IDLE // 4 + 1,), torch.float32)
    many.clear()
    del large
    free = [block.nbytes for blocks in _kept._outputs._free.values() for block in blocks]
    assert 0 < sum(free) <= _kept._MOST_IDLE
    kernels.empty_cache()
    assert not any(_kept._outputs._free.values())
    small = _kept.empty_output((7, 9), torch.float32)
    del small
    assert not any(_kept._outputs._free.values())


def test_sizes_that_come_back_stay_and_others_are_forgotten() -> None:
    kernels.empty_cache()
    least = _kept._LEAST_OUTPUT // 4

    def take(size: int) -> Tensor:
        return _kept.empty_output((size,), torch.float32)

    def use(size: int) -> int:
        return take(size).data_ptr()

    use(3 * least)
    both = [take(3 * least + more) for more in (1, 2)]
    del both
    assert use(3 * least) == use(3 * least)  # what was given back longest ago went, not this
    for more in range(3 * _kept._WINDOW):
        use(least + 1 + more % (2 * _kept._WINDOW))
    assert len(_kept._outputs._free) <= _kept._WINDOW + 1
    kernels.empty_cache()


@pytest.mark.parametrize("channels", [(40, 40), (72, 24), (37, 41), (160, 9), (512, 3)])
def test_writes_past_the_caches_are_those_of_new_memory(channels: tuple[int, int]) -> None:
    """Gradients of more than 16 MiB go past the caches where their memory is not new."""
    if cpu.can_run(torch.device("cpu"), torch.float32) is not None:
        pytest.skip("there is no compiler")
    shape, (c, o) = pattern(), channels
    x, grad = torch.randn(3, shape.num_sources, c), torch.randn(3, shape.num_sites, o)
    edges = (shape.row_ptr, shape.col, None, shape.num_edges)
    first = cpu.edge_outer(x, grad, *edges)
    assert first.nbytes > 16 << 20
    expected, place = first.clone(), first.data_ptr()
    del first
    again = cpu.edge_outer(x, grad, *edges)
    assert again.data_ptr() == place
    assert torch.equal(again, expected)
    exact = reference.edge_outer(x.double(), grad.double(), *edges)
    torch.testing.assert_close(again.double(), exact, rtol=1e-5, atol=1e-5)


def test_rooms_and_outputs_do_not_push_each_other_out() -> None:
    _kept.empty_cache()
    count = _kept._MOST_IDLE // 4
    room, output = (
        _kept.empty_room(count, torch.float32),
        _kept.empty_output((10**7,), torch.float32),
    )
    places = room.data_ptr(), output.data_ptr()
    del room, output
    gc.collect()
    room, output = (
        _kept.empty_room(count, torch.float32),
        _kept.empty_output((10**7,), torch.float32),
    )
    assert (room.data_ptr(), output.data_ptr()) == places
    _kept.empty_cache()
