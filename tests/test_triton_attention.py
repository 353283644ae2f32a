"""Triton kernels of attention beyond what every backend is tested for: tiles, offsets, chunks."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

import pytest
import torch
from attention_cases import Attention, assert_near
from kernel_cases import GPU
from torch import Tensor

from scisparse.kernels import Edges, _triton, transpose_edges
from scisparse.kernels._segments import site_of_edge
from scisparse.kernels._triton import Call
from scisparse.kernels.graph_attention import plans, reference, triton, triton_product_calls
from scisparse.kernels.graph_attention.inputs import Inputs
from scisparse.kernels.graph_attention.ops import IMPLEMENTATIONS

_CANNOT = triton.can_run(torch.device(GPU), torch.float32)
needs_triton = pytest.mark.skipif(bool(_CANNOT), reason=str(_CANNOT))

SCALE = 0.4
ALL = Attention(2, 7, 6, 4, 3, groups=2, edge_width=3, bias="beh", fan_in=3)


@dataclasses.dataclass(frozen=True)
class Problem:
    """All that the backward pass takes, in the types and on the device of the kernels."""

    inputs: Inputs
    grads: tuple[Tensor, Tensor | None]
    edges: Edges
    edges_t: Edges

    @classmethod
    def of(cls, case: Attention, dtype: torch.dtype) -> Problem:
        tensors, edges, grad = case.tensors(dtype, "triton")
        edge_q = grad_edge = None
        if case.edge_width:
            edge_q, grad_edge = (
                grad.new_empty(2, *grad.shape[:3], case.edge_width).normal_().unbind()
            )
        bias = tensors.get("bias")
        if bias is not None:
            bias = bias.to(torch.float64 if dtype == torch.float64 else torch.float32)
        inputs = Inputs(
            tensors["q"], tensors["k"], tensors["v"], edge_q, tensors.get("edge_attr"), bias
        )
        edges_t = transpose_edges(edges.row_ptr, edges.col, case.sources)
        return cls(inputs, (grad, grad_edge), edges, edges_t)

    def exact(self) -> Problem:
        """The same for the reference."""

        def wide(t: Any) -> Any:
            return None if t is None else t.cpu().double()

        grad, grad_edge = map(wide, self.grads)
        return Problem(
            Inputs(*map(wide, self.inputs)),
            (grad, grad_edge),
            self.edges.to("cpu"),
            self.edges_t.to("cpu"),
        )

    def run(self, backend: Any, level: float = 0.0) -> tuple[Tensor | None, ...]:
        """Results of both passes; `level` is added to the logarithms in between."""
        out, edge_out, lse = backend.attention(self.inputs, self.edges, SCALE)
        grads = backend.attention_backward(
            *self.grads, self.inputs, lse + level, self.edges, self.edges_t, (True, True), SCALE
        )
        shown = lse.masked_fill(lse == -torch.inf, 99.0)  # differences of infinities are NaN
        return out, edge_out, shown, *grads


# Tiles of the forward pass as a GPU gets them: rows of few numbers, edges side by side.
TILES = [
    (Attention(1, 9, 40, 1, 16, fan_in=14), torch.float32, {"slots": 1, "sites": 8, "unroll": 4}),
    (Attention(2, 5, 60, 1, 8, fan_in=40), torch.float64, {"slots": 2, "unroll": 4}),
    (Attention(1, 3, 80, 2, 64, fan_in=70), torch.float16, {"slots": 2, "sites": 4, "warps": 4}),
    (Attention(1, 5, 6, 12, 64), torch.float32, {"heads": 1, "slots": 1, "sites": 8}),
    (Attention(1, 5, 6, 8, 80, groups=4, edge_width=3), torch.float64, {"heads": 1, "sites": 2}),
    (Attention(1, 9, 6, 6, 24, groups=3), torch.bfloat16, {"heads": 2, "warps": 2}),
    (Attention(2, 9, 6, 5, 32, groups=5), torch.bfloat16, {"heads": 2, "sites": 8}),
    (Attention(1, 3, 5, 1, 1100), torch.float32, {"heads": 1, "warps": 4, "unroll": 1}),
    (ALL, torch.float32, {"heads": 4}),
]


@needs_triton
@pytest.mark.parametrize(("case", "dtype", "tile"), TILES, ids=str)
def test_every_tile_equals_the_reference(
    case: Attention, dtype: torch.dtype, tile: dict[str, int]
) -> None:
    problem = Problem.of(case, dtype)
    width = max(case.width, case.edge_width)
    fan_in = problem.edges.col.numel() / case.sites
    plan = plans.plan_rows(case.heads, width, dtype.itemsize, fan_in, 4)
    assert {name: getattr(plan, name) for name in tile} == tile
    for actual, want in zip(problem.run(triton), problem.exact().run(reference), strict=True):
        assert (actual is None) == (want is None)
        if actual is not None and want is not None and actual.numel():
            assert_near(actual, want, dtype, "result")


@needs_triton
def test_features_without_a_gradient_of_their_sums() -> None:
    problem = Problem.of(ALL, torch.float64)
    problem = dataclasses.replace(problem, grads=(problem.grads[0], None))
    for actual, want in zip(problem.run(triton), problem.exact().run(reference), strict=True):
        assert actual is not None
        assert want is not None
        assert_near(actual, want, torch.float64, "result")


@needs_triton
def test_weights_do_not_hang_on_the_level_of_the_logarithms() -> None:
    """They are rounded, and the scores are made by other sums than in the forward pass."""
    problem = Problem.of(ALL, torch.float32)
    expected = problem.exact().run(reference)
    for actual, want in zip(problem.run(triton, level=-20.0)[3:], expected[3:], strict=True):
        assert actual is not None
        assert want is not None
        assert_near(actual, want, torch.float32, "gradient")
    far = problem.run(triton, level=-1e6)
    assert all(t.isfinite().all() for t in far if t is not None)


@needs_triton
def test_batches_that_do_not_fit_the_workspace_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for bias in ("beh", "e"):
        problem = Problem.of(dataclasses.replace(ALL, batch=3, bias=bias), torch.float64)
        whole = problem.run(triton)
        two = 2 * 2 * 8 * problem.edges.col.numel() * ALL.heads
        monkeypatch.setattr(triton, "WORKSPACE", two)  # two entries, and then one
        for part, all_ in zip(problem.run(triton), whole, strict=True):
            assert part is not None
            assert all_ is not None
            torch.testing.assert_close(part, all_, rtol=1e-13, atol=1e-13)
        monkeypatch.undo()


@needs_triton
def test_offsets_of_64_bits_give_the_same_bits() -> None:
    problem = Problem.of(ALL, torch.float32)
    (q, k, v, edge_q, attr, _), edges, edges_t = problem.inputs, problem.edges, problem.edges_t
    assert edge_q is not None
    assert attr is not None
    (grad, grad_edge), count = problem.grads, edges.col.numel()
    lse = triton.attention(problem.inputs, edges, SCALE)[2]
    space = torch.randn(q.shape[0], *triton.pairs_shape(q.shape[2], count), device=q.device)
    per_edge = torch.randn(q.shape[0], count, q.shape[2], device=q.device)
    site = site_of_edge(edges.row_ptr, count)
    keys = torch.randn(*k.shape[:2], *q.shape[2:], device=q.device)

    def calls(out: list[Tensor]) -> list[Call]:
        def new(like: Tensor) -> Tensor:
            out.append(torch.zeros_like(like))
            return out[-1]

        inputs = problem.inputs
        return [
            triton.attention_call(inputs, edges, SCALE, (new(q), new(edge_q), new(lse))),
            triton.sites_call(
                *((grad, grad_edge), lse, inputs, edges, SCALE),
                *((new(q), new(edge_q)), new(space)),
            ),
            triton.sources_call(grad, q, edges_t, SCALE, space, (new(k), new(v))),
            triton.edges_call(space, edge_q, grad_edge, site, new(attr)),
            triton_product_calls.spmm_call(per_edge, q, edges_t, new(keys)),
            triton_product_calls.sddmm_call(keys, q, edges_t, new(per_edge)),
        ]

    results: list[list[Tensor]] = []
    for wide in (False, True):
        results.append([])
        for call in calls(results[-1]):
            assert call.constants["WIDE"] is False
            constants = call.constants | {"WIDE": wide}
            dataclasses.replace(call, constants=constants).run(q.device)
    for narrow, wide_ in zip(*results, strict=True):
        assert narrow.any()
        assert torch.equal(narrow, wide_)


def test_tiles_are_powers_of_two_that_fill_warps_and_cache_lines() -> None:
    random = Random(0)
    for _ in range(500):
        heads, width = random.choice([1, 4, 16, random.randint(1, 40)]), random.randint(0, 400)
        itemsize, fan_in = random.choice([2, 4, 8]), 10 ** random.uniform(-2, 3)
        plan = plans.plan_rows(heads, width, itemsize, fan_in, 4)
        sizes = dataclasses.asdict(plan)
        assert all(n >= 1 and n & (n - 1) == 0 for n in sizes.values()), sizes
        assert plan.warps <= plans.MOST_WARPS
        numbers = 1 << max(width - 1, 0).bit_length()
        assert plan.slots == 1 or plan.slots * 4 <= fan_in * 2
        if plan.heads < heads and itemsize * plan.heads * numbers < plans.LINE:
            raise AssertionError(f"{heads} heads of {width} are read in pieces: {sizes}")
        tile = itemsize * plan.sites * plan.slots * plan.heads * numbers
        assert tile <= 16 * 32 * plan.warps or plan.sites * plan.slots == 1
        edges = plans.plan_edges(heads, width)
        assert edges.edges * edges.heads * numbers <= 1024 or edges.edges == edges.heads == 1


def test_auto_takes_triton_for_a_gpu_and_never_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "_is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = torch.device("cuda", 0)
    for implementations in IMPLEMENTATIONS.values():
        able = [i.name for i in implementations if i.can_run(gpu, torch.float32) is None]
        assert able == ["triton", "reference"]
        assert [i.name for i in implementations] == ["cpu", "triton", "reference"]
