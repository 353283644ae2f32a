"""Attention over edges on a GPU: the operator alone, and whole layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.cases.attention import (
    EDGE_WIDTH,
    Place,
    layer_work,
    on_cpu,
    register_attention,
    sphere_work,
)
from benchmarks.cases.attention_sizes import Sizes, cost_of
from benchmarks.cases.globe import decoder, encoder
from benchmarks.registry import Implementation, Samples, Work
from scisparse.kernels import graph_attention
from scisparse.layers import PatternEdges
from scisparse.orders import hilbert
from scisparse.pattern import Pattern
from scisparse.patterns import mesh

Run = Callable[[Tensor, Tensor], Tensor]
Numbers = tuple[Tensor, Tensor]

GPU = Place("cuda")
HALF = Place("cuda", torch.float16)


def gather_scatter(q: Tensor, k: Tensor, v: Tensor, source: Tensor, site: Tensor) -> Tensor:
    """Attention as it is written without a kernel: gather, softmax by scatter, add."""
    score = (q[:, site] * k[:, source]).sum(-1, dtype=torch.float32) / q.shape[3] ** 0.5
    index = site[None, :, None].expand_as(score)
    most = score.new_full(q.shape[:3], -torch.inf).scatter_reduce(1, index, score, "amax")
    weight = (score - most[:, site]).exp()
    total = torch.zeros_like(most).index_add(1, site, weight)
    terms = (weight / total[:, site]).to(v.dtype)[..., None] * v[:, source]
    return v.new_zeros(*q.shape[:3], v.shape[3]).index_add(1, site, terms)


def operator_work(make: Callable[[], Pattern], sizes: Sizes, place: Place = HALF) -> Work:
    """Attention alone: queries, and keys and values as one tensor."""
    torch.manual_seed(0)
    pattern = make()
    edges = PatternEdges(pattern).to(place.device)
    source, site, shape = edges.col.long(), pattern.rows().to(place.device), pattern.shape
    x = place.random(1, pattern.num_sites, sizes.heads, sizes.width)
    kv = place.random(2, 1, pattern.num_sources, sizes.heads, sizes.width)
    grad = place.random(*x.shape)
    sites, sources = place.below(0, pattern.num_sites), place.below(0, pattern.num_sources)

    def ours(edges: PatternEdges, x: Tensor, kv: Tensor) -> Tensor:
        return graph_attention(
            x, kv[0], kv[1], edges.row_ptr, edges.col, transpose=edges.transposed
        )

    def torch_own(x: Tensor, kv: Tensor) -> Tensor:
        return gather_scatter(x, kv[0], kv[1], source, site)

    def implementation(name: str, run: Run, numbers: Numbers | None = None) -> Implementation:
        order, source_order = numbers or (torch.arange(n, device=place.device) for n in shape)
        checked = (order.argsort()[sites], source_order.argsort()[sources])

        def samples(output: Tensor, grad_x: Tensor, grad_kv: Tensor) -> Samples:
            rows, columns = checked
            return Samples(output[:, rows], grad_x[:, rows], grad_kv[:, :, columns])

        return Implementation(
            name=name,
            ours=name.startswith("scisparse"),
            x=x[:, order],
            weight=kv[:, :, source_order],
            grad=grad[:, order],
            run=run,
            samples=samples,
        )

    @cache  # it takes seconds, and is wanted once for times and once for memory
    def moved() -> tuple[PatternEdges, Numbers]:
        site_grid, source_grid = pattern.site_grid, pattern.source_grid
        if site_grid is None or source_grid is None:
            raise ValueError("only points on a grid lie along a curve")
        numbers = hilbert(site_grid), hilbert(source_grid)
        edges = PatternEdges(pattern.reorder(*numbers)).to(place.device)
        return edges, (numbers[0].to(place.device), numbers[1].to(place.device))

    def along_curves() -> Implementation:
        """Points that are near each other have near numbers, as a model may give them once."""
        edges, there = moved()
        return implementation("scisparse, Hilbert order", partial(ours, edges), there)

    compiled = torch.compile(torch_own, dynamic=False)
    return Work(
        makers=[
            partial(implementation, "scisparse", partial(ours, edges)),
            along_curves,
            partial(implementation, "gather + scatter", torch_own),
            partial(implementation, "gather + scatter, compiled", compiled),
        ],
        expected=on_cpu(_exact(x, kv, grad, (sites, sources), (source, site))),
        cost=cost_of(pattern, sizes, 0, place.dtype.itemsize),
    )


def _exact(
    x: Tensor,
    kv: Tensor,
    grad: Tensor,
    places: tuple[Tensor, Tensor],
    ends: tuple[Tensor, Tensor],
) -> Samples:
    """Samples in float64, row by row: of the sites, and of all that read one of the sources."""
    (sites, sources), (source, site) = places, ends
    queries, wide = x.double().requires_grad_(), kv.double().requires_grad_()
    rows = torch.cat([sites, site[torch.isin(source, sources)]]).unique()
    lengths = torch.bincount(site, minlength=x.shape[1])[rows].tolist()
    keys, values = (t.split(lengths) for t in wide[:, 0, source[torch.isin(site, rows)]])
    outputs = []
    for q, k, v in zip(queries[0, rows], keys, values, strict=True):
        weight = (torch.einsum("hd,ehd->he", q, k) / x.shape[3] ** 0.5).softmax(-1)
        outputs.append(torch.einsum("he,ehd->hd", weight, v))
    y = torch.stack(outputs)
    grad_x, grad_kv = torch.autograd.grad(y, (queries, wide), grad[0, rows].double())
    output = y.detach()[torch.searchsorted(rows, sites)]
    return Samples(output[None], grad_x[:, sites], grad_kv[:, :, sources])


_MESH = partial(mesh, 6, multiscale=True)
for channels in (512, 1024):
    register_attention(
        f"gpu-attention-mesh6-{channels}",
        f"attention alone, multi-mesh of level 6, {channels} channels, 16 heads, float16",
        partial(operator_work, _MESH, Sizes(channels, 16)),
    )
    register_attention(
        f"gpu-attention-era-to-mesh6-{channels}",
        f"attention alone, N320 -> mesh of level 6, {channels} channels, 16 heads, float16",
        partial(operator_work, partial(encoder, 6), Sizes(channels, 16)),
    )
    register_attention(
        f"gpu-attention-mesh6-to-era-{channels}",
        f"attention alone, mesh of level 6 -> N320, {channels} channels, 16 heads, float16",
        partial(operator_work, partial(decoder, 6), Sizes(channels, 16)),
    )
    register_attention(
        f"gpu-graph-transformer-mesh6-{channels}",
        f"graph transformer, multi-mesh of level 6, {channels} channels, 16 heads, edge features, "
        "float16",
        partial(layer_work, _MESH, Sizes(channels, 16, EDGE_WIDTH), HALF),
    )
register_attention(
    "gpu-sphere-181x360-0.03",
    "neighbourhood attention on the sphere, 181x360, 0.03 rad, 64 channels",
    partial(sphere_work, 0.03, 181, 360, 64, GPU),
)
