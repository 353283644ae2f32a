"""Tensors on another device, and transposes of other edges, are refused: they would be misread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import Case, generator
from torch import Tensor

from scisparse.errors import PatternError, ShapeError
from scisparse.kernels import (
    attention_weights,
    edge_outer,
    gather_matmul,
    graph_attention,
    sddmm,
    segment_softmax,
    spmm,
    transpose_edges,
)

SITES, SOURCES = 5, 7
EDGES = Case(1, SITES, SOURCES, 1, 1, fan_in=3).edges(generator())
COUNT = EDGES.col.numel()


def problem() -> dict[str, Any]:
    gen = generator(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen)

    return {
        "x": random(2, SOURCES, 3),
        "weight": random(COUNT, 3, 4),
        "grad": random(2, SITES, 4),
        "q": random(2, SITES, 2, 3),
        "k": random(2, SOURCES, 2, 3),
        "value": random(2, COUNT, 2),
        "score": random(2, COUNT, 2),
        "edge_attr": random(COUNT, 4),
        "edge_weight": random(2, 3, 4),
        "bias": random(COUNT),
        "row_ptr": EDGES.row_ptr,
        "col": EDGES.col,
        "transpose": transpose_edges(EDGES.row_ptr, EDGES.col, SOURCES),
    }


def _attend(p: dict[str, Any]) -> Tensor:
    rest = {n: p[n] for n in ("edge_attr", "edge_weight", "bias", "transpose")}
    return graph_attention(p["q"], p["k"], p["k"], p["row_ptr"], p["col"], **rest)


def _weights(p: dict[str, Any]) -> Tensor:
    return attention_weights(p["q"], p["k"], p["row_ptr"], p["col"], bias=p["bias"])


CALLS: list[tuple[Callable[[dict[str, Any]], Tensor], str]] = [
    (
        lambda p: gather_matmul(
            p["x"], p["weight"], p["row_ptr"], p["col"], transpose=p["transpose"]
        ),
        "x weight row_ptr col transpose",
    ),
    (
        lambda p: edge_outer(p["x"], p["grad"], p["row_ptr"], p["col"], transpose=p["transpose"]),
        "x grad row_ptr col transpose",
    ),
    (_attend, "q k row_ptr col edge_attr edge_weight bias transpose"),
    (_weights, "q k row_ptr col bias"),
    (
        lambda p: spmm(p["value"], p["k"], p["row_ptr"], p["col"], transpose=p["transpose"]),
        "value k row_ptr col transpose",
    ),
    (
        lambda p: spmm(p["value"], p["k"], p["row_ptr"], p["col"], reduce="max"),
        "value k row_ptr col",
    ),
    (
        lambda p: sddmm(p["q"], p["k"], p["row_ptr"], p["col"], transpose=p["transpose"]),
        "q k row_ptr col transpose",
    ),
    (lambda p: segment_softmax(p["score"], p["row_ptr"]), "score row_ptr"),
]


@pytest.mark.parametrize(
    ("call", "name"), [(call, name) for call, names in CALLS for name in names.split()]
)
def test_a_tensor_on_another_device_is_refused(
    call: Callable[[dict[str, Any]], Tensor], name: str
) -> None:
    given = problem()
    assert call(given).isfinite().all()
    given[name] = given[name].to("meta")
    with pytest.raises((ShapeError, PatternError), match=r"on several devices|on meta|on cpu"):
        call(given)


@pytest.mark.parametrize("call", [call for call, names in CALLS if "transpose" in names])
def test_a_transpose_of_other_edges_is_refused(call: Callable[[dict[str, Any]], Tensor]) -> None:
    given = problem()
    other = Case(1, SITES, SOURCES, 1, 1, fan_in=6).edges(generator(2))
    for wrong in (
        transpose_edges(other.row_ptr, other.col, SOURCES),
        transpose_edges(EDGES.row_ptr, EDGES.col, SOURCES + 1),
        given["transpose"]._replace(tie=None),
    ):
        with pytest.raises(PatternError, match=r"`transpose` has .* transpose_edges\(\)"):
            call(given | {"transpose": wrong})


# Of torch's compiler, where it leaves a graph.
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
@pytest.mark.xfail(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12),
    reason="the compiler of this torch cannot trace torch.func.grad",
)
def test_compiled_code_leaves_its_graph_for_gradients_of_torch_func() -> None:
    given = problem()

    def loss(x: Tensor) -> Tensor:
        return gather_matmul(x, given["weight"], given["row_ptr"], given["col"]).square().sum()

    gradient = torch.func.grad(loss)
    x = given["x"]
    torch.testing.assert_close(torch.compile(gradient, backend="eager")(x), gradient(x))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(torch.func.grad(compiled)(x), gradient(x))
