"""Attention to chosen blocks: against loops, dense attention, and blocks that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import assert_traces_are_refused, assert_vmap_is_refused
from chosen_cases import assert_same_with_gradients, copies_of, masked_attention
from layer_cases import randn, randomize
from torch import Tensor

from scisparse.errors import OptionError, ShapeError
from scisparse.layers import BlockTopKAttention
from scisparse.patterns import block_topk


def build(*sizes: int, **options: Any) -> BlockTopKAttention:
    layer = BlockTopKAttention(*sizes, **options).double()
    randomize(layer)
    return layer


def by_loops(q: Tensor, k: Tensor, block: int, top: int, causal: bool) -> Tensor:
    """Who reads whom ``[B, G, N, N]``, one token after the other."""
    (batch, tokens, heads, width), groups = q.shape, k.shape[2]
    share = heads // groups
    starts = range(0, tokens, block)
    members = [list(range(start, min(start + block, tokens))) for start in starts]
    reads = torch.zeros(batch, groups, tokens, tokens, dtype=torch.bool)
    for b, g, i in np.ndindex(batch, groups, tokens):
        own = i // block
        others = [n for n in range(len(members)) if (n < own if causal else n != own)]
        part = np.zeros(len(others))
        for h in range(g * share, (g + 1) * share):
            means = [k[b, members[n], g].mean(0) for n in others]
            score = np.array([float(q[b, i, h] @ m) / width**0.5 for m in means])
            part += np.exp(score) / np.exp(score).sum()
        best = sorted(range(len(others)), key=lambda n: -part[n])[:top]
        for n in [own, *(others[n] for n in best)]:
            for j in members[n]:
                reads[b, g, i, j] = j <= i or not causal
    return reads


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("tokens", "block", "top"),
    [(1, 4, 2), (24, 4, 2), (27, 4, 3), (27, 4, 0), (10, 1, 4), (5, 8, 1), (9, 2, 50)],
)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_edges_are_those_of_plain_loops(
    tokens: int, block: int, top: int, groups: int, causal: bool
) -> None:
    q, k = randn(2, tokens, 4, 3), randn(2, tokens, groups, 3, seed=8)
    pattern = block_topk(q, k, block, top, causal=causal)
    assert torch.equal(copies_of(pattern, 2, groups), by_loops(q, k, block, top, causal))
    assert (pattern.fan_in > 0).all()


@pytest.mark.parametrize("at_once", [1, 2 * 7 * 10, 2 * 7 * 27 * 4])
def test_edges_do_not_hang_on_how_many_are_found_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """One token, ten tokens, or four of six heads and batch entries."""
    q, k = randn(3, 27, 4, 3), randn(3, 27, 2, 3, seed=8)
    for causal in (False, True):
        monkeypatch.undo()
        whole = block_topk(q, k, 4, 2, causal=causal)
        monkeypatch.setattr("scisparse.patterns.chosen._NUMBERS_AT_ONCE", at_once)
        assert block_topk(q, k, 4, 2, causal=causal) == whole


def test_a_planted_block_is_found() -> None:
    """One block has keys along the query; scores are so large that softmaxes of others are 0."""
    tokens, block = 64, 8
    gen = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 8, (2, tokens), generator=gen)
    axes = torch.eye(8)
    # Key of block n is axis n; a query likes `first` best, `second` after it, by far.
    k = axes.repeat_interleave(block, 0).view(1, tokens, 1, 8)
    q = (2000 * axes[first] + 1000 * axes[second]).view(1, tokens, 1, 8)
    reads = copies_of(block_topk(q, k, block, 2), 1, 1)[0, 0].view(tokens, 8, block)
    assert torch.equal(reads.any(-1), reads.all(-1))
    for i in range(tokens):
        assert reads[i, [first[i], second[i], i // block], 0].all()
    reads = copies_of(block_topk(q, k, block, 2, causal=True), 1, 1)[0, 0].view(tokens, 8, block)
    for i in range(tokens):
        before = [int(n) for n in (first[i], second[i]) if n < i // block]
        assert reads[i, before].all()


@pytest.mark.parametrize("causal", [False, True])
def test_all_blocks_are_dense_attention(causal: bool) -> None:
    layer = build(8, 4, 5, 6, kv_heads=2, causal=causal)
    x = randn(2, 33, 8)  # seven blocks, the last of 3
    q, k, v = (
        m(x).view(2, 33, -1, 2).transpose(1, 2) for m in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    dense = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=True
    )
    expected = layer.out_proj(dense.transpose(1, 2).flatten(2))
    assert_same_with_gradients(layer, layer(x), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [4, 2])
def test_equals_dense_attention_under_the_mask(groups: int, causal: bool) -> None:
    layer = build(8, 4, 4, 2, kv_heads=groups, causal=causal)
    x = randn(2, 27, 8)
    q, k, v = (m(x).view(2, 27, -1, 2) for m in (layer.q_proj, layer.k_proj, layer.v_proj))
    reads = by_loops(q.detach(), k.detach(), 4, 2, causal)
    expected = layer.out_proj(masked_attention(q, k, v, reads).flatten(2))
    assert_same_with_gradients(layer, layer(x), expected)
    assert torch.equal(copies_of(layer.pattern_of(x), 2, groups), reads)


def test_gradients_of_both_orders() -> None:
    """Steps of the check are too small to change a choice."""
    layer = build(4, 2, 2, 1, kv_heads=1)
    x = randn(2, 7, 4).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)


def test_batch_entries_and_heads_are_on_their_own() -> None:
    layer = build(8, 4, 4, 2)
    x = randn(3, 4, 27, 8)
    y = layer(x)
    torch.testing.assert_close(y[1, 2], layer(x[1, 2]))
    changed = x.clone()
    changed[2, 1] = randn(27, 8, seed=5)
    same = torch.ones(3, 4).bool()
    same[2, 1] = False
    assert torch.equal(layer(changed)[same], y[same])
    q, k = randn(2, 27, 3, 4), randn(2, 27, 3, 4, seed=8)
    other = k.clone()
    other[:, :, 1] = randn(2, 27, 4, seed=2)
    before, after = (copies_of(block_topk(q, t, 4, 2), 2, 3) for t in (k, other))
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_no_output_hangs_on_later_tokens() -> None:
    """Neither by its values nor by the choice of blocks; NaN would be seen anywhere."""
    layer = build(8, 2, 4, 2, causal=True)
    x = randn(1, 40, 8)
    y = layer(x)
    for end in (1, 13, 39):
        changed = x.clone()
        changed[:, end:] = torch.nan
        torch.testing.assert_close(layer(changed)[:, :end], y[:, :end])
        torch.testing.assert_close(layer(x[:, :end]), y[:, :end])


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)])
def test_nothing_has_no_edges(shape: tuple[int, ...]) -> None:
    layer = BlockTopKAttention(8, 2, 4, 2)
    x = torch.zeros(shape)
    assert layer.pattern_of(x).validate().num_edges == 0
    assert layer(x).shape == shape


def test_same_seed_same_result_in_all_precisions() -> None:
    torch.manual_seed(0)
    layer = BlockTopKAttention(8, 2, 4, 2)
    torch.manual_seed(0)
    twin = BlockTopKAttention(8, 2, 4, 2)
    x = torch.randn(2, 27, 8)
    assert torch.equal(layer(x), twin(x))
    assert torch.equal(layer.eval()(x), layer(x))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            y = layer(x)
        assert y.dtype == dtype
        assert y.isfinite().all()
        # As many edges as ever, whatever the rounding makes of the choice.
        low = layer.to(dtype).pattern_of(x.to(dtype))
        assert low.num_edges == twin.pattern_of(x).num_edges
        layer.float()


def test_dropout_is_for_training_alone() -> None:
    layer = build(8, 2, 4, 2, dropout=0.5)
    x = randn(1, 27, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(OptionError, match=r"`embed_dim` \(=10\) must be .* `num_heads` \(=4\)"):
        BlockTopKAttention(10, 4, 8, 2)
    with pytest.raises(OptionError, match=r"`num_heads` \(=4\) must be .* `kv_heads` \(=3\)"):
        BlockTopKAttention(8, 4, 8, 2, kv_heads=3)
    with pytest.raises(OptionError, match=r"`block` \(=0\) must be at least 1"):
        BlockTopKAttention(8, 4, 0, 2)
    with pytest.raises(OptionError, match=r"`top` \(=-1\) must be at least 0"):
        BlockTopKAttention(8, 4, 8, -1)
    layer = BlockTopKAttention(8, 4, 8, 2)
    for call in (layer, layer.pattern_of):
        with pytest.raises(ShapeError, match=r"`x` \[8\] must be \[..., M sites, 8 channels\]"):
            call(torch.zeros(8))
    q = torch.zeros(1, 5, 4, 2)
    for k in (torch.zeros(1, 6, 4, 2), torch.zeros(1, 5, 3, 2), torch.zeros(1, 5, 0, 2), q[0]):
        with pytest.raises(ShapeError, match=r"of the same tokens, with H a multiple of G"):
            block_topk(q, k, 4, 1)
    with pytest.raises(ShapeError, match=r"must be floats"):
        block_topk(q.int(), q.int(), 4, 1)
    with pytest.raises(OptionError, match=r"`block` \(=2.0\) must be an integer"):
        block_topk(q, q, 2.0, 1)  # type: ignore[arg-type]


def test_vmap_and_traces_are_refused_as_edges_differ() -> None:
    assert_traces_are_refused(build(4, 2, 3, 1), randn(2, 11, 4))
    assert_vmap_is_refused(build(4, 2, 3, 1), randn(3, 2, 11, 4))
