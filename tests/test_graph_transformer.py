"""`GraphTransformer` equals torch-geometric's `TransformerConv` with the same weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from scisparse.errors import BackendError, OptionError, PatternError, ShapeError
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


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int32": lambda edge_index: edge_index.int(),
    "COO": lambda edge_index: adjacency(edge_index).coalesce(),
    "CSR": lambda edge_index: adjacency(edge_index).to_sparse_csr(),
}


def adjacency(edge_index: torch.Tensor) -> torch.Tensor:
    """Sparse ``[8 sites, 9 sources]`` with values that mean nothing."""
    values = torch.rand(edge_index.shape[1])
    return torch.sparse_coo_tensor(edge_index.flip(0), values, (8, 9), check_invariants=True)


# Torch says so of every one in that layout, and 2.11 of coalescing.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta state")
@pytest.mark.parametrize("kind", KINDS)
def test_edges_may_be_sparse_or_narrow(kind: str) -> None:
    torch.manual_seed(0)
    theirs = geometric.TransformerConv((5, 6), 4, heads=2, edge_dim=3).double()
    ours = GraphTransformer((5, 6), 4, heads=2, edge_dim=3).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(9, 5).double(), torch.randn(8, 6).double()
    for seed in (0, 1):
        edge_index = KINDS[kind](graph(9, 8, seed))
        count = edge_index.shape[1] if kind == "int32" else edge_index._nnz()
        attr = torch.randn(count, 3).double()
        expected, (_, expected_weights) = theirs(x, edge_index, attr, True)
        for _ in range(2):  # sorted, and kept
            y, (same, weights) = ours(x, edge_index, attr, True)
            assert same is edge_index
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(weights, expected_weights)


def test_sparse_edges_may_be_in_any_order_and_repeated() -> None:
    layer, edge_index, attr = (
        GraphTransformer((5, 6), 4, edge_dim=3),
        graph(9, 8),
        torch.rand(43, 3),
    )
    x = torch.randn(9, 5), torch.randn(8, 6)
    y, (_, weights) = layer(x, adjacency(edge_index), attr, True)
    expected, (_, expected_weights) = layer(x, edge_index, attr, True)
    torch.testing.assert_close((y, weights), (expected, expected_weights))


@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta state")
def test_a_changed_sparse_graph_is_sorted_anew(layout: str) -> None:
    layer = GraphTransformer(3, 2)
    x, adj_t = torch.randn(6, 3), torch.eye(6).to_sparse(layout=getattr(torch, f"sparse_{layout}"))
    first = layer(x, adj_t)
    sources = adj_t._indices()[1] if layout == "coo" else adj_t.col_indices()
    sources.copy_(sources.roll(1))
    changed = layer(x, adj_t)
    torch.testing.assert_close(changed, layer(x, adj_t.clone()))
    assert not torch.allclose(changed, first)


@pytest.mark.parametrize("pair", [False, True], ids=["one kind of node", "two kinds"])
def test_edges_may_name_sites_first(pair: bool) -> None:
    channels = (5, 6) if pair else 5
    theirs = geometric.TransformerConv(channels, 4, heads=2, flow="target_to_source").double()
    ours = GraphTransformer(channels, 4, heads=2, flow="target_to_source").double()
    ours.load_state_dict(theirs.state_dict())
    sources = torch.randn(9, 5).double()
    x = (sources, torch.randn(8, 6).double()) if pair else sources
    edge_index = graph(9, 8).flip(0)
    y, (_, weights) = ours(x, edge_index, None, True)
    expected, (_, expected_weights) = theirs(x, edge_index, None, True)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize("channels", [-1, (-1, -1), (-1, 6)])
def test_channels_may_be_those_of_the_first_call(channels: Any) -> None:
    options: dict[str, Any] = {"heads": 2, "beta": True, "edge_dim": 3}
    pair = isinstance(channels, tuple)
    sources = torch.randn(9, 5)
    x = (sources, torch.randn(8, 6)) if pair else sources
    edge_index, attr = graph(9, 8), torch.randn(43, 3)
    theirs = geometric.TransformerConv(channels, 4, **options)
    ours, late = GraphTransformer(channels, 4, **options), GraphTransformer(channels, 4, **options)
    ours.load_state_dict(theirs.state_dict())  # of weights that are not there yet
    expected = theirs(x, edge_index, attr)
    late(x, edge_index, attr)
    full = GraphTransformer((5, 6) if pair else 5, 4, **options)
    for layer in (ours, late, full):
        layer.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(layer(x, edge_index, attr), expected)
        layer.reset_parameters()
        assert not torch.allclose(layer(x, edge_index, attr), expected)


def test_exports_with_free_nodes_and_edges() -> None:
    layer = GraphTransformer(3, 2, heads=2, edge_dim=2).eval()
    nodes, edges = (torch.export.Dim(name, min=2, max=10**6) for name in ("n", "e"))
    given = torch.randn(6, 3), graph(6, 6), torch.randn(43, 2)
    free = ({0: nodes}, {1: edges}, {0: edges})
    program = torch.export.export(layer, given, dynamic_shapes=free).module()
    for x, edge_index, attr in (given, (torch.randn(9, 3), graph(9, 9)[:, :17], given[2][:17])):
        torch.testing.assert_close(program(x, edge_index, attr), layer(x, edge_index, attr))


def test_exports_with_two_kinds_of_free_nodes() -> None:
    layer = GraphTransformer((3, 4), 2, heads=2).eval()
    sources, sites, edges = (torch.export.Dim(name, min=2, max=10**6) for name in "mne")
    given = (torch.randn(6, 3), torch.randn(7, 4)), graph(6, 7)
    program = torch.export.export(
        layer, given, dynamic_shapes=(({0: sources}, {0: sites}), {1: edges})
    ).module()
    other = (torch.randn(9, 3), torch.randn(5, 4)), graph(9, 5)
    for x, edge_index in (given, other):
        torch.testing.assert_close(program(x, edge_index), layer(x, edge_index))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_traces_are_of_every_graph(mode: Literal["real", "fake", "symbolic"]) -> None:
    layer = GraphTransformer(3, 2, heads=2)
    x, edge_index = torch.randn(6, 3), graph(6, 6)
    layer(x, edge_index)  # what is kept of it must not be written into the trace
    traced = make_fx(layer, tracing_mode=mode, _allow_non_fake_inputs=True)(x, edge_index)
    for other in (edge_index, graph(6, 6, seed=1)):
        torch.testing.assert_close(traced(x, other), layer(x, other))
    with pytest.raises(RuntimeError, match="names a source or a site that `x` has not"):
        traced(x, edge_index + 9)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # of torch itself
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # checks of shapes are fixed
@pytest.mark.parametrize("sorted_before", [False, True])
def test_a_script_traces_the_sorting_of_edges_and_not_one_graph(sorted_before: bool) -> None:
    layer = GraphTransformer(3, 2, heads=2)
    x, edge_index = torch.randn(6, 3), graph(6, 6)
    if sorted_before:
        layer(x, edge_index)
    traced = torch.jit.trace(layer, (x, edge_index))
    for nodes, edges in ((6, graph(6, 6, seed=1)), (9, graph(9, 9)), (6, edge_index[:, :5])):
        x = torch.randn(nodes, 3)
        torch.testing.assert_close(traced(x, edges), layer(x, edges))


def test_runs_on_fake_tensors() -> None:
    with FakeTensorMode():
        layer = GraphTransformer(3, 2, heads=2)
        x, edge_index = torch.randn(6, 3), torch.zeros(2, 43, dtype=torch.int64)
        assert layer(x, edge_index).shape == (6, 4)


def test_nodes_may_be_mapped_and_edges_not() -> None:
    layer = GraphTransformer(3, 2, heads=2)
    x, edge_index = torch.randn(4, 6, 3), graph(6, 6)
    mapped = torch.vmap(layer, (0, None))(x, edge_index)
    torch.testing.assert_close(mapped, torch.stack([layer(each, edge_index) for each in x]))
    with pytest.raises(BackendError, match=r"`edge_index` is mapped by torch.vmap, .*side by side"):
        torch.vmap(layer)(x, edge_index.expand(4, -1, -1))


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


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")  # of torch itself
def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(OptionError, match=r"`heads` \(=0\)"):
        GraphTransformer(3, 2, heads=0)
    layer, x, edge_index = GraphTransformer(3, 2, edge_dim=2), torch.randn(6, 3), graph(6, 6)
    with pytest.raises(OptionError, match=r"`edge_dim` \(=-1\) must be at least 0"):
        GraphTransformer(8, 4, edge_dim=-1)
    with pytest.raises(ShapeError, match=r"`edge_attr` \(not given\) must be \[43 edges, 2 feat"):
        layer(x, edge_index)
    with pytest.raises(
        ShapeError, match=r"`edge_index` is a list; give integers \[2, E\], or PatternE"
    ):
        layer(x, [[0], [1]], torch.zeros(1, 2))
    with pytest.raises(ShapeError, match=r"`x` \(\[1, 6, 3\]\) must be nodes \[N, channels\]"):
        layer(x[None], edge_index, torch.zeros(43, 2))
    with pytest.raises(ShapeError, match=r"`edge_index` is torch.sparse_bsr; give integers"):
        layer(x, torch.eye(6).to_sparse_bsr((2, 2)), torch.zeros(6, 2))
    with pytest.raises(PatternError, match=r"sparse_coo \[5, 6\]\) must be sites x .* \(6, 6\);"):
        layer(x, torch.ones(5, 6).to_sparse(), torch.zeros(30, 2))
    with pytest.raises(ShapeError, match=r"`edge_index` \(torch.float32 \[2, 43\]\) must be int32"):
        layer(x, edge_index.float(), torch.zeros(43, 2))
    with pytest.raises(OptionError, match=r"`flow` \(='up'\) must be one of 'source_to_target', "):
        GraphTransformer(3, 2, flow="up")
    with pytest.raises(PatternError, match=r"whose rows are sites by themselves; .*transpose"):
        GraphTransformer(3, 2, flow="target_to_source")(x, torch.eye(6).to_sparse())
    with pytest.raises(PatternError, match=r"runs from 0 to .* there are 4 sources and 4 sites"):
        layer(x[:4], edge_index, torch.zeros(43, 2))
