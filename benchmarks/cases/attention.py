"""Attention over edges, with all gradients: of input and of every parameter, in one vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.attention_sizes import Sizes, cost_of
from benchmarks.cases.globe import within
from benchmarks.registry import Case, Implementation, Samples, Work, register
from scisparse.kernels import graph_attention, transpose_edges
from scisparse.layers import GraphTransformer, PatternEdges, Scores, SparseAttention
from scisparse.pattern import Pattern
from scisparse.patterns import mesh, nearest, sliding_window

SAMPLED = 64
EDGE_WIDTH = 11
COMPARED = (20, 60)  # rows of a grid of latitudes
OP = "graph_attention"


@dataclass(frozen=True)
class Place:
    """Where the tensors of a case lie, and their type."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def random(self, *shape: int) -> Tensor:
        """Normal numbers, drawn where they lie: billions would take minutes on a CPU."""
        return torch.randn(shape, device=self.device).to(self.dtype)

    def below(self, first: int, last: int, count: int = 0) -> Tensor:
        """Places of samples."""
        return torch.randint(first, last, (count or SAMPLED,)).to(self.device)


class Flat:
    """The parameters of a module as one vector, and the module called with such a vector."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.shapes = {name: p.shape for name, p in module.named_parameters()}

    def vector(self) -> Tensor:
        """Its own parameters."""
        return torch.cat([p.detach().flatten() for p in self.module.parameters()])

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of `vector` by the names of the parameters."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        shapes = self.shapes.items()
        return {name: p.view(shape) for (name, shape), p in zip(shapes, parts, strict=True)}

    def __call__(self, vector: Tensor, *args: Any) -> Tensor:
        y: Tensor = torch.func.functional_call(self.module, self.named(vector), args)
        return y


def layer_work(make: Callable[[], Pattern], sizes: Sizes, place: Place = Place()) -> Work:
    """A whole graph transformer layer beside torch-geometric's with the same weights."""
    torch.manual_seed(0)
    pattern = make()
    nodes = pattern.num_sources
    edge_index = torch.stack([pattern.col.long(), pattern.rows()]).to(place.device)
    attr = place.random(pattern.num_edges, sizes.edges) if sizes.edges else None
    layer = GraphTransformer(
        sizes.channels, sizes.width, heads=sizes.heads, edge_dim=sizes.edges or None
    ).to(place.device, place.dtype)
    flat, edges = Flat(layer), PatternEdges(pattern).to(place.device)
    x, vector = place.random(nodes, sizes.channels), flat.vector()
    grad = place.random(nodes, sizes.channels)
    places = place.below(0, nodes)
    picked = place.below(0, vector.numel(), 16 * SAMPLED)

    def samples(output: Tensor, grad_x: Tensor, grad_weight: Tensor) -> Samples:
        return Samples(output[places], grad_x[places], grad_weight[picked])

    def implementation(name: str, run: Callable[[Tensor, Tensor], Tensor]) -> Implementation:
        return Implementation(
            name=name,
            ours=name == "scisparse",
            x=x,
            weight=vector,
            grad=grad,
            run=run,
            samples=samples,
        )

    @cache  # imported in the first run, so that it is listed by name where it is not installed
    def theirs() -> Flat:
        from torch_geometric.nn import TransformerConv

        conv = TransformerConv(
            sizes.channels, sizes.width, heads=sizes.heads, edge_dim=sizes.edges or None
        )
        conv.load_state_dict(layer.state_dict())
        return Flat(conv.to(place.device, place.dtype))

    def geometric(x: Tensor, w: Tensor) -> Tensor:
        return theirs()(w, x, edge_index, attr)

    makers: list[Callable[[], Implementation]] = [
        partial(implementation, "scisparse", lambda x, w: flat(w, x, edges, attr)),
        partial(implementation, "torch-geometric", geometric),
        partial(
            implementation,
            "torch-geometric, compiled",
            torch.compile(geometric, dynamic=False),
        ),
    ]
    expected = samples(*_exact_layer(flat, sizes, edge_index, attr, (x, vector, grad)))
    cost = cost_of(pattern, sizes, vector.numel(), place.dtype.itemsize)
    return Work(makers=makers, expected=on_cpu(expected), cost=cost)


def _exact_layer(
    flat: Flat,
    sizes: Sizes,
    edge_index: Tensor,
    attr: Tensor | None,
    tensors: tuple[Tensor, Tensor, Tensor],
) -> Iterator[Tensor]:
    """Output and gradients by the definition, in float64: gather, softmax by scatter, add."""
    x, vector, grad = (t.double() for t in tensors)
    x.requires_grad_()
    vector.requires_grad_()
    named = flat.named(vector)
    source, site = edge_index

    def heads(name: str, values: Tensor) -> Tensor:
        y = F.linear(values, named[f"{name}.weight"], named.get(f"{name}.bias"))
        return y.view(-1, sizes.heads, sizes.width)

    key, value = (heads(n, x)[source] for n in ("lin_key", "lin_value"))
    if attr is not None:
        features = heads("lin_edge", attr.double())
        key, value = key + features, value + features
    weight = ((heads("lin_query", x)[site] * key).sum(-1) / sizes.width**0.5).exp()
    total = weight.new_zeros(len(x), sizes.heads).index_add(0, site, weight)
    terms = (weight / total[site])[..., None] * value
    y = terms.new_zeros(len(x), *terms.shape[1:]).index_add(0, site, terms).flatten(1)
    y = y + F.linear(x, named["lin_skip.weight"], named["lin_skip.bias"])
    yield y.detach()
    yield from torch.autograd.grad(y, (x, vector), grad)


def on_cpu(samples: Samples) -> Samples:
    """Where they are compared."""
    return Samples(*(t.cpu() for t in (samples.output, samples.grad_x, samples.grad_weight)))


def window_work(length: int, width: int, heads: int, head_width: int) -> Work:
    """Attention of tokens to a window of others, beside torch's own."""
    torch.manual_seed(0)
    pattern = sliding_window(length, width)
    x = torch.randn(1, length, heads, head_width)
    kv, grad = torch.randn(2, *x.shape), torch.randn_like(x)
    row_ptr, col = pattern.row_ptr, pattern.col
    transpose = transpose_edges(row_ptr, col, length)
    places = torch.randint(length, (SAMPLED,))

    def samples(output: Tensor, grad_x: Tensor, grad_weight: Tensor) -> Samples:
        return Samples(output[:, places], grad_x[:, places], grad_weight[:, :, places])

    @cache
    def flex() -> Callable[[Tensor, Tensor], Tensor]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        side = width // 2
        mask = create_block_mask(
            lambda b, h, i, j: (i - j).abs() <= side, None, None, length, length, device="cpu"
        )
        compiled = torch.compile(flex_attention, dynamic=False)

        def run(x: Tensor, kv: Tensor) -> Tensor:
            q, k, v = (t.detach().transpose(1, 2) for t in (x, *kv))
            y: Tensor = compiled(q, k, v, block_mask=mask)
            return y.transpose(1, 2)

        return run

    def ours(x: Tensor, kv: Tensor) -> Tensor:
        return graph_attention(x, kv[0], kv[1], row_ptr, col, transpose=transpose)

    def implementation(name: str, run: Callable[[Tensor, Tensor], Tensor]) -> Implementation:
        return Implementation(
            name=name,
            ours=name == "scisparse",
            trains=name == "scisparse",  # flex_attention has no backward pass on the CPU
            x=x,
            weight=kv,
            grad=grad,
            run=run,
            samples=samples,
        )

    sizes = Sizes(heads * head_width, heads)
    return Work(
        makers=[
            partial(implementation, "scisparse", ours),
            partial(implementation, "flex_attention, compiled", lambda x, kv: flex()(x, kv)),
        ],
        expected=samples(*_exact_window(width // 2, x, kv, grad)),
        cost=cost_of(pattern, sizes, 0),
    )


def _exact_window(side: int, x: Tensor, kv: Tensor, grad: Tensor) -> Iterator[Tensor]:
    """Output and gradients by dense blocks in float64: the last need all rows, in bands."""
    x, kv, grad = x.double().requires_grad_(), kv.double().requires_grad_(), grad.double()
    length, band, rows = x.shape[1], 1024, []
    for first in range(0, length, band):
        last = min(first + band, length)
        low, high = max(0, first - side), min(length, last + side)
        q, (k, v) = x[:, first:last], kv[:, :, low:high]
        far = (torch.arange(first, last)[:, None] - torch.arange(low, high)).abs() > side
        score = torch.einsum("bmhd,bnhd->bhmn", q, k) / x.shape[3] ** 0.5
        weight = score.masked_fill(far, -torch.inf).softmax(-1)
        rows.append(torch.einsum("bhmn,bnhd->bmhd", weight, v))
    y = torch.cat(rows, 1)
    yield y.detach()
    yield from torch.autograd.grad(y, (x, kv), grad)


def sphere_work(
    reach: float, rows: int, columns: int, channels: int, place: Place = Place()
) -> Work:
    """A layer of attention within `reach` radians on a grid of latitudes, beside torch-harmonics'.

    Both weigh cells by area, with other numbers at the poles, and rounding decides who is just
    within reach: only `COMPARED` latitudes have a gradient, where the two agree.
    """
    from scisparse.grids import EARTH_RADIUS, LatLonGrid

    torch.manual_seed(0)
    grid = LatLonGrid.regular(rows, columns)
    layer = SparseAttention(
        within(grid, reach * EARTH_RADIUS), channels, 1, scores=Scores(areas=True)
    ).to(place.device, place.dtype)
    flat = Flat(layer)
    band = slice(*(min(row, rows) * columns for row in COMPARED))
    x, vector = place.random(1, grid.size, channels), flat.vector()
    grad = torch.zeros_like(x)
    grad[:, band] = place.random(*grad[:, band].shape)
    places = place.below(band.start, band.stop)
    picked = place.below(0, vector.numel(), 16 * SAMPLED)

    def samples(output: Tensor, grad_x: Tensor, grad_weight: Tensor) -> Samples:
        return Samples(output[:, places], grad_x[:, places], grad_weight[picked])

    def to_map(field: Tensor) -> Tensor:
        mapped: Tensor = field.mT.unflatten(2, (rows, columns))
        return mapped.contiguous()

    @cache  # imported in the first run, so that it is listed by name where it is not installed
    def theirs() -> torch.nn.Module:
        from torch_harmonics import NeighborhoodAttentionS2

        module: torch.nn.Module = NeighborhoodAttentionS2(
            channels, (rows, columns), (rows, columns), num_heads=1, theta_cutoff=reach
        )
        return module.to(place.device, place.dtype)

    def harmonics(x: Tensor, w: Tensor) -> Tensor:
        named = {}
        for name, values in flat.named(w).items():
            map_, kind = name.split(".")
            its = map_.removesuffix("_proj").replace("out", "proj")
            whole = values[..., None, None] if kind == "weight" else values
            named[f"{its}_weights" if kind == "weight" else f"{its}_bias"] = whole
        y: Tensor = torch.func.functional_call(theirs(), named, (x,))
        return y

    makers: list[Callable[[], Implementation]] = [
        partial(
            Implementation,
            name="scisparse",
            ours=True,
            x=x,
            weight=vector,
            grad=grad,
            run=lambda x, w: flat(w, x),
            samples=samples,
        ),
        partial(
            Implementation,
            name="torch-harmonics",
            ours=False,
            x=to_map(x),
            weight=vector,
            grad=to_map(grad),
            run=harmonics,
            samples=lambda y, gx, gw: samples(y.flatten(2).mT, gx.flatten(2).mT, gw),
        ),
    ]
    expected = samples(*_exact_sphere(flat, layer.pattern, band, (x, vector, grad)))
    cost = cost_of(layer.pattern, Sizes(channels, 1), vector.numel())
    return Work(makers=makers, expected=on_cpu(expected), cost=cost)


def _exact_sphere(
    flat: Flat, pattern: Pattern, band: slice, tensors: tuple[Tensor, Tensor, Tensor]
) -> Iterator[Tensor]:
    """Output of the sites in `band` and gradients, by the definition in float64."""
    x, vector, grad = (t.double() for t in tensors)
    x.requires_grad_()
    vector.requires_grad_()
    named = flat.named(vector)

    def maps(name: str, values: Tensor) -> Tensor:
        return F.linear(values, named[f"{name}.weight"], named[f"{name}.bias"])

    edges = slice(int(pattern.row_ptr[band.start]), int(pattern.row_ptr[band.stop]))
    site, source = pattern.rows()[edges], pattern.col[edges].long()
    assert pattern.source_grid is not None
    area = torch.as_tensor(pattern.source_grid.areas).reshape(-1)[source].to(x.device)
    site, source = site.to(x.device), source.to(x.device)
    q, k, v = (maps(f"{name}_proj", x[0]) for name in "qkv")
    weight = ((q[site] * k[source]).sum(-1) / q.shape[1] ** 0.5).exp() * area
    total = weight.new_zeros(len(q)).index_add(0, site, weight)
    terms = (weight / total[site])[:, None] * v[source]
    y = maps("out_proj", torch.zeros_like(q).index_add(0, site, terms))[None]
    yield y.detach()
    yield from torch.autograd.grad(y, (x, vector), grad)


def register_attention(name: str, shape: str, make: Callable[[], Work]) -> None:
    """Register one row of the table; names of those for a GPU begin with it."""
    suite = "gpu" if name.startswith("gpu-") else "attention"
    register(Case(name=name, op=OP, suite=suite, shape=shape, make=make))


def _neighbours() -> Pattern:
    from scisparse.grids import icosahedral

    return nearest(icosahedral(5), 8, include_self=False)


register_attention(
    "graph-transformer-mesh5",
    "graph transformer, multi-mesh of level 5, 128 channels, 4 heads, edge features",
    partial(layer_work, partial(mesh, 5, multiscale=True), Sizes(128, 4, EDGE_WIDTH)),
)
register_attention(
    "graph-transformer-nearest8",
    "graph transformer, 10,242 nodes x 8, 128 channels, 4 heads, edge features",
    partial(layer_work, _neighbours, Sizes(128, 4, EDGE_WIDTH)),
)
register_attention(
    "graph-transformer-mesh5-plain",
    "graph transformer, multi-mesh of level 5, 128 channels, 4 heads",
    partial(layer_work, partial(mesh, 5, multiscale=True), Sizes(128, 4)),
)
register_attention(
    "window-16k-512",
    "window of 512 of 16,384 tokens, 4 heads of 64",
    partial(window_work, 16384, 512, 4, 64),
)
for angle in (0.017, 0.03):
    register_attention(
        f"sphere-181x360-{angle}",
        f"neighbourhood attention on the sphere, 181x360, {angle} rad, 64 channels",
        partial(sphere_work, angle, 181, 360, 64),
    )
