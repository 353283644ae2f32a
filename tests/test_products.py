"""`spmm`, `sddmm` and `segment_softmax`: against dense matrices, and their calculus."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_cases import TOLERANCE, Case, device_of, generator, pairs
from product_cases import BACKENDS
from torch import Tensor

from scisparse.errors import PatternError, ShapeError
from scisparse.kernels import sddmm, segment_softmax, spmm, use_backend
from scisparse.kernels._edges import Edges

SHAPES = [
    (2, 7, 5, 2, 3, 4),  # odd widths
    (1, 60, 40, 1, 40, 9),  # five vectors
    (3, 9, 8, 2, 8, 0),  # no edge
    (0, 9, 8, 2, 8, 3),  # empty batch
    (2, 20, 30, 3, 17, 7),  # a tail
    (2, 300, 200, 3, 17, 7),  # several threads, a tail
]


def problem(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str = "reference"
) -> tuple[Tensor, Tensor, Tensor, Edges, Tensor]:
    """Value, sites, sources, edges, and where a dense ``[M, N]`` holds the edges."""
    batch, sites, sources, heads, width, fan_in = shape
    gen = generator()
    edges = Case(1, sites, sources, 1, 1, fan_in=fan_in).edges(gen)
    row, device = torch.arange(sites).repeat_interleave(edges.row_ptr.diff()), device_of(backend)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    value = torch.randn(batch, edges.col.numel(), heads, generator=gen).to(device, wide)
    x = torch.randn(batch, sites, heads, width, generator=gen).to(device, dtype)
    z = torch.randn(batch, sources, heads, width, generator=gen).to(device, dtype)
    return value, x, z, edges.to(device), torch.stack([row, edges.col.long()]).to(device)


def close(actual: Tensor, expected: Tensor) -> None:
    bound = (
        20
        * TOLERANCE[actual.dtype]
        * max(1.0, expected.abs().max().item() if expected.numel() else 1)
    )
    assert actual.shape == expected.shape
    assert not actual.numel() or (actual.double() - expected).abs().max().item() <= bound


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("shape", "backend"), pairs(SHAPES, slow=SHAPES[-1:]), ids=str)
def test_products_equal_dense_ones(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    value, x, z, edges, where = problem(shape, dtype, backend)
    matrix = x.new_zeros(shape[0], shape[1], shape[2], shape[3], dtype=torch.float64)
    matrix[:, where[0], where[1]] = value.double()
    y = spmm(value, z, *edges[:2], backend=backend)
    assert y.dtype == dtype
    close(y, torch.einsum("bmnh,bnhd->bmhd", matrix, z.double()))
    sampled = sddmm(x, z, *edges[:2], backend=backend)
    assert sampled.dtype == value.dtype
    scores = torch.einsum("bmhd,bnhd->bmnh", x.double(), z.double())
    close(sampled, scores[:, where[0], where[1]])


@pytest.mark.parametrize("backend", BACKENDS)  # Triton's: test_attention_transforms.py
def test_derivatives_of_every_order(backend: str) -> None:
    value, x, z, edges, _ = problem((2, 3, 4, 2, 2, 2), torch.float64, backend)
    for tensor in (value, x, z):
        tensor.requires_grad_()
    shared = value[:1].detach().requires_grad_()
    calls: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (lambda v, z: spmm(v, z, *edges[:2]), (value, z)),
        (lambda v, z: spmm(v, z, *edges[:2]), (shared, z)),
        (lambda x, z: sddmm(x, z, *edges[:2]), (x, z)),
        (lambda s: segment_softmax(s, edges.row_ptr), (value,)),
    ]
    with use_backend(backend):
        for call, arguments in calls:
            assert torch.autograd.gradcheck(call, arguments)
            assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


def test_operators_are_registered_properly() -> None:
    value, x, z, edges, _ = problem((2, 3, 4, 2, 2, 2), torch.float64)
    for tensor in (value, x, z):
        tensor.requires_grad_()
    none = (None,) * 3
    ops = torch.ops.scisparse
    torch.library.opcheck(ops.spmm.default, (value, z, *edges, *none, "reference"))
    torch.library.opcheck(ops.sddmm.default, (x, z, *edges, *none, "reference"))
    torch.library.opcheck(ops.segment_softmax.default, (value, edges.row_ptr, "reference"))


def test_softmax_of_rows_sums_to_one_far_from_zero() -> None:
    row_ptr = torch.tensor([0, 3, 3, 5, 6])
    score = torch.tensor([1e4, -1e4, 1e4, -torch.inf, 3.0, -torch.inf]).double()
    weight = segment_softmax(score[None, :, None], row_ptr).flatten()
    assert weight.tolist() == [0.5, 0.0, 0.5, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_softmax_of_16_bit_scores_has_their_gradient(dtype: torch.dtype) -> None:
    score = torch.randn(2, 6, 3).to(dtype).requires_grad_()
    row_ptr = torch.tensor([0, 2, 2, 6])
    weight = segment_softmax(score, row_ptr)
    assert weight.dtype == dtype
    (actual,) = torch.autograd.grad(weight.float().square().sum(), score)
    wide = score.detach().double().requires_grad_()
    parts = [wide[:, a:b].softmax(1) for a, b in ((0, 2), (2, 6))]
    (expected,) = torch.autograd.grad(torch.cat(parts, 1).square().sum(), wide)
    torch.testing.assert_close(actual.double(), expected, rtol=0.05, atol=0.02)


def test_what_does_not_fit_is_named() -> None:
    value, x, z, edges, _ = problem((2, 7, 5, 2, 3, 4), torch.float32)
    with pytest.raises(ShapeError, match=r"`value` \[2, \d+, 1\] must be \[B or 1, E, H\]"):
        spmm(value[..., :1], z, *edges[:2])
    with pytest.raises(ShapeError, match=r"`value` is torch.float32; with `x` of torch.float64"):
        spmm(value, z.double(), *edges[:2])
    with pytest.raises(ShapeError, match=r"must be \[B, M, H, D\] and \[B, N, H, D\] with 7 sites"):
        sddmm(x[:, 1:], z, *edges[:2])
    with pytest.raises(ShapeError, match=r"`score` \(torch.int64 \[3\]\) must be floats"):
        segment_softmax(torch.arange(3), edges.row_ptr)
    with pytest.raises(PatternError, match="must run from 0 to the number of edges, 3"):
        segment_softmax(torch.zeros(1, 3, 1), torch.tensor([0, 2]))
    with pytest.raises(ShapeError, match=r"`row_ptr` is torch.int32 \[2\]; it must be int64"):
        segment_softmax(torch.zeros(1, 3, 1), torch.tensor([0, 3]).int())
    with pytest.raises(ShapeError, match=r"`value` is torch.float64; .* must be torch.float32"):
        torch.ops.scisparse.spmm(value.double(), z, *edges, None, None, None, "cpu")
