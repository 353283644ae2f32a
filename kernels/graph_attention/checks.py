"""What arguments must be, and what is said where they are not."""

from __future__ import annotations

from numbers import Real
from typing import NoReturn

from torch import Tensor

from scisparse.errors import OptionError, ShapeError
from scisparse.kernels._segments import accumulator

__all__ = [
    "check_attention",
    "check_dropout",
    "check_edge_features",
    "check_heads",
    "check_number",
    "check_reduce",
    "check_value",
    "full_bias",
]

REDUCTIONS = ("sum", "mean", "max", "min")


def check_heads(**tensors: Tensor) -> None:
    """Raise unless all have heads, one dtype and one device."""
    for name, tensor in tensors.items():
        if tensor.dim() != 4 or not tensor.is_floating_point():
            raise ShapeError(
                f"`{name}` ({tensor.dtype} {list(tensor.shape)}) must be floats of 4 dimensions: "
                "batch, sites or sources, heads, width"
            )
    if (
        len({t.dtype for t in tensors.values()}) > 1
        or len({t.device for t in tensors.values()}) > 1
    ):
        found = ", ".join(f"`{name}` {t.dtype} on {t.device}" for name, t in tensors.items())
        raise ShapeError(f"all must be of one dtype and on one device: {found}")


def check_attention(q: Tensor, k: Tensor, v: Tensor, sites: int) -> None:
    """Raise unless queries, keys and values fit together."""
    check_heads(q=q, k=k, v=v)
    heads, groups = q.shape[2], k.shape[2]
    fits = (
        q.shape[1] == sites
        and q.shape[0] == k.shape[0]
        and q.shape[3] == k.shape[3]
        and k.shape[:3] == v.shape[:3]
    )
    if not fits:
        raise ShapeError(
            f"`q` {list(q.shape)}, `k` {list(k.shape)} and `v` {list(v.shape)} must be "
            f"[B, M, H, D], [B, N, G, D] and [B, N, G, V] with {sites} sites"
        )
    if groups == 0 or heads == 0 or heads % groups:
        raise ShapeError(
            f"`q` has {heads} heads and `k` has {groups}; the first must be a positive multiple of "
            "the other"
        )


def check_edge_features(q: Tensor, v: Tensor, attr: Tensor, weight: Tensor, edges: int) -> None:
    """Raise unless the features of edges fit the heads."""
    heads, width = q.shape[2:]
    if attr.dim() != 2 or attr.shape[0] != edges:
        raise ShapeError(f"`edge_attr` {list(attr.shape)} must be [E, A] with {edges} edges")
    if weight.shape != (heads, width, attr.shape[1]):
        raise ShapeError(
            f"`edge_weight` {list(weight.shape)} must be [H, D, A], {[heads, width, attr.shape[1]]}"
        )
    if v.shape[3] != width:
        raise ShapeError(
            f"values of width {v.shape[3]} and keys of width {width} cannot share edge features; "
            "make them equally wide"
        )
    if not attr.dtype == weight.dtype == q.dtype:
        raise ShapeError(
            f"`edge_attr` ({attr.dtype}) and `edge_weight` ({weight.dtype}) must "
            f"be {q.dtype}, as `q`"
        )


def full_bias(bias: Tensor, q: Tensor, edges: int) -> Tensor:
    """`bias` as ``[B or 1, E, H or 1]`` in the dtype of scores."""
    if not bias.is_floating_point():
        raise ShapeError(
            f"`bias` is {bias.dtype}; it must hold floats that are added to scores: make one of a "
            "mask with torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)"
        )
    shape = {1: (1, -1, 1), 2: (1, *bias.shape), 3: tuple(bias.shape)}.get(bias.dim())
    if shape is not None:
        full = bias.reshape(shape)
        sizes = (full.shape[0] in (1, q.shape[0]), full.shape[1] == edges)
        if all(sizes) and full.shape[2] in (1, q.shape[2]):
            return full.to(accumulator(q.dtype))
    _explain_bias(bias, q, edges)


def check_value(value: Tensor, x: Tensor, edges: int) -> None:
    """Raise unless the numbers of edges fit the sources ``[B, N, H, D]``."""
    sizes, wide = (edges, x.shape[2]), accumulator(x.dtype)
    if value.dim() != 3 or value.shape[1:] != sizes or value.shape[0] not in (1, x.shape[0]):
        raise ShapeError(
            f"`value` {list(value.shape)} must be [B or 1, E, H], {[x.shape[0], *sizes]} for `x` "
            f"{list(x.shape)} and {edges} edges"
        )
    if value.dtype != wide:
        raise ShapeError(f"`value` is {value.dtype}; with `x` of {x.dtype} it must be {wide}")


def check_number(name: str, value: object) -> None:
    """Raise unless `value` is a plain number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError(
            f"`{name}` is a {type(value).__name__}; it must be a number: multiply the queries with "
            "one that is learned"
        )


def check_reduce(reduce: str) -> None:
    """Raise unless rows can be reduced so."""
    if reduce not in REDUCTIONS:
        choices = ", ".join(map(repr, REDUCTIONS))
        raise OptionError(f"`reduce` (={reduce!r}) must be one of {choices}")


def check_dropout(rate: object) -> None:
    """Raise unless the rate is a part of 1."""
    if not isinstance(rate, int | float | Real) or not 0 <= float(rate) < 1:
        raise OptionError(f"`dropout` (={rate!r}) must be at least 0 and below 1, a number")


def _explain_bias(bias: Tensor, q: Tensor, edges: int) -> NoReturn:
    raise ShapeError(
        f"`bias` {list(bias.shape)} must be [E], [E, H] or [B, E, H], B and H also 1; "
        f"there are {edges} edges, {q.shape[2]} heads and {q.shape[0]} batch entries"
    )
