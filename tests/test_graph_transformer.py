"""`GraphTransformer` equals torch-geometric's `TransformerConv` with the same weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.layers import GraphTransformer, PatternEdges
from scisparse.pattern import Pattern

geometric = pytest.importorskip("torch_geometric.nn")

OPTIONS: list[dict[str, Any]] = [
    {},
    {"heads": 3, "edge_dim": 4},
    {"heads": 2, "concat": False, "beta": True},
    {"heads": 2, "beta": True, "edge_dim": 2},
    {"heads": 4, "root_weight": False, "bias": False, "edge_dim": 1},
]


def graph(sources: int, sites: int, seed: int = 0) -> torch.Tensor:
    """Random edges in no order, some of them twice; the last site has none."""
    gen = torch.Generator().manual_seed(seed)
    source = torch.randint(sources, (40,), generator=gen)
    site = torch.randint(sites - 1, (40,), generator=gen)
    edges = torch.stack([source, site])
    return torch.cat([edges, edges[:, :3]], 1)


@pytest.mark.parametrize("pair", [False, True], ids=["one kind of node", "two kinds"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_torch_geometric(options: dict[str, Any], pair: bool) -> None:
    torch.manual_seed(0)
    channels = (5, 6) if pair else 5
    theirs = geometric.TransformerConv(channels, 4, **options).double()
    ours = GraphTransformer(channels, 4, **options).double()
    ours.load_state_dict(theirs.state_dict())
    sources = torch.randn(9, 5).double().requires_grad_()
    sites = torch.randn(8, 6).double().requires_grad_() if pair else sources
    edge_index = graph(len(sources), len(sites))
    edge_dim = options.get("edge_dim")
    attr = torch.randn(43, edge_dim).double().requires_grad_() if edge_dim else None
    x = (sources, sites) if pair else sources
    y, (same, weights) = ours(x, edge_index, attr, True)
    expected, (_, expected_weights) = theirs(x, edge_index, attr, True)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(weights, expected_weights)
    assert same is edge_index
    inputs = [t for t in (sources, *([sites] if pair else []), attr) if t is not None]
    grad = torch.randn_like(y)
    named = {n: p for n, p in ours.named_parameters() if ours.root_weight or "skip" not in n}
    mirror = dict(theirs.named_parameters())
    actual = torch.autograd.grad(y, [*inputs, *named.values()], grad)
    truth = torch.autograd.grad(expected, [*inputs, *(mirror[n] for n in named)], grad)
    for a, b in zip(actual, truth, strict=True):
        torch.testing.assert_close(a, b)


def test_a_changed_graph_is_sorted_anew() -> None:
    layer = GraphTransformer(3, 2)
    x, edge_index = torch.randn(6, 3), graph(6, 6)
    first = layer(x, edge_index)
    torch.testing.assert_close(layer(x, edge_index), first)
    with torch.no_grad():
        edge_index[0] = (edge_index[0] + 1) % 6
    changed = layer(x, edge_index)
    torch.testing.assert_close(changed, layer(x, edge_index.clone()))
    assert not torch.allclose(changed, first)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(x, edge_index), changed)


def test_edges_of_a_pattern_are_taken_as_they_are() -> None:
    dense = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    pattern = Pattern.from_dense(dense)
    layer = GraphTransformer(3, 2, heads=2, edge_dim=2)
    x = (torch.randn(7, 3), torch.randn(5, 3))
    attr = torch.randn(pattern.num_edges, 2)
    edges = PatternEdges(pattern)
    edge_index = torch.stack([pattern.col.long(), pattern.rows()])
    torch.testing.assert_close(layer(x, edges, attr), layer(x, edge_index, attr))
    with pytest.raises(
        PatternError, match=r"pattern of \(5, 7\) sites x sources; `x` has \(6, 7\)"
    ):
        layer((torch.randn(7, 3), torch.randn(6, 3)), edges, attr)


def test_compiles_without_graph_breaks_and_checks_its_graph() -> None:
    layer = GraphTransformer(3, 2, heads=2)
    x, edge_index = torch.randn(6, 3), graph(6, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, edge_index), layer(x, edge_index))
    edge_index[0, 0] = 99_999_999
    with pytest.raises(RuntimeError, match="names a source or a site that `x` has not"):
        compiled(x, edge_index)


def test_runs_in_inference_mode_and_resets() -> None:
    layer = GraphTransformer(3, 2)
    x = torch.randn(6, 3)
    with torch.inference_mode():
        edge_index = graph(6, 6)
        y = layer(x, edge_index)
    torch.testing.assert_close(y, layer(x, graph(6, 6)).detach())
    layer.reset_parameters()
    assert not torch.allclose(y, layer(x, graph(6, 6)))


def test_a_graph_whose_memory_was_exchanged_is_sorted_anew() -> None:
    layer = GraphTransformer(3, 2)
    x, edge_index = torch.randn(6, 3), graph(6, 6)
    layer(x, edge_index)
    edge_index.data = graph(6, 6, seed=1)
    torch.testing.assert_close(layer(x, edge_index), layer(x, graph(6, 6, seed=1)))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(OptionError, match=r"`heads` \(=0\)"):
        GraphTransformer(3, 2, heads=0)
    layer, x, edge_index = GraphTransformer(3, 2, edge_dim=2), torch.randn(6, 3), graph(6, 6)
    with pytest.raises(ShapeError, match=r"`edge_attr` \(not given\) must be \[43 edges, 2 feat"):
        layer(x, edge_index)
    with pytest.raises(
        ShapeError, match=r"`edge_index` is a list; give int64 \[2, E\], or PatternE"
    ):
        layer(x, [[0], [1]], torch.zeros(1, 2))
    with pytest.raises(ShapeError, match=r"`x` \(\[1, 6, 3\]\) must be nodes \[N, channels\]"):
        layer(x[None], edge_index, torch.zeros(43, 2))
    with pytest.raises(ShapeError, match=r"`edge_index` is torch.sparse_coo; give its int64"):
        layer(x, torch.eye(6).to_sparse(), torch.zeros(6, 2))
    with pytest.raises(ShapeError, match=r"`edge_index` \(torch.int32"):
        layer(x, edge_index.int(), torch.zeros(43, 2))
    with pytest.raises(PatternError, match=r"runs from 0 to .* there are 4 sources and 4 sites"):
        layer(x[:4], edge_index, torch.zeros(43, 2))
