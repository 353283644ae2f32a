"""`LinformerAttention`: against dense attention, and against what it is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import assert_transforms_work
from chosen_cases import assert_same_with_gradients, masked_attention
from layer_cases import randn, randomize
from torch.nn.attention import SDPBackend, sdpa_kernel

from scisparse.errors import OptionError, ShapeError
from scisparse.layers import LinformerAttention


def build(*sizes: int, **options: Any) -> LinformerAttention:
    layer = LinformerAttention(*sizes, **options).double()
    randomize(layer)
    return layer


@pytest.mark.parametrize("source_dim", [None, 6])
@pytest.mark.parametrize("share", [False, True])
def test_identity_maps_are_dense_attention(share: bool, source_dim: int | None) -> None:
    sites, sources = (11, 11) if source_dim is None else (7, 11)
    layer = build(8, 2, sources, sources, share=share, source_dim=source_dim)
    with torch.no_grad():
        for mix in (layer.k_mix, layer.v_mix):
            if mix is not None:
                mix.copy_(torch.eye(sources))
    x = randn(3, sites, 8)
    source = x if source_dim is None else randn(3, sources, source_dim, seed=8)
    pairs = ((layer.q_proj, x), (layer.k_proj, source), (layer.v_proj, source))
    q, k, v = (m(t).view(3, -1, 2, 4) for m, t in pairs)
    dense = masked_attention(q, k, v, torch.ones(3, 2, sites, sources).bool())
    y = layer(x) if source_dim is None else layer(x, source)
    torch.testing.assert_close(y, layer.out_proj(dense.flatten(2)))


@pytest.mark.parametrize("share", [False, True])
def test_sums_are_those_of_the_formula(share: bool) -> None:
    layer = build(6, 2, 9, 4, share=share, source_dim=5)
    x, source = randn(2, 7, 6), randn(2, 9, 5, seed=8)
    v_mix = layer.k_mix if layer.v_mix is None else layer.v_mix
    mixed = [torch.einsum("rn,bnc->brc", mix, source) for mix in (layer.k_mix, v_mix)]
    q = layer.q_proj(x).view(2, 7, 2, 3)
    k, v = (m(t).view(2, 4, 2, 3) for m, t in zip((layer.k_proj, layer.v_proj), mixed, strict=True))
    weight = (torch.einsum("bmhd,brhd->bhmr", q, k) / 3**0.5).softmax(-1)
    y = torch.einsum("bhmr,brhd->bmhd", weight, v)
    assert_same_with_gradients(layer, layer(x, source), layer.out_proj(y.flatten(2)))


def test_gradients_of_both_orders() -> None:
    layer = build(4, 2, 5, 3)
    x = randn(2, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of torch's own rules
def test_transforms_of_torch_func_work() -> None:
    assert_transforms_work(build(4, 2, 5, 3), randn(2, 5, 4))


def test_batch_dimensions_are_carried_and_entries_on_their_own() -> None:
    layer = build(4, 2, 9, 3)
    x = randn(2, 3, 9, 4)
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y[1, 2], layer(x[1, 2]))
    changed = x.clone()
    changed[0, 1] = torch.nan
    assert torch.equal(layer(changed)[1], y[1])
    assert layer(x[:0]).shape == (0, 3, 9, 4)


def test_mixtures_start_as_large_as_sources() -> None:
    torch.manual_seed(0)
    layer = LinformerAttention(8, 2, 400, 50)
    source = torch.randn(400, 8)
    for mix in (layer.k_mix, layer.v_mix):
        assert mix is not None
        assert (mix @ source).std().item() == pytest.approx(1, abs=0.2)
    torch.manual_seed(0)
    twin = LinformerAttention(8, 2, 400, 50)
    assert torch.equal(twin(source), layer(source))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(0)
    twin.reset_parameters()
    assert twin(source).isfinite().all()


def test_dropout_is_for_training_alone() -> None:
    layer = build(4, 2, 9, 3, dropout=0.5)
    x = randn(1, 9, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_compiles_and_exports_and_runs_in_bfloat16() -> None:
    layer = LinformerAttention(4, 2, 9, 3).eval()
    x = torch.randn(2, 9, 4)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(OptionError, match=r"`embed_dim` \(=10\) must be .* `num_heads` \(=4\)"):
        LinformerAttention(10, 4, 9, 3)
    with pytest.raises(OptionError, match=r"`rank` \(=10\) must not be above `num_sources` \(=9\)"):
        LinformerAttention(8, 4, 9, 10)
    with pytest.raises(OptionError, match=r"`rank` \(=0\) must be at least 1"):
        LinformerAttention(8, 4, 9, 0)
    with pytest.raises(OptionError, match=r"`num_sources` \(=9.5\) must be an integer"):
        LinformerAttention(8, 4, 9.5, 3)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"`dropout` \(=1.0\) must be"):
        LinformerAttention(8, 4, 9, 3, dropout=1.0)
    layer = LinformerAttention(8, 4, 9, 3, source_dim=6)
    x = torch.zeros(2, 5, 8)
    with pytest.raises(ShapeError, match=r"`source` \[2, 8, 6\] must be \[..., 9 sources, 6 chan"):
        layer(x, torch.zeros(2, 8, 6))
    with pytest.raises(ShapeError, match=r"`source` \[2, 5, 8\] .*; give `source` for another"):
        layer(x)
    with pytest.raises(ShapeError, match=r"`x` \[2, 5, 7\] must be \[..., M sites, 8 channels\]$"):
        layer(torch.zeros(2, 5, 7), torch.zeros(2, 9, 6))
    with pytest.raises(ShapeError, match="same batch dimensions"):
        layer(x, torch.zeros(3, 9, 6))
