"""CUDA graphs and streams: no operator waits for values on the device, and each uses its stream."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import TOLERANCE, generator
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from scisparse.kernels import _edges as edge_functions
from scisparse.layers import LocallyConnected
from scisparse.patterns import window

TIES = [None, "longitude"]


def make_layer(tie: str | None) -> LocallyConnected:
    torch.manual_seed(int(torch.randint(0, 2**31, (), generator=generator(0))))
    pattern = window((9, 14), 3, padding=1, padding_mode=("zeros", "circular"))
    return LocallyConnected(pattern, 4, 5, tie=tie)


def test_edge_lists_are_made_without_looking_at_values() -> None:
    """A value read on the host would be a wait, and impossible inside a CUDA graph."""
    with FakeTensorMode():  # its tensors have no values: reading one raises
        row_ptr = torch.zeros(7, dtype=torch.int64)
        col, tie = (torch.zeros(20, dtype=torch.int32) for _ in range(2))
        transposed = edge_functions.transpose_edges(row_ptr, col, 11, tie)
        by_tie = edge_functions.sort_by_tie(row_ptr, col, tie, 5)
        with pytest.raises(DataDependentOutputException):
            int(row_ptr[0])
    assert [t.shape for t in transposed if t is not None] == [(12,), (20,), (20,)]
    assert [t.shape for t in by_tie] == [(6,), (20,), (20,)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("tie", TIES)
def test_step_runs_inside_a_cuda_graph(tie: str | None) -> None:
    layer = make_layer(tie).cuda()
    x = torch.randn(3, 126, 4, device="cuda", requires_grad=True)
    inputs = [x, *layer.parameters()]

    def step() -> list[torch.Tensor]:
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles, which a graph cannot hold
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("tie", TIES)
def test_kernels_run_on_the_current_stream(tie: str | None) -> None:
    """The input is still being written on a side stream when the layer is called there."""
    layer = make_layer(tie).cuda()
    values = torch.randn(3, 126, 4, device="cuda")
    expected = layer(values)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = torch.full_like(values, float("nan"))
        torch.cuda._sleep(50_000_000)  # a fiftieth of a second
        y = layer(x.copy_(values))
    side.synchronize()
    torch.testing.assert_close(y, expected, rtol=TOLERANCE[torch.float32], atol=0)
