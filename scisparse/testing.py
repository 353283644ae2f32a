"""Invariance asserts, for the tests of your own layers and models.

Each takes any function or module, and raises an ``AssertionError`` that says what differs, by how
much and where. ``tolerance`` is relative to the largest expected value; 0 asks for the same bits.
Seeds are set for each call and restored, so that dropout does not count as a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scisparse.errors import ShapeError
from scisparse.pattern import Pattern
from scisparse.pattern.edges import edge_order

__all__ = [
    "TOLERANCE",
    "assert_batch_independent",
    "assert_deterministic",
    "assert_edge_order",
    "assert_latitude_flip",
    "assert_longitude_roll",
    "assert_same",
    "assert_site_relabelling",
]

#: Default tolerances, relative to the largest expected value.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}

_Field: TypeAlias = Tensor | NDArray[Any]
_OnField: TypeAlias = Callable[[Any], _Field]
# Takes a pattern, sources [..., N, C] and edge values [E, ...]; gives sites [..., M, O].
_OnPattern: TypeAlias = Callable[..., Tensor]


def assert_longitude_roll(
    function: _OnField,
    field: _Field,
    *,
    step: int = 1,
    dim: int = -1,
    tolerance: float | None = None,
) -> None:
    """Assert that a rolled field gives the rolled output: no seam at the date line.

    Parameters
    ----------
    function
        Takes a field, gives a field with as many longitudes.
    field
        Tensor or array, with longitude along `dim`.
    step
        Rolls are by multiples of this many columns: 1, or the coarsest stride inside `function`.
    dim
        Axis of longitude, of input and output.
    tolerance
        See the module; by default by the dtype, :data:`TOLERANCE`.

    Examples
    --------
    >>> import torch
    >>> field = torch.randn(2, 4, 8)
    >>> assert_longitude_roll(lambda x: x - x.roll(1, -1), field)
    >>> assert_longitude_roll(lambda x: x.cumsum(-1), field)
    Traceback (most recent call last):
    ...
    AssertionError: field rolled by 1 columns: ...
    """
    x = _tensor(field)
    halfway = step * (x.shape[dim] // (2 * step))
    expected = _call(function, field, x)
    for shift in dict.fromkeys((step, -step, halfway or step)):
        actual = _call(function, field, x.roll(shift, dim))
        message = f"field rolled by {shift} columns"
        assert_same(actual, expected.roll(shift, dim), tolerance=tolerance, message=message)


def assert_latitude_flip(
    function: _OnField, field: _Field, *, dim: int = -2, tolerance: float | None = None
) -> None:
    """Assert that a field flipped in latitude gives the flipped output.

    Parameters
    ----------
    function
        Takes a field, gives a field with as many latitudes.
    field
        Tensor or array, with latitude along `dim`.
    dim
        Axis of latitude, of input and output.
    tolerance
        See the module; by default by the dtype, :data:`TOLERANCE`.

    Examples
    --------
    >>> import torch
    >>> assert_latitude_flip(torch.sin, torch.randn(2, 4, 8), tolerance=0)
    """
    x = _tensor(field)
    expected = _call(function, field, x).flip(dim)
    actual = _call(function, field, x.flip(dim))
    assert_same(actual, expected, tolerance=tolerance, message="field flipped in latitude")


def assert_batch_independent(
    function: _OnField, batch: _Field, *, dim: int = 0, tolerance: float | None = None
) -> None:
    """Assert that each sample gives the same output alone, and beside samples of NaN.

    Parameters
    ----------
    function
        Takes a batch, gives a batch.
    batch
        Tensor or array of floats, with at least two samples along `dim`.
    dim
        Axis of the samples, of input and output.
    tolerance
        See the module; by default by the dtype, :data:`TOLERANCE`.

    Raises
    ------
    ShapeError
        `batch` has fewer than two samples.

    Examples
    --------
    >>> import torch
    >>> batch = torch.randn(3, 5)
    >>> assert_batch_independent(torch.sin, batch)
    >>> assert_batch_independent(lambda x: x - x.mean(0), batch)
    Traceback (most recent call last):
    ...
    AssertionError: sample 0 alone: ...
    """
    x = _tensor(batch)
    count = x.shape[dim]
    if count < 2:
        raise ShapeError(f"`batch` has {count} samples along dim {dim}; give at least 2")
    expected = _call(function, batch, x)
    for sample in range(count):
        place = torch.tensor([sample], device=x.device)
        wanted = expected.index_select(dim, place.to(expected.device))
        alone = x.index_select(dim, place)
        beside_nan = torch.full_like(x, torch.nan).index_copy(dim, place, alone)
        actual = _call(function, batch, alone)
        assert_same(actual, wanted, tolerance=tolerance, message=f"sample {sample} alone")
        actual = _call(function, batch, beside_nan).index_select(dim, place.to(expected.device))
        message = f"sample {sample} beside samples of NaN"
        assert_same(actual, wanted, tolerance=tolerance, message=message)


def assert_deterministic(function: _OnField, x: _Field, *, repeats: int = 2) -> None:
    """Assert that repeated calls give the same bits: output, gradient, and gradients of parameters.

    Parameters
    ----------
    function
        A function, or a module, whose parameters' gradients are compared too.
    x
        Tensor or array; of an array, the output alone is compared.
    repeats
        Further calls after the first one.

    Examples
    --------
    >>> import torch
    >>> assert_deterministic(torch.nn.Linear(3, 2), torch.randn(4, 3))
    """
    names, expected = _results(function, x)
    for repeat in range(repeats):
        for name, first, again in zip(names, expected, _results(function, x)[1], strict=True):
            message = f"{name} of repeat {repeat + 1}"
            assert_same(again, first, tolerance=0, message=message)


def assert_edge_order(
    function: _OnPattern,
    pattern: Pattern,
    x: Tensor,
    *edge_values: Tensor,
    seed: int = 0,
    tolerance: float | None = None,
) -> None:
    """Assert that the order of the edges in a row does not matter: sources are numbered anew.

    Parameters
    ----------
    function
        Takes a pattern, sources ``[..., N, C]`` and edge values; gives sites ``[..., M, O]``. The
        pattern has no grids, and no window.
    pattern
        M sites, N sources, E edges.
    x
        ``[..., N, C]``.
    *edge_values
        What belongs to the edges, such as untied weights: each ``[E, ...]``.
    seed
        Of the numbering.
    tolerance
        See the module; by default by the dtype, :data:`TOLERANCE`.

    Examples
    --------
    >>> import torch
    >>> from scisparse.patterns import window
    >>> def total(pattern, x):
    ...     return torch.zeros(1, pattern.num_sites, 1).index_add(
    ...         1, pattern.rows(), x[:, pattern.col.long()]
    ...     )
    >>> assert_edge_order(total, window((3, 4), 3), torch.randn(1, 12, 1))
    """
    source = _shuffle(pattern.num_sources, seed)
    site = torch.arange(pattern.num_sites, device=pattern.device)
    expected = _seeded(function, pattern, x, *edge_values)
    actual = _renumbered(function, pattern, x, edge_values, site, source.to(pattern.device))
    assert_same(actual, expected, tolerance=tolerance, message="sources in another order")


def assert_site_relabelling(
    function: _OnPattern,
    pattern: Pattern,
    x: Tensor,
    *edge_values: Tensor,
    seed: int = 0,
    tolerance: float | None = None,
) -> None:
    """Assert that sites and sources that are numbered anew give the output, numbered anew.

    Parameters
    ----------
    function, pattern, x, *edge_values, seed, tolerance
        As in :func:`assert_edge_order`. Where sites and sources are the same points, they keep the
        same numbers.

    Examples
    --------
    >>> import torch
    >>> from scisparse.patterns import window
    >>> def fan_in(pattern, x):
    ...     return pattern.fan_in[:, None].float()
    >>> assert_site_relabelling(fan_in, window((3, 4), 3), torch.randn(1, 12, 1))
    """
    site = _shuffle(pattern.num_sites, seed).to(pattern.device)
    same = pattern.num_sites == pattern.num_sources
    source = site if same else _shuffle(pattern.num_sources, seed + 1).to(pattern.device)
    expected = _seeded(function, pattern, x, *edge_values)
    actual = _renumbered(function, pattern, x, edge_values, site, source)
    actual = actual.index_select(-2, site.to(actual.device))
    assert_same(actual, expected, tolerance=tolerance, message="sites and sources relabelled")


def assert_same(
    actual: _Field, expected: _Field, *, tolerance: float | None = None, message: str = "outputs"
) -> None:
    """Assert that two fields agree; NaN agrees with NaN.

    Parameters
    ----------
    actual, expected
        Tensors or arrays.
    tolerance
        See the module; by default by the dtype of `expected`, :data:`TOLERANCE`.
    message
        How the error begins.

    Examples
    --------
    >>> import numpy as np
    >>> assert_same(np.array([1.0, 2.0]), np.array([1.0, 2.5]))
    Traceback (most recent call last):
    ...
    AssertionError: outputs: 1 of 2 values differ, the most by 0.5 at [1] (tolerance 2.5e-12)
    """
    got, wanted = _tensor(actual).detach(), _tensor(expected).detach()
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise AssertionError(
            f"{message}: {got.dtype} of shape {list(got.shape)}, not {wanted.dtype} of shape "
            f"{list(wanted.shape)}"
        )
    got, wanted = got.to("cpu", torch.float64), wanted.to("cpu", torch.float64)
    relative = TOLERANCE.get(_tensor(expected).dtype, 0.0) if tolerance is None else tolerance
    finite = wanted[wanted.isfinite()].abs()
    bound = relative * float(finite.max()) if finite.numel() else 0.0
    equal = (got == wanted) | (got.isnan() & wanted.isnan())
    difference = torch.where(equal, 0.0, (got - wanted).abs()).nan_to_num(torch.inf)
    wrong = difference > bound
    if bool(wrong.any()):
        place = [int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape)]
        raise AssertionError(
            f"{message}: {int(wrong.sum())} of {wrong.numel()} values differ, the most by "
            f"{float(difference.max()):.3g} at {place} (tolerance {bound:.3g})"
        )


def _tensor(field: _Field) -> Tensor:
    return field if isinstance(field, Tensor) else torch.from_numpy(np.array(field))


def _call(function: _OnField, given: _Field, x: Tensor) -> Tensor:
    """Call with a tensor or an array, as was given."""
    return _tensor(_seeded(function, x if isinstance(given, Tensor) else x.numpy()))


def _seeded(function: Callable[..., Any], *inputs: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return function(*inputs)


def _results(function: _OnField, x: _Field) -> tuple[list[str], list[Tensor]]:
    """Names and values of what a call gives: output and gradients."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return ["output"], [_call(function, x, _tensor(x))]
    x = x.detach().clone().requires_grad_()
    y = _tensor(_seeded(function, x))
    named: list[tuple[str, Tensor]] = [("gradient of the input", x)]
    if isinstance(function, nn.Module):
        trained = (item for item in function.named_parameters() if item[1].requires_grad)
        named += [(f"gradient of {name}", parameter) for name, parameter in trained]
    if not y.requires_grad:
        return ["output"], [y]
    generator = torch.Generator().manual_seed(0)
    pull = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
    targets = [tensor for _, tensor in named]
    gradients = torch.autograd.grad(y, targets, pull, materialize_grads=True)
    return ["output", *(name for name, _ in named)], [y, *gradients]


def _shuffle(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")


def _renumbered(
    function: _OnPattern,
    pattern: Pattern,
    x: Tensor,
    edge_values: Sequence[Tensor],
    site: Tensor,
    source: Tensor,
) -> Tensor:
    """Output where site i has number ``site[i]`` and source j number ``source[j]``."""
    rows, col = site[pattern.rows()], source[pattern.col.long()]
    order = edge_order(rows, col, pattern.tap)
    renumbered = Pattern.from_edge_index(
        torch.stack([col, rows]),
        pattern.num_sites,
        pattern.num_sources,
        tap=pattern.tap,
        distance=pattern.distance,
        bearing=pattern.bearing,
    )
    moved = torch.empty_like(x).index_copy(-2, source.to(x.device), x)
    values = [value.index_select(0, order.to(value.device)) for value in edge_values]
    y: Tensor = _seeded(function, renumbered, moved, *values)
    return y
