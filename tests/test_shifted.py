"""Shifted windows: who reads whom by definition, and a bias that knows the earth."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from attention_cases import assert_transforms_work
from torch import Tensor, nn

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.layers import Scores, ShiftedWindowAttention, SparseAttention
from scisparse.patterns import shifted_window

# Sizes, windows, shifts, periodic axes and earth-specific ones (None: those not periodic).
Case = tuple[tuple[int, ...], tuple[int, ...], Any, Any, Any]
CASES: dict[str, Case] = {
    "line, whole windows": ((6,), (3,), 0, False, None),
    "line, shift past a rest": ((8,), (3,), 2, False, None),
    "ring, offsets alone": ((8,), (4,), 1, True, None),
    "ring, earth-specific": ((6,), (2,), 1, True, True),
    "Pangu": ((6, 8), (2, 4), True, (False, True), None),
    "Pangu, rows left over": ((5, 6), (2, 3), (1, 2), (False, True), None),
    "Swin": ((5, 7), (3, 2), True, False, False),
    "Swin without shift, whole": ((4, 6), (2, 3), False, False, False),
    "latitude alone": ((4, 7), (2, 3), (1, 1), False, (True, False)),
    "periodic first, all windows alike": ((6, 4), (3, 2), (1, 0), (True, False), False),
    "Pangu in 3-D": ((3, 4, 6), (2, 2, 3), (1, 1, 1), (False, False, True), None),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def along(
    size: int, window: int, shift: int, periodic: bool, earth: bool, i: int, j: int
) -> int | None:
    """Tap of cell i reading cell j on one axis, by the definition; None where it does not."""
    count = (size + window - 1) // window

    def placed(cell: int) -> tuple[int, int, bool]:
        """Window, place in it, and whether the cell was carried over the end."""
        number, place = divmod(cell - shift, window)
        return (number if number >= 0 else count - 1), place, number < 0

    (a, s, over_i), (b, r, over_j) = placed(i), placed(j)
    if a != b or (over_i != over_j and not periodic):
        return None
    return (a * window + s) * window + r if earth else r - s + window - 1


def build(case: Case, channels: int = 6, heads: int = 2) -> ShiftedWindowAttention:
    size, window, shift, periodic, earth = case
    layer = ShiftedWindowAttention(
        *(channels, heads, window),
        input_size=size,
        shift=shift,
        periodic=periodic,
        earth_specific=earth,
    ).double()
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen) * 0.5)
    return layer


def truth(case: Case) -> tuple[Tensor, int]:
    """Taps ``[M, M]``, -1 where a cell is not read, and how many there can be, with loops."""
    size, window, shift, periodic, earth = case
    axes = len(size)
    if isinstance(shift, bool):
        shift = [w // 2 * shift * (n > w) for n, w in zip(size, window, strict=True)]
    shift = [shift] * axes if isinstance(shift, int) else shift
    periodic = [periodic] * axes if isinstance(periodic, bool) else periodic
    earth = [earth] * axes if isinstance(earth, bool) else earth or [not p for p in periodic]
    counts = [
        -(-n // w) * w * w if e else 2 * w - 1 for n, w, e in zip(size, window, earth, strict=True)
    ]
    cells = list(itertools.product(*map(range, size)))
    taps = torch.full((len(cells), len(cells)), -1)
    for (row, i), (col, j) in itertools.product(enumerate(cells), repeat=2):
        each = map(along, size, window, shift, periodic, earth, i, j)
        entries = [entry for entry in each if entry is not None]
        if len(entries) == axes:
            tap = 0
            for count, entry in zip(counts, entries, strict=True):
                tap = tap * count + entry
            taps[row, col] = tap
    return taps, int(torch.tensor(counts).prod())


def dense(layer: ShiftedWindowAttention, taps: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of all to all, ``[B, M, C]``, with -infinity where there is no tap."""
    heads, batch = layer.num_heads, len(x)
    q, k, v = (
        map_(x).view(batch, x.shape[1], heads, -1).transpose(1, 2)
        for map_ in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    score = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    score = score + layer.bias.tap_weight[taps.clamp(min=0)].permute(2, 0, 1)
    read = (taps >= 0).expand(batch, -1, -1)
    if mask is not None:
        read = read & mask[:, None, :]
    score = score.masked_fill(~read[:, None], -1e30)
    y = (score.softmax(-1) @ v).transpose(1, 2).flatten(2)
    out: Tensor = layer.out_proj(y.masked_fill(~read.any(-1, keepdim=True), 0))
    return out


@every_case
def test_edges_and_taps_are_those_of_the_definition(case: Case) -> None:
    size, window, shift, periodic, earth = case
    pattern = shifted_window(
        size, window, shift=shift, periodic=periodic, earth_specific=earth
    ).validate()
    taps, count = truth(case)
    found = torch.full_like(taps, -1)
    assert pattern.tap is not None
    found[pattern.rows(), pattern.col.long()] = pattern.tap.long()
    assert torch.equal(found, taps)
    assert pattern.num_taps == count


@every_case
@pytest.mark.parametrize("masked", [False, True])
def test_layer_equals_dense_attention_and_the_pattern(case: Case, masked: bool) -> None:
    """Output, and gradients of the input and of every parameter."""
    layer, size = build(case), case[0]
    taps, _ = truth(case)
    x = torch.randn(2, *size, 6).double().requires_grad_()
    mask = None
    if masked:
        mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(1)) < 0.4
    flat = x.flatten(1, -2)
    flat_mask = None if mask is None else mask.flatten(1)
    if flat_mask is not None:
        flat = flat.masked_fill(~flat_mask[..., None], 0)
    expected = dense(layer, taps, flat, flat_mask).view(x.shape)
    y = layer(x, source_mask=mask)
    torch.testing.assert_close(y, expected)
    pull, wrt = torch.randn_like(y), [x, *layer.parameters()]
    ours, theirs = (torch.autograd.grad(out, wrt, pull) for out in (y, expected))
    torch.testing.assert_close(ours, theirs)

    pattern = shifted_window(size, case[1], shift=case[2], periodic=case[3], earth_specific=case[4])
    plain = SparseAttention(pattern, 6, 2, scores=Scores(taps=True)).double()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(y, plain(x.flatten(1, -2), source_mask=flat_mask).view(x.shape))


def test_states_of_moved_edges_are_refused() -> None:
    layer = build(CASES["Pangu"])
    kept = {name: value.clone() for name, value in layer.state_dict().items()}
    pattern = shifted_window((6, 8), (2, 4), shift=True, periodic=(False, True))
    plain = SparseAttention(pattern, 6, 2, scores=Scores(taps=True)).double()
    layer.load_state_dict(plain.state_dict())
    assert not torch.equal(layer.q_proj.weight, kept["q_proj.weight"])
    mask = torch.ones(48, dtype=torch.bool)
    mask[5] = False
    plain.rewire(pattern.restrict(source_mask=mask))
    with pytest.raises(PatternError, match=r"edges that were moved, .*; load it into SparseAtt"):
        layer.load_state_dict(plain.state_dict())


def test_bias_has_the_shape_of_pangu() -> None:
    """1.5 degrees, 8 levels, windows of 2 x 6 x 12: a table of 3312 numbers for each of 124."""
    layer = ShiftedWindowAttention(
        *(12, 6, (2, 6, 12)), input_size=(8, 181, 360), shift=True, periodic=(False, False, True)
    )
    types, positions = (8 // 2) * (186 // 6), 2**2 * 6**2 * (2 * 12 - 1)
    assert (types, positions) == (124, 3312)
    assert layer.bias.tap_weight.shape == (types * positions, 6)
    swin = ShiftedWindowAttention(12, 6, 7, input_size=(56, 56), shift=True, earth_specific=False)
    assert swin.bias.tap_weight.shape == (13 * 13, 6)


@pytest.mark.parametrize("shift", [False, True])
def test_a_turn_of_longitude_by_a_window_turns_the_output(shift: bool) -> None:
    layer = build(((6, 12), (2, 4), shift, (False, True), None))
    x = torch.randn(2, 6, 12, 6).double()
    torch.testing.assert_close(layer(x.roll(4, 2)), layer(x).roll(4, 2))
    # The bias tells latitudes apart, and windows are not those of other longitudes.
    assert not torch.allclose(layer(x.roll(2, 1)), layer(x).roll(2, 1))
    assert not torch.allclose(layer(x.roll(1, 2)), layer(x).roll(1, 2))


def test_the_date_line_is_crossed_and_the_poles_are_not() -> None:
    """Of the corner in the north-west: with a shift it reads to the east end, not to the south."""
    x = torch.randn(1, 6, 12, 6).double().requires_grad_()
    for shift, rows, columns in ((False, {0, 1}, {0, 1, 2, 3}), (True, {0}, {0, 1, 10, 11})):
        layer = build(((6, 12), (2, 4), shift, (False, True), None))
        (slope,) = torch.autograd.grad(layer(x)[0, 0, 0].sum(), x)
        read = slope[0].abs().sum(-1).nonzero()
        assert set(map(tuple, read.tolist())) == set(itertools.product(rows, columns))


def test_each_earth_specific_number_is_that_of_its_latitudes() -> None:
    """Queries and keys of 0: one number of the table makes one row of windows read one cell."""
    layer = ShiftedWindowAttention(1, 1, (2, 4), input_size=(6, 8), periodic=(False, True))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for map_ in (layer.v_proj, layer.out_proj):
            map_.weight.fill_(1)
        # Window 1 of latitude, its second row reads its first, two longitudes to the east.
        layer.bias.tap_weight.view(3, 2, 2, 7)[1, 1, 0, 2 + 3] = 1e4
    x = torch.randn(1, 6, 8, 1)
    y = layer(x)
    mean = x.view(1, 3, 2, 2, 4, 1).mean((2, 4), keepdim=True).expand(1, 3, 2, 2, 4, 1)
    expected = mean.reshape(x.shape).clone()
    for column in (0, 1, 4, 5):  # the others' source lies in the next window
        expected[0, 3, column] = x[0, 2, column + 2]
    torch.testing.assert_close(y, expected)


def test_masked_cells_may_hold_anything() -> None:
    layer = build(((5, 6), (2, 3), True, (False, True), None))
    x = torch.randn(2, 5, 6, 6).double()
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[1:3] = False  # windows without any source
    broken = x.masked_fill(~mask[..., None], torch.nan)
    y = layer(broken, source_mask=mask)
    torch.testing.assert_close(y, layer(x, source_mask=mask.expand(2, -1, -1)))
    torch.testing.assert_close(y[:, 1:3], layer.out_proj.bias.expand(2, 2, 6, -1))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    with torch.no_grad():  # torch's fused kernel
        torch.testing.assert_close(layer(broken, source_mask=mask), y)


def test_no_kernel_is_asked_for_the_softmax_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused kernels differ in it; here is one that gives NaN."""
    layer = build(CASES["Pangu, rows left over"])
    x, mask = torch.randn(1, 5, 6, 6).double(), torch.zeros(5, 6).bool()
    mask[4, 5] = True
    expected = layer(x, source_mask=mask)

    def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
        assert not dropout
        weight: Tensor = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
        return weight @ v

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", plain)
    torch.testing.assert_close(layer(x, source_mask=mask), expected)
    layer(x, source_mask=mask).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_first_and_second_derivatives() -> None:
    layer = build(((3, 4), (2, 2), (1, 1), (False, True), None), channels=2)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]]).bool()
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        out: Tensor = torch.func.functional_call(layer, given, (x,), {"source_mask": mask})
        return out

    x = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of torch's own rules
@pytest.mark.filterwarnings("ignore:There is a performance drop.*unfold_backward")
def test_transforms_of_torch_func_work() -> None:
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    assert_transforms_work(build(((3, 4), (2, 2), (1, 1), (False, True), None), channels=2), x)


def test_copies_pickles_and_states_hold_the_parameters_alone() -> None:
    case = CASES["Pangu, rows left over"]
    layer, x = build(case), torch.randn(2, 5, 6, 6).double()
    expected = layer(x)
    twin, thawed = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    assert state.pop("_extra_state").numel() == 0
    assert sorted(state) == sorted(name for name, _ in layer.named_parameters())
    state["_extra_state"] = layer.get_extra_state()
    with torch.device("meta"):
        options: dict[str, Any] = {"shift": case[2], "periodic": case[3]}
        fresh = ShiftedWindowAttention(6, 2, case[1], input_size=case[0], **options)
    fresh = fresh.to_empty(device="cpu").double()
    fresh.reset_parameters()
    assert not fresh.bias.tap_weight.any()
    assert not torch.equal(fresh(x), expected)
    fresh.load_state_dict(state)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    for other in (twin, thawed, fresh):
        torch.testing.assert_close(other(x), expected)
        assert repr(other) == repr(layer)
    assert "window=(2, 3), shift=(1, 2), periodic=(False, True)" in repr(layer)


def test_compiles_and_exports_without_graph_breaks() -> None:
    layer, x = build(CASES["Pangu, rows left over"]), torch.randn(2, 5, 6, 6).double()
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.7
    expected = layer(x, source_mask=mask)
    torch._dynamo.reset()
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, source_mask=mask), expected)
    wrt = [x.requires_grad_(), *layer.parameters()]
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), wrt) for f in (compiled, layer))
    torch.testing.assert_close(ours, theirs)
    batch = torch.export.Dim("batch", min=1, max=64)
    x = x.detach()
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    for inputs in (x, x[:1].expand(5, -1, -1, -1)):
        torch.testing.assert_close(exported.module()(inputs), layer(inputs))


def test_autocast_runs_in_bfloat16() -> None:
    layer = build(CASES["Pangu"]).float()
    x = torch.randn(2, 6, 8, 6)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_batch_dimensions_are_carried(batch: tuple[int, ...]) -> None:
    layer = build(CASES["Pangu, rows left over"])
    x = torch.randn(*batch, 5, 6, 6).double()
    mask = torch.rand(*batch[-1:], 5, 6, generator=torch.Generator().manual_seed(0)) < 0.7
    y = layer(x, source_mask=mask)
    assert y.shape == x.shape
    for parameter in layer.parameters():
        (slope,) = torch.autograd.grad(y.sum(), parameter, retain_graph=True)
        assert bool(slope.any()) == bool(y.numel()) or parameter is layer.k_proj.bias
    if len(batch) == 2:
        torch.testing.assert_close(y[1, 2], layer(x[1, 2], source_mask=mask[2]))


def test_half_a_window_is_shifted_where_there_are_several() -> None:
    layer = ShiftedWindowAttention(4, 2, (2, 7, 5), input_size=(2, 14, 10), shift=True)
    assert [axis.shift for axis in layer.axes] == [0, 3, 2]
    layer = ShiftedWindowAttention(4, 2, 4, input_size=(8, 8), shift=(False, True))
    assert [axis.shift for axis in layer.axes] == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"periodic": (False, True), "window": (6, 11)},
            r"axis 1 of `input_size` is periodic, .* its 72 cells must be whole windows of 11; "
            r"take 66 or 77 cells, or a `window` that divides 72",
        ),
        (
            {"window": (25, 12)},
            r"a window of 25 cells .* into axis 0 of `input_size`, 24 .* most 24",
        ),
        ({"window": (6, 12, 2)}, r"`window` \(=\(6, 12, 2\)\) must be .* each of the 2 axes"),
        ({"window": 0}, r"`window` \(=0\) must be a positive integer"),
        ({"window": 2.0}, r"`window` \(=2.0\) must be a positive integer"),
        ({"shift": (6, 0)}, r"`shift` \(=6\) must lie between 0 and 5, .*window of 6; True for"),
        ({"shift": -1}, r"`shift` \(=-1\) must lie between 0"),
        ({"shift": (1, 2, 3)}, r"`shift` \(=\(1, 2, 3\)\) must be .* each of 2 axes"),
        ({"shift": 0.5}, r"`shift` \(=0.5\) must be an integer"),
        ({"periodic": (True,)}, r"`periodic` \(=\(True,\)\) must be a bool, or one for each of 2"),
        ({"periodic": 1}, r"`periodic` \(=1\) must be a bool"),
        ({"earth_specific": (True, None)}, r"`earth_specific` .* must be a bool, or one for each"),
        ({"input_size": (0, 72)}, r"`input_size` \(=\(0, 72\)\) must name one positive size"),
        ({"input_size": ()}, r"`input_size` \(=\(\)\) must name one positive size"),
        ({"num_heads": 4}, r"`embed_dim` \(=6\) must be a positive multiple of `num_heads` \(=4\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    given = {"num_heads": 2, "window": (6, 12), "input_size": (24, 72), **arguments}
    with pytest.raises(OptionError, match=message):
        ShiftedWindowAttention(6, **given)
    if "num_heads" not in arguments:
        del given["num_heads"]
        with pytest.raises(OptionError, match=message.replace("input_size", "shape")):
            shifted_window(given.pop("input_size"), given.pop("window"), **given)


def test_inputs_that_do_not_fit_are_named() -> None:
    layer: nn.Module = ShiftedWindowAttention(4, 2, 2, input_size=(4, 6))
    for shape in ((1, 6, 4, 4), (4, 6, 3), (6, 4)):
        with pytest.raises(ShapeError, match=r"`x` \[.*\] must be \[..., 4, 6, 4 channels\]"):
            layer(torch.zeros(shape))
    x = torch.zeros(2, 4, 6, 4)
    for mask in (torch.ones(4, 6), torch.ones(6, 4).bool(), torch.ones(3, 4, 6).bool()):
        with pytest.raises(ShapeError, match=r"`source_mask` \(torch.* must be booleans, true at"):
            layer(x, source_mask=mask)
    with pytest.raises(ShapeError, match=r"cells that count, \[4, 6\] or \[2, 4, 6\]"):
        layer(x, source_mask=torch.ones(1, 2, 4, 6).bool())
