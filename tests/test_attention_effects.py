"""What edges of attention are worth: against autograd through gates, and a dense softmax."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from kernel_cases import generator
from layer_cases import needs_scipy
from rewired_attention_cases import GRID, randomize, some_edges
from torch import Tensor

from scisparse.layers import Scores, SparseAttention
from scisparse.pattern import Pattern
from scisparse.patterns import radius, window
from scisparse.sparsity.attended import AttentionTarget
from scisparse.sparsity.candidates import Listed


def target_of(layer: SparseAttention, wide: Pattern) -> AttentionTarget:
    def all_in_one(count: int) -> tuple[None, Tensor]:
        return None, torch.tensor([count])

    return AttentionTarget("edges", layer, Listed(wide), layer.pattern.fan_in, all_in_one)


def dense_bias(layer: SparseAttention, near: Pattern, wide: Pattern) -> Tensor:
    """What is added to the score of every pair, ``[M, N, H]``, from the words of the docstring."""
    full = torch.zeros(*wide.shape, layer.num_heads, dtype=torch.float64)
    row, col = wide.rows(), wide.col.long()
    if layer.scores.areas:
        areas = torch.as_tensor(GRID.areas).reshape(-1)
        full += (areas / areas.mean()).log()[:, None]
    if layer.scores.taps:
        assert wide.tap is not None
        assert layer.bias.tap_weight is not None
        full[row, col] += layer.bias.tap_weight.detach()[wide.tap.long()]
    if layer.scores.knots:
        assert wide.distance is not None
        assert wide.bearing is not None
        assert near.distance is not None
        assert layer.bias.weight is not None
        reach, knots = float(near.distance.max()), layer.scores.knots
        distance, bearing = wide.distance.double().numpy(), wide.bearing.double().numpy()
        place = np.linspace(0, reach, knots)
        values = layer.bias.weight.detach().numpy().reshape(3, knots, -1)
        for h in range(layer.num_heads):
            plain, cosine, sine = (np.interp(distance, place, v[:, h]) for v in values)
            turned = np.cos(bearing) * cosine + np.sin(bearing) * sine
            full[row, col, h] += torch.from_numpy(plain + np.where(distance > 0, turned, 0))
    return full


def dense_output(
    layer: SparseAttention, x: Tensor, bias: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    """Output of the heads with a gate ``[B, M, N, H]`` on every pair, and their scores."""
    heads, group = layer.num_heads, layer.num_heads // layer.kv_heads
    q = layer._heads(layer.q_proj(x), heads, layer.q_norm)
    k = layer._heads(layer.k_proj(x), layer.kv_heads, layer.k_norm).repeat_interleave(group, 2)
    v = layer._heads(layer.v_proj(x), layer.kv_heads, None).repeat_interleave(group, 2)
    score = torch.einsum("bmhd,bnhd->bmnh", q, k) / layer.head_dim**0.5 + bias
    most = score.masked_fill(gate == 0, -torch.inf).amax(2, keepdim=True).detach()
    # What is far above the row has no part in it: a gate of 0 times what is still a number.
    size = gate * (score - most.masked_fill(most == -torch.inf, 0)).clamp(max=50).exp()
    total = size.sum(2, keepdim=True)
    return torch.einsum("bmnh,bnhd->bmhd", size / total.masked_fill(total == 0, 1), v), score


class Case(NamedTuple):
    scores: Scores
    kv_heads: int = 4
    size: float = 0.5  # of the maps


CASES = {
    "plain": Case(Scores()),
    "grouped": Case(Scores(), kv_heads=2),
    "areas, norm": Case(Scores(areas=True, norm=True), kv_heads=1),
    "taps": Case(Scores(taps=True, areas=True)),
    "knots": Case(Scores(knots=3)),
    "large": Case(Scores(), size=30.0),  # scores up to thousands
}


@needs_scipy
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_effects_against_a_dense_softmax_with_gates(case: Case) -> None:
    wide = radius(GRID, 6e6) if case.scores.knots else window(GRID, (3, 5))
    near = some_edges(wide, 0.4)
    if case.scores.knots:  # candidates beyond the reach
        assert wide.distance is not None
        near = near.select(wide.distance[Listed(wide).numbers(near)] < 4.5e6)
    layer = SparseAttention(near, 8, 4, kv_heads=case.kv_heads, scores=case.scores).double()
    randomize(layer, case.size)
    target = target_of(layer, wide)
    target.record(True)
    x = torch.randn(3, GRID.size, 8, generator=generator(1), dtype=torch.float64)
    to = torch.randn(3, GRID.size, 8, generator=generator(2), dtype=torch.float64)
    (layer(x) * to).sum().backward()
    with torch.no_grad():
        for p in layer.bias.parameters():
            p.add_(1.0)  # the optimizer's step: scores are those of before
    effect = target._active().edges.effect
    (chunk,) = target.candidates.chunks(1)
    candidates = target._gradients(chunk)
    with torch.no_grad():
        for p in layer.bias.parameters():
            p.sub_(1.0)

    bias = dense_bias(layer, near, wide)
    one = near.to_dense().double()
    gate = one[None, :, :, None].expand(3, -1, -1, 4).clone().requires_grad_()
    y, score = dense_output(layer, x, bias, gate)
    y.retain_grad()
    (layer.out_proj(y.flatten(2)) * to).sum().backward()
    assert gate.grad is not None
    assert y.grad is not None
    row, col = near.rows(), near.col.long()
    several = near.fan_in[row] > 1
    expected = gate.grad.sum((0, 3))[row, col]
    size = float(expected.abs().max())
    torch.testing.assert_close(effect[several], expected[several], rtol=1e-9, atol=1e-9 * size)
    # Every candidate by itself, added in full; the only edge of a site, taken away. Sites do not
    # know of one another: one edge of each goes at a time.
    truth = torch.zeros(wide.num_edges, dtype=torch.float64)
    truth[Listed(wide).numbers(near)] = effect
    for k in range(int(wide.fan_in.max())):
        e = (wide.row_ptr[:-1] + k)[wide.fan_in > k]
        i, j = wide.rows()[e], wide.col[e].long()
        alone = (one[i, j] == 1) & (near.fan_in[i] == 1)
        moves = alone | (one[i, j] == 0)
        e, i, j, alone = e[moves], i[moves], j[moves], alone[moves]
        changed = gate.detach().clone()
        changed[:, i, j] = (~alone).double()[:, None]
        other = dense_output(layer, x, bias, changed)[0].detach()
        by_site = (y.grad * (other - y.detach())).sum((0, 2, 3))
        truth[e] = torch.where(alone, -by_site[i], by_site[i])
    torch.testing.assert_close(candidates.double(), truth, rtol=2e-6, atol=2e-6 * size)
    assert int((truth != 0).sum()) > len(truth) / 2
    # And it is the gradient at a gate of 0, but for the share that the candidate leaves.
    odds = (score - score.masked_fill(gate == 0, -torch.inf).logsumexp(2, keepdim=True)).exp()
    slope = (gate.grad / (1 + odds)).sum((0, 3)).detach()
    if case.size == 0.5:
        free = (one[wide.rows(), wide.col.long()] == 0) & (near.fan_in[wide.rows()] > 0)
        at = wide.rows()[free], wide.col.long()[free]
        torch.testing.assert_close(candidates[free].double(), slope[at], rtol=2e-6, atol=1e-5)


def test_candidates_at_minus_infinity_have_no_effect() -> None:
    """Nor at a site without edges, which has no denominator."""
    wide = window(GRID, 3)
    layer = SparseAttention(some_edges(wide, 0.5), 4, 2, scores=Scores(taps=True))
    randomize(layer)
    assert layer.bias.tap_weight is not None
    assert wide.tap is not None
    with torch.no_grad():
        layer.bias.tap_weight[[2, 4]] = -torch.inf
    target = target_of(layer, wide)
    target.record(True)
    layer(torch.randn(2, GRID.size, 4)).square().sum().backward()
    (chunk,) = target.candidates.chunks(1)
    effect = target._gradients(chunk)
    assert effect.isfinite().all()
    hidden = (wide.tap == 2) | (wide.tap == 4)
    assert (effect[hidden] == 0).all()
    assert (effect[~hidden & (wide.rows() == 0)] != 0).all()


def test_weights_are_means_over_batch_and_heads_of_all_passes() -> None:
    layer = SparseAttention(some_edges(window(GRID, 3), 0.6), 4, 2)
    randomize(layer)
    target = target_of(layer, window(GRID, 3))
    target.record(True)
    x = torch.randn(5, GRID.size, 4)
    for part in (x[:2], x[2:]):  # gradients are accumulated
        layer(part).square().sum().backward()
        target._active()  # what was looked up before is not kept
    weight = target._active().edges.weight
    sums = torch.zeros(GRID.size).double().index_add_(0, layer.pattern.rows(), weight)
    torch.testing.assert_close(sums, (layer.pattern.fan_in > 0).double())
    together = target_of(layer, window(GRID, 3))
    together.record(True)
    layer(x).square().sum().backward()
    torch.testing.assert_close(together._active().edges.weight, weight)
    effects = together._active().edges.effect, target._active().edges.effect
    torch.testing.assert_close(*effects, rtol=1e-4, atol=1e-5)


def test_chunks_and_parts_of_the_batch_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Tensor:
        layer = SparseAttention(some_edges(wide, 0.5), 4, 2, scores=Scores(areas=True))
        randomize(layer)
        target = target_of(layer, wide)
        target.record(True)
        layer(torch.randn(7, GRID.size, 4, generator=generator(1))).square().sum().backward()
        chunks = list(target.candidates.chunks(target.numbers))
        parts.append(len(chunks))
        return torch.cat([target._gradients(chunk) for chunk in chunks])

    wide, parts = window(GRID, (3, 5)), list[int]()
    whole = found()
    monkeypatch.setattr("scisparse.sparsity.candidates._NUMBERS_AT_ONCE", 60)
    monkeypatch.setattr("scisparse.sparsity.attention_effects._NUMBERS_AT_ONCE", 100)
    torch.testing.assert_close(found(), whole)
    assert parts[0] == 1
    assert parts[1] > 10
