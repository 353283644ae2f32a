"""What tests of layers share: independent dense forms, random windows, a record of operators."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected
from scisparse.pattern import Pattern
from scisparse.patterns import window

TOLERANCE = 1e-11  # of float64 sums of some hundred terms of order 1

SHAPE = (4, 6)
REGIONS = np.array([7, -2, 7, 7, -2, 9] * 4).reshape(SHAPE)
TIES = [None, "longitude", "all", REGIONS]
MASK = np.ones(SHAPE, dtype=np.bool_)
MASK[0, 1] = MASK[2, 3:] = MASK[3, 3:] = False
needs_scipy = pytest.mark.skipif(
    find_spec("scipy") is None, reason="radius and nearest search with scipy, which is missing"
)
every_tie = pytest.mark.parametrize("tie", TIES, ids=["untied", "longitude", "all", "regions"])


def index_pattern() -> Pattern:
    """3x3 on an index space, closed in longitude."""
    return window(SHAPE, 3, padding_mode=("zeros", "circular"))


def masked_pattern() -> Pattern:
    """3x3 over both poles, cells masked at the pole, at the date line and together."""
    return window(LatLonGrid.regular(*SHAPE).with_mask(MASK), 3)


def no_taps(sites: int = 24) -> Pattern:
    """Every site reads itself and the next one; edges have no taps, sites no place."""
    eye = torch.eye(sites, dtype=torch.bool)
    return Pattern.from_dense(eye | eye.roll(1, 1))


def repeated_pattern() -> Pattern:
    """Replicated ends read one source by several taps; 12 sites."""
    return window(SHAPE, (3, 5), stride=(1, 2), padding_mode="replicate")


def build(pattern: Pattern, tie: Any = None, **options: Any) -> LocallyConnected:
    """Make a layer from 2 to 4 channels, float64, with random weights and biases."""
    layer = LocallyConnected(pattern, 2, 4, tie=tie, **{"dtype": torch.float64, **options})
    randomize(layer)
    return layer


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter, biases too, values of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(values)


def randn(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


# -- a layer as one dense matrix -------------------------------------------------------------------


def edges_of(pattern: Pattern) -> list[tuple[int, int, int]]:
    """Site, source and tap (-1: none) of each edge, in plain Python."""
    start = pattern.row_ptr.tolist()
    rows = [i for i in range(pattern.num_sites) for _ in range(start[i], start[i + 1])]
    taps = [-1] * len(rows) if pattern.tap is None else pattern.tap.tolist()
    return list(zip(rows, pattern.col.tolist(), taps, strict=True))


def tie_keys(layer: LocallyConnected, tie: Any) -> tuple[list[Any], list[Any]]:
    """What edges share weights, and sites biases, worked out apart from `scisparse.tying`."""
    pattern = layer.pattern
    length = 3 if pattern.num_sites == 12 else SHAPE[1]
    labels = None if tie is None or isinstance(tie, str) else np.asarray(tie).ravel()

    def place(site: int) -> Any:
        if tie is None:
            return site
        if labels is not None:
            return labels[site]
        return 0 if tie == "all" else site // length

    edges = edges_of(pattern)
    used = {site for site, _, _ in edges}
    weight_keys = [
        number if tie is None else (place(site), tap) for number, (site, _, tap) in enumerate(edges)
    ]
    return weight_keys, [place(site) if site in used else None for site in range(pattern.num_sites)]


def dense_output(
    layer: LocallyConnected, x: Tensor, weight_keys: Sequence[Any], bias_keys: Sequence[Any]
) -> Tensor:
    """Output by a loop over edges: edges with one key share a weight, sites with one key a bias.

    Weights are numbered by sorted keys; so are biases, but own ones are those of the sites, masked
    or not. A site with bias key ``None`` has none.
    """
    number = {key: t for t, key in enumerate(sorted(set(weight_keys)))}
    used = range(len(bias_keys)) if layer.tie is None else {k for k in bias_keys if k is not None}
    group = {key: g for g, key in enumerate(sorted(used))}
    width_in, width_out = layer.weight.shape[1:]
    columns: list[list[Tensor]] = [
        [x.new_zeros(len(x), width_out) for _ in range(layer.groups)] for _ in bias_keys
    ]
    for (site, source, _), key in zip(edges_of(layer.pattern), weight_keys, strict=True):
        for g in range(layer.groups):
            row = number[key] * layer.groups + g
            if layer.tie is None:
                row = _untied_row(layer, site, g, number[key])
            part = x[:, source, g * width_in : (g + 1) * width_in]
            columns[site][g] = columns[site][g] + part @ layer.weight[row]
    y = torch.stack([torch.cat(groups, 1) for groups in columns], 1)
    if layer.bias is None:
        return y
    rows = [
        torch.zeros_like(layer.bias[0]) if k is None else layer.bias[group[k]] for k in bias_keys
    ]
    return y + torch.stack(rows)


def _untied_row(layer: LocallyConnected, site: int, g: int, edge: int) -> int:
    """Untied weights lie by site, group of channels, source."""
    start, end = layer.pattern.row_ptr.tolist()[site : site + 2]
    return int(start * layer.groups + g * (end - start) + edge - start)


# -- windows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Arguments of a convolution, valid for torch and for us."""

    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Any
    modes: tuple[str, ...]
    groups: int


def random_windows(axes: int, count: int, *, seed: int, one_mode: bool) -> Iterator[Window]:
    """Small random windows; even kernels, wide dilations and kernels wider than the input occur."""
    rng = np.random.default_rng((seed, axes))
    found = 0
    while found < count:
        one = Window(
            input_size=_draw(rng, axes, 1, 7),
            kernel_size=_draw(rng, axes, 1, 4),
            stride=_draw(rng, axes, 1, 3),
            dilation=_draw(rng, axes, 1, 2),
            padding=_padding(rng, axes),
            modes=_modes(rng, axes, one_mode),
            groups=int(rng.choice([1, 1, 2])),
        )
        if one.padding == "same":
            one = Window(**{**vars(one), "stride": (1,) * axes})  # all that torch allows
        if _fits(one):
            found += 1
            yield one


def pads_of(window: Window) -> list[tuple[int, int]]:
    """Points added before and after each axis."""
    axes = len(window.input_size)
    if window.padding == "valid":
        return [(0, 0)] * axes
    if window.padding == "same":
        reach = [d * (k - 1) for d, k in zip(window.dilation, window.kernel_size, strict=True)]
        return [(r // 2, r - r // 2) for r in reach]
    padding = window.padding if isinstance(window.padding, tuple) else (window.padding,) * axes
    return [(p, p) for p in padding]


def pad_fields(x: Tensor, window: Window) -> Tensor:
    """Pad ``[B, C, *space]`` by numpy, one axis after the other."""
    names = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}
    padded = x.numpy()
    for axis, (width, mode) in enumerate(zip(pads_of(window), window.modes, strict=True)):
        widths = [(0, 0)] * padded.ndim
        widths[axis + 2] = width
        padded = np.pad(padded, widths, mode=names[mode])  # type: ignore[call-overload]
    return torch.from_numpy(padded)


def weight_from_torch(weight: Tensor, groups: int, *, transposed: bool = False) -> Tensor:
    """Weight of a torch convolution, one matrix a tap and group: ``[K * groups, C / g, O / g]``."""
    first, second = weight.shape[:2]
    blocks = weight.reshape(groups, first // groups, second, -1)
    blocks = blocks.permute(3, 0, 1, 2) if transposed else blocks.permute(3, 0, 2, 1)
    return blocks.reshape(-1, *blocks.shape[2:])


def _draw(rng: np.random.Generator, axes: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(low, high + 1, axes))


def _padding(rng: np.random.Generator, axes: int) -> Any:
    kind = rng.integers(4)
    if kind < 2:
        return ("same", "valid")[kind]
    return int(rng.integers(0, 4)) if kind == 2 else _draw(rng, axes, 0, 3)


def _modes(rng: np.random.Generator, axes: int, one_mode: bool) -> tuple[str, ...]:
    names = ("zeros", "circular", "reflect", "replicate")
    drawn = [names[n] for n in rng.integers(0, 4, axes)]
    return (drawn[0],) * axes if one_mode else tuple(drawn)


def _fits(window: Window) -> bool:
    per_axis = (window.input_size, window.kernel_size, window.dilation)
    pads = pads_of(window)
    for n, k, d, mode, width in zip(*per_axis, window.modes, pads, strict=True):
        limit = {"circular": n, "reflect": n - 1}.get(mode, 9)
        if n + sum(width) <= d * (k - 1) or max(width) > limit:
            return False
    return True


# -- what runs -------------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    """Record of the operators that run: names, and bytes of the largest tensor that each makes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out

    def ran(self, part: str) -> bool:
        """Whether an operator whose name has `part` in it ran."""
        return any(part in name for name in self.names)


def sphere_harmonic(lat: np.ndarray, lon: np.ndarray, degree: int, order: int) -> np.ndarray:
    """Real spherical harmonic of norm 1 on the unit sphere, by recurrence (no scipy needed)."""
    x, m = np.sin(lat), abs(order)
    value = np.ones_like(x)
    for k in range(1, m + 1):
        value = value * (2 * k - 1) * np.cos(lat)
    before = np.zeros_like(x)
    for n in range(m + 1, degree + 1):
        value, before = ((2 * n - 1) * x * value - (n + m - 1) * before) / (n - m), value
    norm = (2 * degree + 1) / (4 * np.pi) * math.factorial(degree - m) / math.factorial(degree + m)
    wave = np.cos(m * lon) if order >= 0 else np.sin(m * lon)
    return np.asarray(np.sqrt(norm * (2 if m else 1)) * value * wave)
