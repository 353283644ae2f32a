"""Attention by hashing: against buckets found by plain loops, and on clusters that are known."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import assert_traces_are_refused, assert_vmap_is_refused
from chosen_cases import assert_same_with_gradients, copies_of, masked_attention
from layer_cases import randn, randomize
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scisparse.errors import OptionError, ShapeError
from scisparse.layers import LSHAttention, approximation_error
from scisparse.pattern import Pattern
from scisparse.patterns import lsh, sliding_window


def build(*sizes: int, seed: int = 0, **options: Any) -> LSHAttention:
    layer = LSHAttention(*sizes, **options).double()
    randomize(layer, seed)
    layer.redraw(torch.Generator().manual_seed(seed))
    return layer


def by_loops(vectors: Tensor, rotations: Tensor, chunk: int, causal: bool) -> Tensor:
    """Who reads whom ``[B, H, N, N]``, one token after the other."""
    (batch, tokens, heads, _), rounds = vectors.shape, rotations.shape[1]
    reads = torch.zeros(batch, heads, tokens, tokens, dtype=torch.bool)
    for b, h, r in np.ndindex(batch, heads, rounds):
        buckets: dict[int, list[int]] = {}
        for i in range(tokens):
            turned = vectors[b, i, h].numpy() @ rotations[h, r].numpy()
            bucket = int(np.argmax(np.concatenate([turned, -turned])))
            buckets.setdefault(bucket, []).append(i)
        for members in buckets.values():
            for place, i in enumerate(members):
                for other, j in enumerate(members):
                    near = place // chunk - other // chunk in (0, 1)
                    if near and i != j and (j < i or not causal):
                        reads[b, h, i, j] = True
    for b, h, i in np.ndindex(batch, heads, tokens):
        if not reads[b, h, i].any():
            reads[b, h, i, i] = True
    return reads


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(("tokens", "chunk"), [(1, 4), (37, 5), (40, 5), (37, 1), (23, 100)])
def test_edges_are_those_of_plain_loops(tokens: int, chunk: int, rounds: int, causal: bool) -> None:
    vectors, rotations = randn(2, tokens, 3, 6), randn(3, rounds, 6, 2, seed=8)
    pattern = lsh(vectors, rotations, chunk, causal=causal)
    expected = by_loops(vectors, rotations, chunk, causal)
    assert torch.equal(copies_of(pattern, 2, 3), expected)
    assert (pattern.fan_in > 0).all()
    assert lsh(7 * vectors, rotations, chunk, causal=causal) == pattern


def test_edges_do_not_hang_on_how_many_are_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, rotations = randn(2, 37, 3, 6), randn(3, 2, 6, 2, seed=8)
    whole = lsh(vectors, rotations, 5)
    monkeypatch.setattr("scisparse.patterns.chosen._NUMBERS_AT_ONCE", 130)
    assert lsh(vectors, rotations, 5) == whole


@pytest.mark.parametrize("shape", [(0, 5, 2, 4), (2, 0, 2, 4)])
def test_nothing_has_no_edges(shape: tuple[int, ...]) -> None:
    pattern = lsh(torch.zeros(shape), torch.randn(2, 3, 4, 2), 4).validate()
    assert pattern.num_edges == 0
    assert pattern.shape == (shape[0] * shape[1] * 2,) * 2
    x = torch.zeros(shape[0], shape[1], 8)
    assert LSHAttention(8, 2, 4, 4)(x).shape == x.shape


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
def test_equals_dense_attention_under_the_mask(rounds: int, causal: bool) -> None:
    layer = build(6, 2, 6, 4, rounds=rounds, causal=causal)
    x = randn(2, 29, 6)
    q = layer.qk_proj(x).view(2, 29, 2, 3)
    reads = by_loops(q.detach(), layer.rotations, 4, causal)
    assert 2 < reads.sum(-1).double().mean() < 15  # neither nothing nor everything
    v = layer.v_proj(x).view(2, 29, 2, 3)
    k = q * 3**0.5 / q.norm(dim=-1, keepdim=True)  # the score is q . q' / |q'|
    expected = layer.out_proj(masked_attention(q, k, v, reads).flatten(2))
    assert_same_with_gradients(layer, layer(x), expected)
    assert torch.equal(copies_of(layer.pattern_of(x), 2, 2), reads)


def test_gradients_of_both_orders() -> None:
    """Steps of the check are too small to move a token to another bucket."""
    layer = build(4, 2, 4, 3, rounds=2)
    x = randn(2, 7, 4).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)


def test_batch_entries_and_heads_are_on_their_own() -> None:
    layer = build(6, 2, 6, 4)
    x = randn(3, 4, 29, 6)
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y[1, 2], layer(x[1, 2]))
    changed = x.clone()
    changed[2, 1] = randn(29, 6, seed=5)
    same = torch.ones(3, 4).bool()
    same[2, 1] = False
    assert torch.equal(layer(changed)[same], y[same])
    vectors, rotations = randn(2, 29, 3, 6), randn(3, 2, 6, 3, seed=8)
    other = vectors.clone()
    other[:, :, 1] = randn(2, 29, 6, seed=2)
    before, after = (copies_of(lsh(t, rotations, 4), 2, 3) for t in (vectors, other))
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_no_output_hangs_on_later_tokens() -> None:
    """Neither by its values nor by the choice of edges."""
    layer = build(6, 2, 6, 4, causal=True)
    x = randn(1, 40, 6)
    y = layer(x)
    for end in (1, 13, 39):
        changed = x.clone()
        changed[:, end:] = randn(1, 40 - end, 6, seed=end)
        torch.testing.assert_close(layer(changed)[:, :end], y[:, :end])
        torch.testing.assert_close(layer(x[:, :end]), y[:, :end])


def clusters(count: int, members: int, width: int) -> Tensor:
    """Vectors ``[1, N, 1, D]`` close to one of few directions, in random order."""
    gen = torch.Generator().manual_seed(0)
    centre = torch.randn(count, width, generator=gen)
    centre = 6 * centre / centre.norm(dim=1, keepdim=True)
    order = torch.randperm(count * members, generator=gen)
    kind = torch.arange(count).repeat_interleave(members)[order]
    vectors: Tensor = centre[kind] + 0.01 * torch.randn(len(kind), width, generator=gen)
    return vectors.view(1, -1, 1, width)


def test_clusters_are_found_where_a_window_misses_them() -> None:
    q = clusters(16, 32, 24)
    length = q.shape[1]
    rotations = randn(1, 4, 24, 16, seed=2)
    itself = Pattern.from_dense(torch.eye(length).bool())
    hashed = lsh(q, rotations, 64).union(itself)
    fan_in = hashed.num_edges // length
    assert fan_in < length / 3
    window = sliding_window(length, fan_in + 1)
    v = randn(*q.shape, seed=3).float()
    caught = approximation_error(q, q, v, hashed, scale=1.0)
    missed = approximation_error(q, q, v, window, scale=1.0)
    assert caught.weight > 0.99
    assert caught.error < 0.05
    assert missed.weight < 0.4
    assert missed.error > 0.5


def test_rotations_are_drawn_from_the_seed_and_stay() -> None:
    x = torch.randn(2, 40, 8)

    def seeded(seed: int) -> LSHAttention:
        torch.manual_seed(seed)
        return LSHAttention(8, 2, 6, 4)

    layer, twin, other = seeded(3), seeded(3), seeded(4)
    y = layer(x)
    assert torch.equal(twin(x), y)
    assert torch.equal(layer.eval()(x), y)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    assert other.pattern_of(x) != layer.pattern_of(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    before = layer.rotations.clone()
    layer.redraw(torch.Generator().manual_seed(0))
    assert not torch.equal(layer.rotations, before)
    twin.redraw(torch.Generator().manual_seed(0))
    assert torch.equal(layer.rotations, twin.rotations)
    twin.reset_parameters()
    assert not torch.equal(layer.rotations, twin.rotations)


def test_built_on_meta_and_reset_it_is_as_if_built_here() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        layer = LSHAttention(8, 2, 6, 4)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(1, 20, 8)).isfinite().all()
    assert layer.rotations.std() == pytest.approx(1, abs=0.3)


def test_activations_computed_again_meet_the_same_edges() -> None:
    layer = build(6, 2, 6, 4)
    x = randn(2, 29, 6).requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    y = checkpoint(layer, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], expected)


def test_dropout_is_for_training_alone() -> None:
    layer = build(6, 2, 6, 8, dropout=0.5)
    x = randn(1, 29, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


# Where torch leaves a compiled graph it looks at `.grad` of what goes on, and warns itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_autocast_and_compile_run() -> None:
    layer = LSHAttention(8, 2, 6, 4)
    x = torch.randn(2, 29, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float().mean(), layer(x).mean(), rtol=0.1, atol=0.1)
    compiled = torch.compile(layer, backend="eager")
    for length in (29, 29, 40):  # other edges, other sizes
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(compiled(x), layer(x))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(OptionError, match=r"`embed_dim` \(=10\) must be .* `num_heads` \(=4\)"):
        LSHAttention(10, 4, 8, 16)
    with pytest.raises(OptionError, match=r"`buckets` \(=7\) must be even"):
        LSHAttention(8, 4, 7, 16)
    with pytest.raises(OptionError, match=r"`buckets` \(=0\) must be at least 2"):
        LSHAttention(8, 4, 0, 16)
    with pytest.raises(OptionError, match=r"`chunk` \(=0\) must be at least 1"):
        LSHAttention(8, 4, 8, 0)
    with pytest.raises(OptionError, match=r"`rounds` \(=1.5\) must be an integer"):
        LSHAttention(8, 4, 8, 16, rounds=1.5)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"`dropout` \(=-0.1\) must be"):
        LSHAttention(8, 4, 8, 16, dropout=-0.1)
    layer = LSHAttention(8, 4, 8, 16)
    for call in (layer, layer.pattern_of):
        with pytest.raises(ShapeError, match=r"`x` \[2, 5, 6\] must be \[..., M sites, 8 channels"):
            call(torch.zeros(2, 5, 6))
    vectors = torch.zeros(1, 5, 2, 4)
    with pytest.raises(ShapeError, match=r"`rotations` \(torch.float32 \[3, 1, 4, 2\]\) must be"):
        lsh(vectors, torch.zeros(3, 1, 4, 2), 4)
    with pytest.raises(ShapeError, match=r"at least one round \(R\) and one pair"):
        lsh(vectors, torch.zeros(2, 0, 4, 2), 4)
    with pytest.raises(ShapeError, match=r"`vectors` \(torch.int64 .* must be floats"):
        lsh(vectors.long(), torch.zeros(2, 1, 4, 2), 4)
    with pytest.raises(OptionError, match=r"`chunk` \(=-3\) must be at least 1"):
        lsh(vectors, torch.zeros(2, 1, 4, 2), -3)


def test_vmap_and_traces_are_refused_as_edges_differ() -> None:
    assert_traces_are_refused(build(4, 2, 2, 3), randn(2, 11, 4))
    assert_vmap_is_refused(build(4, 2, 2, 3), randn(3, 2, 11, 4))
