"""Patterns of tokens and of labels equal their definitions, pair by pair; meshes equal theory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from scisparse.errors import GridError, OptionError, PatternError
from scisparse.grids import icosahedral
from scisparse.pattern import Pattern
from scisparse.patterns import (
    axial,
    bigbird,
    blocks,
    constant_fan_in,
    fixed,
    longformer,
    mesh,
    sliding_window,
    strided,
)

Rule = Callable[[int, int], bool]


def assert_rule(pattern: Pattern, rule: Rule) -> None:
    """Every pair (site, source) is an edge exactly when the rule says so."""
    pattern.validate()
    sites, sources = pattern.shape
    expected = [[rule(i, j) for j in range(sources)] for i in range(sites)]
    assert pattern.to_dense().bool().tolist() == expected
    assert pattern.statistics()["duplicates"] == 0


@pytest.mark.parametrize("length", [0, 1, 2, 13])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_sliding_window(length: int, window: int, dilation: int) -> None:
    side = window // 2 * dilation
    assert_rule(
        sliding_window(length, window, dilation=dilation),
        lambda i, j: abs(i - j) <= side and (i - j) % dilation == 0,
    )
    assert_rule(
        sliding_window(length, window, dilation=dilation, causal=True),
        lambda i, j: 0 <= i - j < window * dilation and (i - j) % dilation == 0,
    )


@pytest.mark.parametrize("causal", [False, True])
def test_a_periodic_window_goes_on_at_the_other_end(causal: bool) -> None:
    pattern = sliding_window(9, 5, periodic=True, causal=causal)
    back, forth = (4, 0) if causal else (2, 2)
    assert_rule(pattern, lambda i, j: (i - j) % 9 <= back or (j - i) % 9 <= forth)
    assert pattern.tap is not None
    offset = (pattern.col.long() - pattern.rows() + back) % 9
    assert torch.equal(pattern.tap.long(), offset)
    with pytest.raises(
        OptionError, match=r"meets itself on 4 tokens; make `window` \(=5\) smaller"
    ):
        sliding_window(4, 5, periodic=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "stride"), [(0, 2), (1, 1), (11, 3), (12, 4), (5, 9)])
def test_sparse_transformer(length: int, stride: int, causal: bool) -> None:
    assert_rule(
        strided(length, stride, causal=causal),
        lambda i, j: (abs(i - j) < stride or (i - j) % stride == 0) and not (causal and j > i),
    )
    for summary in {1, stride}:
        assert_rule(
            fixed(length, stride, summary, causal=causal),
            lambda i, j, s=summary: (  # type: ignore[misc]
                (i // stride == j // stride or j % stride >= stride - s) and not (causal and j > i)
            ),
        )


def test_longformer_and_bigbird() -> None:
    chosen = {0, 7}
    near: Rule = lambda i, j: abs(i - j) <= 2 or bool({i, j} & chosen)  # noqa: E731
    assert_rule(longformer(15, 4, [7, 0]), near)
    generator = torch.Generator().manual_seed(0)
    pattern = bigbird(15, 4, 3, [0, 7], generator=generator).validate()
    dense = pattern.to_dense().bool()
    local = longformer(15, 4, [0, 7]).to_dense().bool()
    assert (dense | local).equal(dense)
    extra = (dense & ~local).sum(1)
    assert extra.max() <= 3
    assert extra.sum() > 10
    assert_rule(longformer(6, 1, []), lambda i, j: i == j)


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 4)])
def test_axial(shape: tuple[int, ...]) -> None:
    places = [np.unravel_index(k, shape) for k in range(int(np.prod(shape)))]
    assert_rule(
        axial(shape),
        lambda i, j: sum(a != b for a, b in zip(places[i], places[j], strict=True)) <= 1,
    )


def test_blocks_of_sites_and_sources() -> None:
    gen = torch.Generator().manual_seed(0)
    sites, sources = (torch.randint(-2, 3, (n,), generator=gen) for n in (11, 7))
    assert_rule(blocks(sites, sources), lambda i, j: bool(sites[i] == sources[j]))
    assert_rule(blocks(sites), lambda i, j: bool(sites[i] == sites[j]))
    assert_rule(blocks(sites, sources[:0]), lambda i, j: False)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_a_mesh_joins_the_ends_of_the_sides_of_its_faces(level: int) -> None:
    pattern = mesh(level).validate()
    assert pattern.num_edges == 2 * 30 * 4**level
    fan_in = pattern.fan_in
    assert (fan_in[:12] == 5).all()
    assert (fan_in[12:] == 6).all()
    dense = pattern.to_dense()
    assert torch.equal(dense, dense.T)
    assert pattern.site_grid == icosahedral(level)
    distance = pattern.distance
    assert distance is not None
    # Sides are about as long as the icosahedron's, 7054 km, halved at each cut.
    assert 0.8 < distance.min() * 2**level / 7.054e6 <= 1.0 + 1e-3
    assert 1.0 - 1e-3 <= distance.max() * 2**level / 7.054e6 < 1.3


def test_a_multi_mesh_holds_the_edges_of_every_scale() -> None:
    pattern = mesh(4, multiscale=True, include_self=True).validate()
    assert pattern.num_edges == 2 * 10 * (4**5 - 1) + 10 * 4**4 + 2
    dense = pattern.to_dense().bool()
    for level in range(5):
        size = 10 * 4**level + 2
        coarse = mesh(level).to_dense().bool()
        assert (dense[:size, :size] | coarse).equal(dense[:size, :size])
    with pytest.raises(GridError, match=r"`level` \(=11\)"):
        mesh(11)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(OptionError, match=r"`window` \(=0\) must be at least 1"):
        sliding_window(5, 0)
    with pytest.raises(OptionError, match=r"`length` \(=2.5\) must be an integer"):
        sliding_window(2.5, 1)  # type: ignore[arg-type]
    with pytest.raises(
        OptionError, match=r"`summary` \(=4\) must lie between 1 and `stride` \(=3\)"
    ):
        fixed(9, 3, 4)
    with pytest.raises(OptionError, match=r"`global_tokens` \[0, 9\] must lie between 0 and 8"):
        longformer(9, 3, [0, 9])
    for tokens in (torch.arange(9) < 1, (torch.arange(9) < 1).int(), 5):
        with pytest.raises(OptionError, match=r"`global_tokens` .* are mask\.nonzero\(\)"):
            longformer(9, 3, tokens)  # type: ignore[arg-type]
    for count in (10, -1):
        with pytest.raises(OptionError, match=rf"`num_random` \(={count}\) must "):
            bigbird(9, 3, count)
    with pytest.raises(OptionError, match=r"`num_random` \(=2.5\) must be an integer"):
        bigbird(9, 3, 2.5)  # type: ignore[arg-type]
    for counts in ((2.0, 8, 3), (5, 8.0, 3), (5, 8, 2.5)):
        with pytest.raises(PatternError, match=r"` \(=.*\) must be an integer"):
            constant_fan_in(*counts)
    with pytest.raises(OptionError, match=r"`labels` \(torch.float32 \[3\]\) must be integers"):
        blocks(torch.zeros(3))
    with pytest.raises(OptionError, match=r"`source_labels` is a list; .* torch.as_tensor\(sour"):
        blocks(torch.zeros(3).long(), [0, 0, 1])  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="must have one axis at least"):
        axial(())
    for shape in (5, (4, 2.5)):
        with pytest.raises(OptionError, match=r"`shape` \(=.*5\)* must be integers, one for each"):
            axial(shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_coverage_counts_the_pairs_within_some_hops(hops: int) -> None:
    pattern = bigbird(23, 3, 1, generator=torch.Generator().manual_seed(0))
    dense = pattern.to_dense().double()
    joined = sum(torch.linalg.matrix_power(dense, n) for n in range(1, hops + 1)) > 0
    assert pattern.coverage(hops, samples=1000) == pytest.approx(joined.double().mean().item())
    # Two steps of a strided pattern, and of one with a token that all read, join all.
    assert strided(25, 5, causal=False).coverage(2) == longformer(25, 3).coverage(2) == 1.0


def test_coverage_of_samples_and_of_what_cannot_be() -> None:
    ring = sliding_window(1000, 3, periodic=True)
    assert ring.coverage(7, samples=10) == pytest.approx(15 / 1000)
    assert mesh(4, multiscale=True).coverage(4, samples=20) > 5 * mesh(4).coverage(4, samples=20)
    assert Pattern.from_dense(torch.ones(2, 3).bool()).coverage() == 1.0
    assert Pattern.from_dense(torch.ones(0, 3).bool()).coverage() == 0.0
    with pytest.raises(PatternError, match=r"`hops`=2.* needs sites that are sources"):
        Pattern.from_dense(torch.ones(2, 3).bool()).coverage(2)
    with pytest.raises(PatternError, match=r"`hops` \(=0\)"):
        ring.coverage(0)
    with pytest.raises(PatternError, match=r"`hops` \(=2.5\) must be an integer"):
        ring.coverage(2.5)  # type: ignore[arg-type]
    with pytest.raises(PatternError, match=r"`samples` \(=0\) must be at least 1"):
        ring.coverage(2, samples=0)
