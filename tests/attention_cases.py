"""Random attention problems, and a dense truth that shares no code with the kernels."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from kernel_cases import TOLERANCE, Case, device_of, generator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scisparse.errors import BackendError
from scisparse.kernels import Edges


@dataclass(frozen=True)
class Attention:
    """One shape; the comment beside each entry of `CASES` names the branch it is there for."""

    batch: int
    sites: int
    sources: int
    heads: int
    width: int
    groups: int | None = None  # heads of the sources
    value_width: int | None = None
    edge_width: int = 0
    bias: str = ""  # letters of the dimensions that are not shared, "e" of all
    fan_in: int = 4
    size: float = 1.0  # of the queries

    def tensors(
        self, dtype: torch.dtype = torch.float64, backend: str = "reference", seed: int = 0
    ) -> tuple[dict[str, Any], Edges, Tensor]:
        """Tensors by the name of the argument, edges, and a gradient of the output."""
        gen, device = generator(seed), device_of(backend)
        edges = Case(1, self.sites, self.sources, 1, 1, fan_in=self.fan_in).edges(gen)
        count, groups = edges.col.numel(), self.groups or self.heads
        value_width = self.width if self.value_width is None else self.value_width

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=gen).to(device, dtype)

        tensors = {
            "q": self.size * random(self.batch, self.sites, self.heads, self.width),
            "k": random(self.batch, self.sources, groups, self.width),
            "v": random(self.batch, self.sources, groups, value_width),
        }
        if self.edge_width:
            tensors["edge_attr"] = random(count, self.edge_width)
            tensors["edge_weight"] = random(self.heads, self.width, self.edge_width)
        if self.bias:
            full = {"b": self.batch, "e": count, "h": self.heads}
            tensors["bias"] = random(*(n if d in self.bias else 1 for d, n in full.items()))
        grad = random(self.batch, self.sites, self.heads, value_width)
        return tensors, edges.to(device), grad


CASES = [
    Attention(2, 5, 7, 3, 5),  # odd widths
    Attention(1, 1, 1, 1, 1, fan_in=1),  # one of everything
    Attention(2, 30, 20, 2, 16, fan_in=9),  # whole vectors
    Attention(1, 12, 60, 2, 19, fan_in=25),  # rows past a vector, width with a tail
    Attention(1, 9, 9, 1, 75),  # eight vectors and more
    Attention(2, 9, 8, 4, 8, groups=2),  # grouped queries
    Attention(2, 9, 8, 4, 3, groups=1, value_width=6),  # one head of keys, wider values
    Attention(2, 9, 8, 2, 8, edge_width=3),  # edge features
    Attention(2, 9, 8, 4, 8, groups=2, edge_width=11, bias="eh"),  # all at once
    Attention(2, 12, 60, 3, 6, edge_width=19, fan_in=25),  # features and rows past a vector
    Attention(3, 9, 8, 2, 4, bias="e"),  # bias of edges
    Attention(3, 9, 8, 2, 4, bias="beh"),  # bias of everything
    Attention(2, 6, 7, 2, 4, fan_in=0),  # no edge at all
    Attention(0, 6, 7, 2, 4),  # empty batch
    Attention(2, 0, 7, 2, 4),  # no site
    Attention(2, 6, 7, 2, 0, value_width=3),  # no width: the mean of the sources
    Attention(3, 200, 150, 4, 32, edge_width=4, bias="eh", fan_in=6),  # several threads
]


def dense(tensors: dict[str, Any], edges: Edges, scale: float | None = None) -> Tensor:
    """Independent truth in float64: a full matrix of scores, -infinity where there is no edge."""
    wide = {name: t.cpu().double() for name, t in tensors.items()}
    q, k, v = wide["q"], wide["k"], wide["v"]
    (batch, sites, heads, width), sources = q.shape, k.shape[1]
    group = heads // k.shape[2]
    scale = max(width, 1) ** -0.5 if scale is None else scale
    row_ptr, col = edges.row_ptr.cpu(), edges.col.cpu().long()
    row = torch.arange(sites).repeat_interleave(row_ptr.diff())
    k, v = (t.repeat_interleave(group, 2) for t in (k, v))
    # [B, M, N, H, ...]: every pair
    keys, values = (t[:, None].expand(-1, sites, -1, -1, -1) for t in (k, v))
    if "edge_attr" in wide:
        features = torch.zeros(sites, sources, heads, width, dtype=torch.float64)
        of_edges = torch.einsum("hda,ea->ehd", wide["edge_weight"], wide["edge_attr"])
        features = features.index_put((row, col), of_edges)
        keys, values = keys + features, values + features
    score = scale * torch.einsum("bmhd,bmnhd->bmnh", q, keys)
    if "bias" in wide:
        bias = wide["bias"].expand(batch, -1, heads)
        score = score + torch.zeros_like(score).index_put(
            (torch.arange(batch)[:, None], row[None], col[None]), bias
        )
    reads = torch.zeros(sites, sources, dtype=torch.bool).index_put((row, col), torch.tensor(True))
    score = score.masked_fill(~reads[None, :, :, None], -torch.inf)
    empty = score.amax(2, keepdim=True) == -torch.inf if sources else score.sum(2, True) == 0
    weight = torch.softmax(score.masked_fill(empty, 0), 2).masked_fill(empty, 0)
    return torch.einsum("bmnh,bmnhd->bmhd", weight, values)


def leaves(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}


def places(edges: Edges) -> dict[str, Any]:
    return {"row_ptr": edges.row_ptr, "col": edges.col}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, name: str) -> None:
    """Within the tolerance of the dtype, relative to the largest number; sums have few terms."""
    size = max(expected.abs().max().item(), 1.0) if expected.numel() else 1.0
    assert actual.shape == expected.shape, name
    error = (actual.detach().cpu().double() - expected.cpu()).abs()
    bound = 10 * TOLERANCE[dtype] * size
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= bound, f"{name}: error {worst:.2e} above {bound:.2e}"


def assert_transforms_work(layer: nn.Module, x: Tensor) -> None:
    """An ensemble by vmap, forward mode and a Hessian, as torch's fused attention has not."""
    parameters = {name: torch.stack([p, p.cos()]).detach() for name, p in layer.named_parameters()}

    def call(given: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(layer, given, (x,))
        return out

    members = [{name: p[n] for name, p in parameters.items()} for n in range(2)]
    expected = torch.stack([call(member, x) for member in members])
    torch.testing.assert_close(torch.func.vmap(call, (0, None))(parameters, x), expected)
    along = torch.randn_like(x)
    slope = torch.func.jvp(lambda x: call(members[0], x), (x,), (along,))[1]
    jacobian = torch.autograd.functional.jacobian(lambda x: call(members[0], x), x)
    torch.testing.assert_close(slope, torch.tensordot(jacobian, along, along.dim()))
    first = x[:1].flatten()[:6]

    def of_some(some: Tensor) -> Tensor:
        flat = torch.cat([some, x[:1].flatten()[6:]])
        return call(members[0], flat.view_as(x[:1])).pow(3).sum()

    hessian = torch.func.hessian(of_some)(first)
    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.autograd.functional.hessian(of_some, first)
    torch.testing.assert_close(hessian, expected)


def assert_traces_are_refused(layer: nn.Module, x: Tensor) -> None:
    """They would hold the edges of one call, whose number and indices fit no other input."""
    refused = f"torch.jit.trace cannot take {type(layer).__name__}, .*; use torch.compile"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of shapes that a trace fixes
        with pytest.raises(BackendError, match=refused):
            torch.jit.trace(layer, (x,))
    refused = f"torch.export cannot take {type(layer).__name__}, .*; use torch.compile, or Sparse"
    with pytest.raises(BackendError, match=refused):
        torch.export.export(layer, (x,))


def assert_vmap_is_refused(layer: nn.Module, x: Tensor) -> None:
    """Edges differ from sample to sample: in a batch or one at a time gradients can be had."""
    name = re.escape(type(layer).__name__)
    with pytest.raises(BackendError, match=rf"cannot map {name}, .* give samples as a batch"):
        torch.vmap(layer)(x)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(layer, parameters, (sample,))
        return out.square().sum()

    parameters: dict[str, Tensor] = dict(layer.named_parameters())
    with pytest.raises(BackendError, match=r"or loop over them for gradients of each"):
        torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    found = [torch.func.grad(loss)(parameters, sample) for sample in x]
    for name, parameter in parameters.items():
        (whole,) = torch.autograd.grad(loss(parameters, x), parameter)
        torch.testing.assert_close(sum(each[name] for each in found), whole)
