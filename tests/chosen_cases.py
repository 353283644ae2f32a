"""What tests of chosen edges share: patterns side by side as booleans, and dense attention."""

from __future__ import annotations

import torch
from layer_cases import randn
from torch import Tensor, nn

from scisparse.pattern import Pattern


def copies_of(pattern: Pattern, batch: int, heads: int) -> Tensor:
    """Booleans ``[B, G, N, N]``; no edge may join two copies."""
    pattern.validate()
    tokens = pattern.num_sites // (batch * heads)
    dense = pattern.to_dense().view(batch * heads, tokens, batch * heads, tokens)
    inside = torch.eye(batch * heads).bool()[:, None, :, None]
    assert not (dense & ~inside).any()
    return torch.stack([dense[c, :, c] for c in range(batch * heads)]).view(
        batch, heads, tokens, tokens
    )


def masked_attention(q: Tensor, k: Tensor, v: Tensor, reads: Tensor) -> Tensor:
    """Softmax attention over the true pairs of ``reads [B, G, N, N]``, from full matrices."""
    share = q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(share, 2) for t in (k, v))
    score = torch.einsum("bmhd,bnhd->bhmn", q, k) / q.shape[3] ** 0.5
    weight = score.masked_fill(~reads.repeat_interleave(share, 1), -torch.inf).softmax(-1)
    return torch.einsum("bhmn,bnhd->bmhd", weight, v)


def assert_same_with_gradients(layer: nn.Module, actual: Tensor, expected: Tensor) -> None:
    """Outputs, and the gradients of all parameters."""
    torch.testing.assert_close(actual, expected)
    grad = randn(*actual.shape, seed=9)
    parameters = list(layer.parameters())
    ours, theirs = (torch.autograd.grad(y, parameters, grad) for y in (actual, expected))
    for (name, _), a, b in zip(layer.named_parameters(), ours, theirs, strict=True):
        assert b.abs().max() > 0 or name == "k_proj.bias", name
        torch.testing.assert_close(a, b, msg=name)
