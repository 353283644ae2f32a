"""The graph primitives: means and maxima over edges, the softmax over rows, with gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases.attention import Place, on_cpu
from benchmarks.registry import Case, Cost, Implementation, Samples, Work, register
from scisparse.kernels import segment_softmax, spmm, transpose_edges
from scisparse.layers import PatternEdges
from scisparse.pattern import Pattern
from scisparse.patterns import mesh

__all__ = ["mean_work", "most_work", "softmax_work"]

SAMPLED = 256
Run = Callable[[Tensor, Tensor], Tensor]


def mean_work(make: Callable[[], Pattern], channels: int) -> Work:
    """Mean over the edges of each site of sources times a number, with gradients of both."""
    torch.manual_seed(0)
    pattern = make()
    sites, sources, edges = pattern.num_sites, pattern.num_sources, pattern.num_edges
    row_ptr, col, site = pattern.row_ptr, pattern.col, pattern.rows()
    source, transpose = col.long(), transpose_edges(row_ptr, col, sources)
    x, value, grad = (
        torch.randn(sources, channels),
        torch.randn(edges),
        torch.randn(sites, channels),
    )
    fan_in = row_ptr.diff().clamp(min=1)
    share = (1 / fan_in.float())[site]
    places = torch.randint(min(sites, sources), (SAMPLED,))
    picked = torch.randint(edges, (SAMPLED,))

    def ours(x: Tensor, value: Tensor) -> Tensor:
        heads = x.view(1, sources, 1, channels)
        numbers = value.view(1, edges, 1)
        y = spmm(numbers, heads, row_ptr, col, reduce="mean", transpose=transpose)
        return y.view(sites, channels)

    def csr(x: Tensor, value: Tensor) -> Tensor:
        with warnings.catch_warnings():  # torch calls sparse tensors beta
            warnings.simplefilter("ignore", UserWarning)
            matrix = torch.sparse_csr_tensor(row_ptr, source, value * share, (sites, sources))
            y: Tensor = torch.sparse.mm(matrix, x)
            return y

    def segments(x: Tensor, value: Tensor) -> Tensor:
        terms = x[source] * value[:, None]
        return torch.segment_reduce(terms, "mean", offsets=row_ptr, initial=0, unsafe=True)

    def scattered(x: Tensor, value: Tensor) -> Tensor:
        from torch_geometric.utils import scatter

        y: Tensor = scatter(x[source] * value[:, None], site, 0, sites, reduce="mean")
        return y

    def exact(x: Tensor, value: Tensor) -> Tensor:
        total = x.new_zeros(sites, channels).index_add(0, site, x[source] * value[:, None])
        return total / fan_in[:, None]

    runs: dict[str, Run] = {
        "scisparse": ours,
        "CSR (MKL)": csr,
        "segment_reduce": segments,
        "torch-geometric, scatter": scattered,
    }
    bytes_of = 4 * (sites + sources) * channels + 12 * edges + 8 * sites
    products = 2 * edges * channels
    return _work(
        runs,
        exact,
        (x, value, grad),
        lambda y, gx, gv: Samples(y[places], gx[places], gv[picked]),
        Cost(
            forward_bytes=bytes_of,
            forward_flops=products,
            backward_bytes=2 * bytes_of,
            backward_flops=2 * products,
            weight_bytes=4 * edges,
        ),
    )


def most_work(make: Callable[[], Pattern], channels: int, place: Place) -> Work:
    """Maximum over the edges of each site of sources times a number, with gradients of both.

    The numbers are powers of two: products are exact, and float64 chooses the same edges.
    """
    torch.manual_seed(0)
    pattern = make()
    sites, sources, edges = pattern.num_sites, pattern.num_sources, pattern.num_edges
    lists = PatternEdges(pattern).to(place.device)
    source, site = lists.col.long(), pattern.rows().to(place.device)
    x, grad = place.random(sources, channels), place.random(sites, channels)
    value = 2 ** place.below(-2, 2, edges).to(x.dtype)
    at, read, picked = place.below(0, sites), place.below(0, sources), place.below(0, edges)

    def ours(x: Tensor, value: Tensor) -> Tensor:
        heads, numbers = x.view(1, sources, 1, channels), value.view(1, edges, 1)
        y = spmm(
            *(numbers, heads, lists.row_ptr, lists.col),
            reduce="max",
            transpose=lists.transposed,
        )
        return y.view(sites, channels)

    def scattered(x: Tensor, value: Tensor) -> Tensor:
        terms = x[source] * value[:, None]
        index, empty = site[:, None].expand_as(terms), terms.new_zeros(sites, channels)
        return empty.scatter_reduce(0, index, terms, "amax", include_self=False)

    def segments(x: Tensor, value: Tensor) -> Tensor:
        terms = x[source] * value[:, None]
        return torch.segment_reduce(terms, "max", offsets=lists.row_ptr, unsafe=True)

    def exact(x: Tensor, value: Tensor) -> Tensor:
        terms, number = x[source] * value[:, None], torch.arange(edges, device=x.device)
        best = scattered(x, value)[site] == terms
        index = site[:, None].expand_as(terms)
        first = number[:, None].expand_as(terms).where(best, edges)
        chosen = first.new_zeros(sites, channels).scatter_reduce(
            0, index, first, "amin", include_self=False
        )
        return terms.gather(0, chosen)

    bytes_of = x.element_size() * ((sites + sources) * channels + edges) + 4 * edges + 8 * sites
    return _work(
        {"scisparse": ours, "scatter_reduce": scattered, "segment_reduce": segments},
        exact,
        (x, value, grad),
        lambda y, gx, gv: Samples(y[at], gx[read], gv[picked]),
        Cost(
            forward_bytes=bytes_of,
            forward_flops=edges * channels,
            backward_bytes=2 * bytes_of,
            backward_flops=4 * sites * channels,
            weight_bytes=x.element_size() * edges,
        ),
    )


def softmax_work(make: Callable[[], Pattern], heads: int) -> Work:
    """Softmax over rows of scores times a number for each head, so that both have gradients."""
    torch.manual_seed(0)
    pattern = make()
    sites, edges, row_ptr, site = (
        pattern.num_sites,
        pattern.num_edges,
        pattern.row_ptr,
        pattern.rows(),
    )
    x, scale, grad = torch.randn(edges, heads), torch.rand(heads) + 1, torch.randn(edges, heads)
    picked = torch.randint(edges, (SAMPLED,))

    def ours(x: Tensor, scale: Tensor) -> Tensor:
        return segment_softmax((x * scale)[None], row_ptr)[0]

    def geometric(by_rows: bool, x: Tensor, scale: Tensor) -> Tensor:
        from torch_geometric.utils import softmax

        y: Tensor = (
            softmax(x * scale, ptr=row_ptr)
            if by_rows
            else softmax(x * scale, index=site, num_nodes=sites)
        )
        return y

    def exact(x: Tensor, scale: Tensor) -> Tensor:
        weight = (x * scale).exp()
        total = weight.new_zeros(sites, heads).index_add(0, site, weight)
        return weight / total[site]

    runs: dict[str, Run] = {
        "scisparse": ours,
        "torch-geometric, ptr": partial(geometric, True),
        "torch-geometric, index": partial(geometric, False),
    }
    numbers = 4 * edges * heads
    return _work(
        runs,
        exact,
        (x, scale, grad),
        lambda y, gx, gs: Samples(y[picked], gx[picked], gs),
        Cost(
            forward_bytes=2 * numbers + 8 * sites,
            forward_flops=5 * edges * heads,
            backward_bytes=3 * numbers + 8 * sites,
            backward_flops=4 * edges * heads,
            weight_bytes=4 * heads,
        ),
    )


def _work(
    runs: dict[str, Run],
    exact: Run,
    tensors: tuple[Tensor, Tensor, Tensor],
    samples: Callable[[Tensor, Tensor, Tensor], Samples],
    cost: Cost,
) -> Work:
    """All implementations on the same tensors, held against `exact` in float64."""
    x, weight, grad = tensors
    wide = [t.double().requires_grad_() for t in (x, weight)]
    y = exact(*wide)
    return Work(
        makers=[
            partial(
                Implementation,
                name=name,
                ours=name == "scisparse",
                x=x,
                weight=weight,
                grad=grad,
                run=run,
                samples=samples,
            )
            for name, run in runs.items()
        ],
        expected=on_cpu(samples(y.detach(), *torch.autograd.grad(y, wide, grad.double()))),
        cost=cost,
    )


_MESH = partial(mesh, 5, multiscale=True)

register(
    Case(
        name="spmm-mean-mesh5",
        op="spmm",
        suite="attention",
        shape="mean over edges with a number each, multi-mesh of level 5, 128 channels",
        make=partial(mean_work, _MESH, 128),
    )
)
register(
    Case(
        name="gpu-spmm-max-mesh6",
        op="spmm",
        suite="gpu",
        shape="maximum over edges with a number each, multi-mesh of level 6, 512 channels",
        make=partial(most_work, partial(mesh, 6, multiscale=True), 512, Place("cuda")),
    )
)
register(
    Case(
        name="segment-softmax-mesh5",
        op="segment_softmax",
        suite="attention",
        shape="softmax over rows, multi-mesh of level 5, 4 heads",
        make=partial(softmax_work, _MESH, 4),
    )
)
