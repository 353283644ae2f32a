"""`SparseAttention`: against torch's own attention, and on fields whose answer is known."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import needs_scipy
from torch import Tensor, nn

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.grids import LatLonGrid
from scisparse.layers import Scores, SparseAttention, approximation_error
from scisparse.pattern import Pattern
from scisparse.patterns import mesh, radius, sliding_window, window

SHAPE = (6, 12)
GRID = LatLonGrid.regular(*SHAPE)


def randomize(module: nn.Module, seed: int = 0) -> None:
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen) * 0.5)


def build(pattern: Pattern, *sizes: int, **options: Any) -> SparseAttention:
    layer = SparseAttention(pattern, *sizes, **options).double()
    randomize(layer)
    return layer


def random_pattern(sites: int, sources: int, seed: int = 0) -> Pattern:
    """Each pair with probability 0.4; the first site reads nothing."""
    gen = torch.Generator().manual_seed(seed)
    dense = torch.rand(sites, sources, generator=gen) < 0.4
    dense[0] = False
    dense[1, 0] = True
    return Pattern.from_dense(dense)


@pytest.mark.parametrize("source_dim", [None, 6])
def test_equals_torch_attention_with_a_mask(source_dim: int | None) -> None:
    """`nn.MultiheadAttention` with the same maps; it has no answer where a site reads nothing."""
    sites, sources = (11, 11) if source_dim is None else (11, 9)
    pattern = random_pattern(sites, sources)
    layer = build(pattern, 8, 2, source_dim=source_dim)
    theirs = nn.MultiheadAttention(
        8, 2, batch_first=True, kdim=source_dim, vdim=source_dim, dtype=torch.float64
    )
    maps = (layer.q_proj, layer.k_proj, layer.v_proj)
    with torch.no_grad():
        if source_dim is None:
            theirs.in_proj_weight.copy_(torch.cat([m.weight for m in maps]))
        else:
            named = (theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight)
            for to, map_ in zip(named, maps, strict=True):
                to.copy_(map_.weight)
        theirs.in_proj_bias.copy_(torch.cat([m.bias for m in maps]))
        theirs.out_proj.load_state_dict(layer.out_proj.state_dict())
    x = torch.randn(3, sites, 8).double().requires_grad_()
    source = x if source_dim is None else torch.randn(3, sources, 6).double()
    y = layer(x, None if source_dim is None else source)
    hidden = ~pattern.to_dense().bool()
    hidden[0] = False  # NaN else
    expected = theirs(x, source, source, attn_mask=hidden, need_weights=False)[0]
    torch.testing.assert_close(y[:, 1:], expected[:, 1:])
    torch.testing.assert_close(y[:, 0], layer.out_proj.bias.expand(3, -1))
    grad = torch.randn_like(y)
    grad[:, 0] = 0
    ours = torch.autograd.grad(y, [x, layer.k_proj.weight], grad)
    k_grad = theirs.in_proj_weight if source_dim is None else theirs.k_proj_weight
    truth = torch.autograd.grad(expected, [x, k_grad], grad)
    torch.testing.assert_close(ours[0], truth[0])
    torch.testing.assert_close(ours[1], truth[1] if source_dim else truth[1][8:16])


@needs_scipy
def test_areas_of_a_mesh_may_be_read_only() -> None:
    """A warning of torch is an error here."""
    pattern = mesh(1)
    assert pattern.source_grid is not None
    assert not np.asarray(pattern.source_grid.areas).flags.writeable
    layer = SparseAttention(pattern, 4, 1, scores=Scores(areas=True))
    assert layer(torch.randn(42, 4)).isfinite().all()


def test_uniform_scores_give_the_area_mean() -> None:
    pattern = window(GRID, (3, 5))
    layer = build(pattern, 4, 1, scores=Scores(areas=True))
    with torch.no_grad():
        layer.q_proj.weight.zero_()
        layer.q_proj.bias.zero_()
    x = torch.randn(2, GRID.size, 4).double()
    weight = pattern.to_dense().double() * torch.as_tensor(GRID.areas).reshape(1, -1)
    mean = (weight / weight.sum(1, keepdim=True)) @ layer.v_proj(x)
    torch.testing.assert_close(layer(x), layer.out_proj(mean), rtol=1e-6, atol=1e-6)


@needs_scipy
@pytest.mark.parametrize("builder", ["window", "radius"])
def test_a_turn_of_longitude_turns_the_output(builder: str) -> None:
    """Over the date line and at both poles; with areas and a bias by distance and bearing."""
    pattern = radius(GRID, 3.5e6)
    knots = 3
    if builder == "window":
        pattern, knots = window(GRID, 3), 0
    layer = build(pattern, 4, 2, scores=Scores(areas=True, knots=knots, norm=True))
    x = torch.randn(2, GRID.size, 4).double()

    def turned(field: Tensor) -> Tensor:
        rolled: Tensor = field.unflatten(1, SHAPE).roll(5, 2).flatten(1, 2)
        return rolled

    torch.testing.assert_close(layer(turned(x)), turned(layer(x)), rtol=1e-4, atol=1e-4)


@needs_scipy
def test_a_learned_bias_starts_without_effect_and_learns() -> None:
    pattern = radius(GRID, 3.5e6)
    torch.manual_seed(0)
    layer = SparseAttention(pattern, 4, 2, scores=Scores(knots=4))
    plain = SparseAttention(pattern, 4, 2)
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(2, GRID.size, 4)
    torch.testing.assert_close(layer(x), plain(x))
    layer(x).square().sum().backward()
    weight = layer.bias.weight
    assert weight is not None
    assert weight.shape == (12, 2)
    assert weight.grad is not None
    assert (weight.grad != 0).any(1).all()


@needs_scipy
def test_the_learned_bias_is_linear_between_its_knots() -> None:
    pattern = radius(GRID, 4e6)
    layer = SparseAttention(pattern, 2, 1, scores=Scores(knots=3))
    weight, distance, bearing = layer.bias.weight, pattern.distance, pattern.bearing
    assert weight is not None
    assert distance is not None
    assert bearing is not None
    with torch.no_grad():
        weight[:3, 0] = torch.tensor([1.0, 5.0, 2.0])  # at 0, half and all of the reach
    bias = layer.bias()
    assert bias is not None
    place = (distance / distance.max()).numpy()
    expected = np.interp(place, [0, 0.5, 1], [1, 5, 2])
    np.testing.assert_allclose(bias.detach().numpy()[:, 0], expected, atol=1e-5)
    with torch.no_grad():
        weight.zero_()
        weight[3:6] = 1  # cosine of the bearing: sources in the north score higher
    north = layer.bias()
    assert north is not None
    away = distance > 0
    torch.testing.assert_close(north[away, 0].detach(), bearing[away].cos())
    assert (north[~away] == 0).all()


@pytest.mark.parametrize("shape", ["one mask", "a mask for each"])
def test_masked_sources_may_hold_anything(shape: str) -> None:
    pattern = window(GRID, 3)
    layer = build(pattern, 4, 2, kv_heads=1)
    x = torch.randn(3, GRID.size, 4).double()
    gen = torch.Generator().manual_seed(0)
    mask = (
        torch.rand(*((GRID.size,) if shape == "one mask" else (3, GRID.size)), generator=gen) < 0.6
    )
    mask[..., :30] = False  # some sites have no source at all
    broken = x.masked_fill(~mask[..., None], torch.nan)
    actual = layer(x, broken, source_mask=mask)
    assert actual.isfinite().all()
    for b in range(3):
        reads = pattern.to_dense().bool() & (mask if mask.dim() == 1 else mask[b])
        alone = build(Pattern.from_dense(reads), 4, 2, kv_heads=1)
        torch.testing.assert_close(actual[b], alone(x[b]))
    none = ~(pattern.to_dense().bool() & mask.reshape(-1, GRID.size)[0]).any(1)
    assert none.any()
    torch.testing.assert_close(actual[0, none], layer.out_proj.bias.expand(int(none.sum()), -1))


@pytest.mark.parametrize("shape", [(72,), (4, 72), (3, 1, 72), (1, 1, 72), (3, 4, 72)])
def test_masks_are_broadcast_over_batch_dimensions(shape: tuple[int, ...]) -> None:
    layer = build(window(GRID, 3), 4, 2)
    x = torch.randn(3, 4, GRID.size, 4).double()
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) < 0.7
    full = mask.expand(3, 4, -1)
    y = layer(x, source_mask=mask)
    for b in range(3):
        torch.testing.assert_close(y[b, 1], layer(x[b, 1], source_mask=full[b, 1]))


def test_nan_at_masked_cells_reaches_no_gradient() -> None:
    """Sites are sources here: what is missing is missing in both roles."""
    layer = build(window(GRID, 3), 4, 2)
    mask = torch.rand(GRID.size, generator=torch.Generator().manual_seed(0)) < 0.7
    x = torch.randn(1, GRID.size, 4).double()
    x[:, ~mask] = torch.nan
    layer(x, source_mask=mask)[:, mask].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@needs_scipy
def test_built_on_meta_and_reset_it_is_as_if_built_here() -> None:
    options: dict[str, Any] = {"scores": Scores(areas=True, knots=3, norm=True), "edge_dim": 2}
    pattern = radius(GRID, 3.5e6)
    torch.manual_seed(0)
    here = SparseAttention(pattern, 4, 2, **options)
    with torch.device("meta"):
        there = SparseAttention(pattern, 4, 2, **options)
    there = there.to_empty(device="cpu")
    for p in there.parameters():
        p.data.fill_(torch.nan)
    torch.manual_seed(0)
    there.reset_parameters()
    x, attr = torch.randn(1, GRID.size, 4), torch.randn(pattern.num_edges, 2)
    assert there(x, edge_attr=attr).isfinite().all()
    assert here.double().bias.log_area.dtype == torch.float64  # type: ignore[union-attr]
    assert there.half().bias.log_area.dtype == torch.float32  # type: ignore[union-attr]


def test_batch_dimensions_are_carried() -> None:
    layer = build(window(GRID, 3), 4, 2)
    x = torch.randn(2, 3, GRID.size, 4).double()
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y[1, 2], layer(x[1, 2]))


def test_edge_features_change_keys_and_values() -> None:
    pattern = random_pattern(5, 5)
    layer = build(pattern, 4, 2, edge_dim=3)
    assert layer.edge_proj is not None
    x, attr = torch.randn(1, 5, 4).double(), torch.randn(pattern.num_edges, 3).double()
    row, col = pattern.rows(), pattern.col.long()
    q = layer.q_proj(x)[0].view(5, 2, 2)[row]
    added = layer.edge_proj(attr).view(-1, 2, 2)
    k, v = (m(x)[0].view(5, 2, 2)[col] + added for m in (layer.k_proj, layer.v_proj))
    score = (q * k).sum(-1) / 2**0.5
    out = torch.zeros(5, 2, 2).double()
    for i in range(5):
        out[i] = (score[row == i].softmax(0)[..., None] * v[row == i]).sum(0)
    torch.testing.assert_close(layer(x, edge_attr=attr)[0], layer.out_proj(out.flatten(1)))


def test_query_key_norm_makes_the_size_of_queries_irrelevant() -> None:
    layer = build(window(GRID, 3), 8, 2, scores=Scores(norm=True))
    with torch.no_grad():
        layer.q_proj.bias.zero_()
    x = torch.randn(1, GRID.size, 8).double()
    before = layer(x)
    with torch.no_grad():
        layer.q_proj.weight.mul_(100)
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-4)


def test_copies_pickles_and_states_hold_the_parameters() -> None:
    layer = build(window(GRID, 3), 4, 2, edge_dim=2, scores=Scores(areas=True, norm=True))
    x, attr = torch.randn(1, GRID.size, 4).double(), torch.randn(len(layer.edges.col), 2).double()
    expected = layer(x, edge_attr=attr)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(x, edge_attr=attr), expected)
    state = layer.state_dict()
    assert sorted(state) == sorted(["_extra_state", *dict(layer.named_parameters())])
    assert state["_extra_state"].numel() == 0  # no index, before edges have moved
    fresh = SparseAttention(layer.pattern, 4, 2, edge_dim=2, scores=layer.scores)
    empty = fresh.to("meta").to_empty(device="cpu").double()
    empty.load_state_dict(state)
    torch.testing.assert_close(empty(x, edge_attr=attr), expected)


def test_compiles_and_exports_without_graph_breaks() -> None:
    layer = build(window(GRID, 3), 4, 2, scores=Scores(areas=True, norm=True), dropout=0.1).eval()
    x = torch.randn(2, GRID.size, 4).double()
    mask = torch.rand(GRID.size) < 0.7
    expected = layer(x, source_mask=mask)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, source_mask=mask), expected)
    loss = compiled(x.requires_grad_()).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(layer(x).sum(), x))
    exported = torch.export.export(layer, (x.detach(),)).module()
    torch.testing.assert_close(exported(x.detach()), layer(x))


def test_autocast_runs_in_bfloat16() -> None:
    layer = SparseAttention(window(GRID, 3), 8, 2, scores=Scores(areas=True, norm=True), edge_dim=2)
    x, attr = torch.randn(1, GRID.size, 8), torch.randn(len(layer.edges.col), 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, edge_attr=attr)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x, edge_attr=attr), rtol=0.05, atol=0.05)


def test_what_does_not_fit_is_named() -> None:
    pattern = random_pattern(5, 7)
    with pytest.raises(OptionError, match=r"`embed_dim` \(=10\) must be .* `num_heads` \(=4\)"):
        SparseAttention(pattern, 10, 4)
    with pytest.raises(OptionError, match=r"`num_heads` \(=4\) must be .* `kv_heads` \(=3\)"):
        SparseAttention(pattern, 8, 4, kv_heads=3)
    with pytest.raises(OptionError, match=r"`dropout` \(=1.0\) must be"):
        SparseAttention(pattern, 8, 4, dropout=1.0)
    with pytest.raises(OptionError, match=r"`dropout` \(='0.1'\) must be at least 0 .* a number"):
        SparseAttention(pattern, 8, 4, dropout="0.1")  # type: ignore[arg-type]
    with pytest.raises(PatternError, match="no grid of sources"):
        SparseAttention(pattern, 8, 4, scores=Scores(areas=True))
    with pytest.raises(PatternError, match=r"no distances .* patterns\.radius"):
        SparseAttention(pattern, 8, 4, scores=Scores(knots=2))
    layer = SparseAttention(pattern, 8, 4)
    with pytest.raises(
        ShapeError, match=r"`source` \[1, 5, 8\] must be .*7 sources.*give `source`"
    ):
        layer(torch.zeros(1, 5, 8))
    with pytest.raises(ShapeError, match=r"`x` \[1, 6, 8\] must be \[..., 5 sites, 8 channels\]"):
        layer(torch.zeros(1, 6, 8), torch.zeros(1, 7, 8))
    with pytest.raises(ShapeError, match="same batch dimensions"):
        layer(torch.zeros(2, 5, 8), torch.zeros(1, 7, 8))
    x, source = torch.zeros(2, 5, 8), torch.zeros(2, 7, 8)
    with pytest.raises(ShapeError, match=r"`edge_attr` \[3, 2\] is given, .* with edge_dim=2"):
        layer(x, source, edge_attr=torch.zeros(3, 2))
    with pytest.raises(ShapeError, match=r"`edge_attr` \(not given\) must be \[\d+ edges, 2 feat"):
        SparseAttention(pattern, 8, 4, edge_dim=2)(x, source)
    for mask in (torch.ones(7), torch.ones(6).bool(), torch.ones(3, 7).bool()):
        with pytest.raises(ShapeError, match=r"`source_mask` \(torch.* must be booleans, true at"):
            layer(x, source, source_mask=mask)
    for given, kind in ((np.ones(7, dtype=bool), "numpy.ndarray"), ([True] * 7, "list")):
        with pytest.raises(ShapeError, match=f"`source_mask` is a {kind}; give a tensor"):
            layer(x, source, source_mask=given)
    with pytest.raises(OptionError, match=r"`scores` is a dict; give scisparse.layers.Scores"):
        SparseAttention(pattern, 8, 4, scores={"norm": True})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"`knots` \(=-1\)"):
        SparseAttention(pattern, 8, 4, scores=Scores(knots=-1))
    with pytest.raises(OptionError, match=r"`edge_dim` \(=-3\)"):
        SparseAttention(pattern, 8, 4, edge_dim=-3)


def test_approximation_is_told_from_a_dense_matrix() -> None:
    q, k, v = torch.randn(3, 2, 40, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    pattern = sliding_window(40, 9)
    weight = torch.einsum("bmhd,bnhd->bhmn", 3 * q, k).softmax(-1)
    dense = torch.einsum("bhmn,bnhd->bmhd", weight, v)
    reads = pattern.to_dense().bool()
    kept = weight * reads
    sparse = torch.einsum("bhmn,bnhd->bmhd", kept / kept.sum(-1, keepdim=True), v)
    found = approximation_error(q, k, v, pattern, scale=3.0)
    assert found.error == pytest.approx(((sparse - dense).norm() / dense.norm()).item())
    assert found.weight == pytest.approx(kept.sum(-1).mean().item())
    with pytest.raises(ShapeError, match=r"pattern's \(40, 40\) sites and sources"):
        approximation_error(q[:, 1:], k, v, pattern)


def test_what_is_not_0_where_attention_to_everything_is_misses_it_by_infinity() -> None:
    pattern = Pattern.from_dense(torch.eye(2).bool())
    nothing, v = torch.zeros(1, 2, 1, 3), torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    assert approximation_error(nothing, nothing, v, pattern) == (math.inf, 0.5)
    assert approximation_error(nothing, nothing, 0 * v, pattern) == (0.0, 0.5)


@pytest.mark.parametrize(("keys", "values"), [(1.0, 1e-4), (100.0, 1.0)])
def test_approximation_in_16_bits_is_that_of_the_same_numbers(keys: float, values: float) -> None:
    # Squares below 6e-8 are 0 in float16, and scores above 65504 infinite.
    q, k, v = torch.randn(3, 1, 40, 2, 4, generator=torch.Generator().manual_seed(0))
    q, k, v = (100 * q).half(), (keys * k).half(), (values * v).half()
    pattern = sliding_window(40, 9)
    exact = approximation_error(q.double(), k.double(), v.double(), pattern)
    with torch.autocast("cpu", torch.bfloat16):
        assert approximation_error(q, k, v, pattern) == pytest.approx(exact, rel=1e-4)


def test_approximation_takes_grouped_keys_and_empty_batches() -> None:
    gen = torch.Generator().manual_seed(0)
    pattern = random_pattern(9, 7)
    q = torch.randn(2, 9, 6, 4, generator=gen).double()
    k, v = (torch.randn(2, 7, 2, width, generator=gen).double() for width in (4, 5))
    spread_k, spread_v = (t.repeat_interleave(3, dim=2) for t in (k, v))
    expected = approximation_error(q, spread_k, spread_v, pattern)
    assert approximation_error(q, k, v, pattern) == pytest.approx(expected)
    assert approximation_error(q[:0], k[:0], v[:0], pattern) == (0.0, 0.0)
    with pytest.raises(ShapeError, match=r"`q` has 6 heads and `k` has 4"):
        approximation_error(q, torch.cat([k, k], 2), torch.cat([v, v], 2), pattern)


def test_neighbours_catch_the_weight_of_smooth_fields_and_not_of_noise() -> None:
    """Keys of a smooth field look alike nearby; random ones do not."""
    place = torch.linspace(0, 6.28, 200)
    smooth = torch.stack([place.sin(), place.cos()], -1).view(1, 200, 1, 2) * 10
    noise = torch.randn(1, 200, 1, 2, generator=torch.Generator().manual_seed(0)) * 10
    pattern = sliding_window(200, 60, periodic=True)
    near = approximation_error(smooth, smooth, smooth, pattern)
    far = approximation_error(noise, noise, noise, pattern)
    assert near.weight > 0.95
    assert near.error < 0.05
    assert far.weight < 0.7
    assert far.error > 0.2
