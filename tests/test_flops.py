"""Operations, as `torch.utils.flop_counter` counts them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from scisparse.grids import LatLonGrid
from scisparse.kernels import spmm
from scisparse.layers import LocallyConnected, SparseAttention, SparseLinear
from scisparse.layers.smoothness import couple_weights
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier

GRID = LatLonGrid.regular(4, 6, poles=False)
STENCIL = window(GRID, 3)
EDGES = STENCIL.num_edges


def counted(run: Any) -> dict[str, int]:
    """Operations of the operators of scisparse, by name."""
    with FlopCounterMode(display=False) as counter:
        run()
    found = counter.get_flop_counts()["Global"]
    return {name: n for op, n in found.items() if (name := str(op)).startswith("scisparse")}


@pytest.mark.parametrize("first", ["scisparse.kernels", "torch.utils.flop_counter"])
def test_whichever_is_imported_first(first: str) -> None:
    code = (
        f"import {first}, importlib.util, sys, torch, scisparse.kernels\n"
        "assert importlib.util.find_spec('torch.utils.flop_counter')  # looks, and loads nothing\n"
        f"assert ('torch.utils.flop_counter' in sys.modules) == (not {first!r}.startswith('sci'))\n"
        "from torch.utils.flop_counter import flop_registry\n"
        "assert torch.ops.scisparse.gather_matmul in flop_registry\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("tie", [None, "longitude"])
def test_stencils_and_their_gradients(tie: str | None) -> None:
    layer, x = LocallyConnected(STENCIL, 3, 5, tie=tie), torch.randn(2, GRID.size, 3)
    product = 2 * 2 * EDGES * 3 * 5
    x.requires_grad_()
    y = layer(x)
    # The backward pass of a call that passed the dispatcher by.
    assert counted(lambda: y.sum().backward()) == {
        "scisparse.gather_matmul": product,
        "scisparse.edge_outer": product,
    }
    assert counted(lambda: layer(x)) == {"scisparse.gather_matmul": product}


@pytest.mark.parametrize("edge_dim", [0, 3])
def test_attention_and_its_gradients(edge_dim: int) -> None:
    layer, x = SparseAttention(STENCIL, 8, 2, edge_dim=edge_dim), torch.randn(2, GRID.size, 8)
    attr = torch.randn(EDGES, edge_dim) if edge_dim else None
    heads = 2 * 2 * EDGES * 2  # operations, batch, edges, heads
    found = counted(lambda: layer(x, edge_attr=attr).sum().backward())
    assert found == {
        "scisparse.graph_attention": heads * (2 * 4 + 2 * edge_dim),
        "scisparse.graph_attention_backward": heads * (5 * 4 + 3 * edge_dim),
    }


def test_products_of_graphs() -> None:
    x = torch.randn(2, GRID.size, 3, 4, requires_grad=True)
    value = torch.randn(1, EDGES, 3, requires_grad=True)
    product = 2 * 2 * EDGES * 3 * 4
    found = counted(lambda: spmm(value, x, STENCIL.row_ptr, STENCIL.col).sum().backward())
    assert found == {"scisparse.spmm": 2 * product, "scisparse.sddmm": product}


def test_without_memory() -> None:
    layer = LocallyConnected(STENCIL, 3, 5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, GRID.size, 3)
        assert sum(counted(lambda: layer(x)).values()) == 2 * 2 * EDGES * 3 * 5


@pytest.mark.parametrize(
    ("layer", "shape", "option"),
    [
        (LocallyConnected(STENCIL, 3, 5), (1, GRID.size, 3), {}),
        (SparseLinear(16, 8, fan_in=4), (1, 16), {}),
        (SparseAttention(STENCIL, 8, 2), (1, GRID.size, 8), {"params": ["edges"]}),
    ],
    ids=lambda case: type(case).__name__,
)
def test_agree_with_the_report_of_a_sparsifier(layer: Any, shape: Any, option: Any) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    sparsifier = Sparsifier(layer, optimizer, method="set", sparsity=0, total_steps=4, **option)
    reported = sum(one.flops for one in sparsifier.report().layers)
    assert sum(counted(lambda: layer(torch.randn(shape))).values()) == reported


def test_smoothness_and_its_gradient() -> None:
    layer = LocallyConnected(STENCIL, 3, 5)
    couplings = len(couple_weights(STENCIL).col)
    assert couplings > 2 * EDGES
    found = counted(lambda: layer.smoothness().backward())
    terms = 2 * couplings * 3 * 5
    assert found == {"scisparse.dirichlet_energy": terms, "scisparse.laplacian": terms}


def test_modules_may_be_loaded_again() -> None:
    code = (
        "import importlib, scisparse.kernels, torch.utils.flop_counter as counter\n"
        "importlib.reload(importlib.import_module('scisparse.kernels'))\n"
        "import torch\n"
        "counter = importlib.reload(counter)\n"
        "assert torch.ops.scisparse.gather_matmul in counter.flop_registry\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
