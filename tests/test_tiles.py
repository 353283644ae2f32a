"""Tiles of a pattern: how full they are, and the block mask of `flex_attention`."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from kernel_cases import generator
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from scisparse.errors import MemoryLimitError, PatternError
from scisparse.kernels import graph_attention
from scisparse.pattern import Pattern, tiles
from scisparse.patterns import bigbird, longformer, sliding_window, strided, window


def drawn(sites: int, sources: int, density: float, number: int = 0) -> Pattern:
    """Drawn edges, rows and tiles without one, tiles that are full, and one that lacks one edge."""
    dense = torch.rand(sites, sources, generator=generator(number)) < density
    dense[: sites // 2, sources // 3 : 2 * sources // 3] = True
    dense[1, sources // 3 + 1] = False
    dense[sites // 2 : sites // 2 + 3] = False
    dense[3 * sites // 4 :, : sources // 3] = False
    return Pattern.from_dense(dense)


EMPTY = Pattern.from_dense(torch.zeros(5, 7, dtype=torch.bool))
REPEATED = window((6, 5), 3, padding=1, padding_mode="reflect")


@pytest.mark.parametrize("tile", [1, 3, 8, 16, 64, (5, 2), (100, 3)])
@pytest.mark.parametrize("pattern", [drawn(33, 50, 0.02), drawn(64, 32, 0.1, 1), REPEATED, EMPTY])
def test_occupancy_is_that_of_the_dense_mask(pattern: Pattern, tile: int | tuple[int, int]) -> None:
    height, width = (tile, tile) if isinstance(tile, int) else tile
    dense = pattern.to_dense()
    parts = [part for rows in dense.split(height) for part in rows.split(width, 1)]
    held = [part for part in parts if part.any()]
    found = pattern.tile_occupancy(tile)
    down = math.ceil(pattern.num_sites / height)
    assert found.tiles == pytest.approx(len(held) / len(parts))
    assert found.per_row == pytest.approx(len(held) / down)
    size = sum(part.numel() for part in held)
    assert found.filled == pytest.approx(int(dense.sum()) / size if held else 0.0)


def test_occupancy_of_what_has_no_tiles() -> None:
    assert Pattern.from_dense(torch.zeros(0, 3).bool()).tile_occupancy() == (0.0, 0.0, 0.0)
    assert Pattern.from_dense(torch.ones(3, 4).bool()).tile_occupancy() == (1.0, 1.0, 1.0)


def test_order_brings_edges_together() -> None:
    pattern = sliding_window(512, 17)
    mixed = pattern.reorder(torch.randperm(512, generator=generator()))
    before, after = mixed.tile_occupancy(32), pattern.tile_occupancy(32)
    assert after.tiles < 0.25 * before.tiles
    assert after.filled > 4 * before.filled


@pytest.mark.parametrize("block", [16, 24, (8, 20), 128])
@pytest.mark.parametrize("pattern", [drawn(33, 50, 0.02), drawn(96, 48, 0.1, 1), EMPTY])
def test_block_mask_is_the_one_that_torch_builds_from_the_dense_mask(
    pattern: Pattern, block: int | tuple[int, int]
) -> None:
    dense, (sites, sources) = pattern.to_dense(), pattern.shape
    mask = pattern.to_block_mask(block)
    assert torch.equal(create_mask(mask.mask_mod, 1, 1, sites, sources, "cpu")[0, 0], dense)
    expected = create_block_mask(
        lambda b, h, i, j: dense[i, j], 1, 1, sites, sources, "cpu", BLOCK_SIZE=block
    )
    assert mask.shape == expected.shape
    assert mask.BLOCK_SIZE == expected.BLOCK_SIZE
    for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"):
        for kind in (name, f"full_{name}"):
            found, wanted = getattr(mask, kind), getattr(expected, kind)
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted), kind
    if block == 16 and pattern.num_sites == 96:
        assert mask.full_kv_num_blocks is not None
        assert int(mask.full_kv_num_blocks.sum()) > 0  # both kinds of blocks were compared
        assert int(mask.kv_num_blocks.sum()) > 0


ATTENDED = {
    "window": sliding_window(150, 9, causal=True),
    "longformer": longformer(140, 7, [0, 77]),
    "bigbird": bigbird(200, 5, 3, generator=generator(1)),
    "strided": strided(131, 11),
    "empty rows": drawn(137, 203, 0.03),
    "no edges": Pattern.from_dense(torch.zeros(5, 129).bool()),
}


# Without torch.compile it says that it is slow.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ATTENDED)
def test_flex_attention_gives_what_graph_attention_gives(name: str) -> None:
    pattern, gen = ATTENDED[name], generator(3)
    sites, sources = pattern.shape
    q = torch.randn(2, sites, 3, 8, generator=gen)
    k, v = torch.randn(2, 2, sources, 3, 8, generator=gen)

    def flex(pattern: Pattern, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = flex_attention(q, k, v, block_mask=pattern.to_block_mask())
        assert isinstance(y, Tensor)
        return y.transpose(1, 2)

    expected = graph_attention(q, k, v, pattern.row_ptr, pattern.col)
    y = flex(pattern, q, k, v)
    assert not y[:, pattern.fan_in == 0].any()  # 0, not NaN
    torch.testing.assert_close(y, expected, atol=2e-6, rtol=2e-6)
    rows, columns = (torch.randperm(n, generator=gen) for n in (sites, sources))
    y = flex(pattern.reorder(rows, columns), q[:, rows], k[:, columns], v[:, columns])
    torch.testing.assert_close(y, expected[:, rows], atol=2e-6, rtol=2e-6)


# Inductor imports what torch itself calls deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.skipif(
    shutil.which("g++") is None or "AVX" not in torch.backends.cpu.get_cpu_capability(),
    reason="compiled flex_attention needs a C++ compiler and AVX2",
)
def test_compiled_flex_attention_takes_the_mask() -> None:
    """Full, partial and empty tiles; sites without edges; sizes that blocks do not divide."""
    dense = torch.rand(150, 203, generator=generator(5)) < 0.05
    dense[:128, :128] = True
    dense[128:140] = False
    pattern = Pattern.from_dense(dense)
    q = torch.randn(1, 2, 150, 16, generator=generator(6))
    k, v = torch.randn(2, 1, 2, 203, 16, generator=generator(7))
    compiled = torch.compile(flex_attention, dynamic=False)
    y = compiled(q, k, v, block_mask=pattern.to_block_mask())
    sites, sources = (q.transpose(1, 2), (k.transpose(1, 2), v.transpose(1, 2)))
    expected = graph_attention(sites, *sources, pattern.row_ptr, pattern.col)
    torch.testing.assert_close(y.transpose(1, 2), expected, atol=2e-6, rtol=2e-6)


def test_what_has_no_block_mask_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PatternError, match=r"each pair once, but site \d+ reads source \d+ by"):
        REPEATED.to_block_mask()
    with pytest.raises(PatternError, match="must have sites and sources"):
        Pattern.from_dense(torch.zeros(0, 3).bool()).to_block_mask()
    with pytest.raises(PatternError, match=r"`block_size` \(=0\) must be a positive integer"):
        EMPTY.to_block_mask(0)
    with pytest.raises(PatternError, match=r"`tile` \(=\(3, 2.0\)\) must be a positive integer"):
        EMPTY.tile_occupancy((3, 2.0))  # type: ignore[arg-type]
    monkeypatch.setattr(tiles, "_LARGEST_BITS", 100)
    with pytest.raises(MemoryLimitError, match=r"makes \d+ partial tiles, whose bits take"):
        drawn(33, 50, 0.1).to_block_mask(16)
