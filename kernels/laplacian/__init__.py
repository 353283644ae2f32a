"""Graph Laplacian: how far rows of numbers are from those that they are coupled with.

Couplings are edges from rows to rows, ``row_ptr [T + 1]`` and ``col [E]``, each with a number. They
are symmetric: a row that is coupled with another is so in both directions, with the same number.
Each of the two operators is then the derivative of the other, for every order. Backends are
``"cpu"`` (C++) and ``"reference"`` (chunks in plain torch, any device).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.errors import ShapeError
from scisparse.kernels import _backends, _debug
from scisparse.kernels._edges import check_edges, check_places
from scisparse.kernels._modes import is_transformed
from scisparse.kernels._operators import register
from scisparse.kernels._segments import accumulator
from scisparse.kernels.laplacian import cpu, reference

__all__ = ["IMPLEMENTATIONS", "dirichlet_energy", "laplacian"]

#: How each operator can be run, best first.
IMPLEMENTATIONS = {
    op: (
        _backends.Implementation("cpu", cpu.can_run, getattr(cpu, op)),
        _backends.Implementation("reference", lambda *_: None, getattr(reference, op)),
    )
    for op in ("laplacian", "energy_of_rows")
}


def laplacian(
    x: Tensor, row_ptr: Tensor, col: Tensor, value: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Sum the differences between each row and those that it is coupled with.

    ``y[i] = sum_{e in row i} value[e] (x[i] - x[col[e]])``

    Parameters
    ----------
    x
        Numbers, ``[T, C]``.
    row_ptr, col
        Couplings in compressed-row form, ``[T + 1]`` int64 and ``[E]`` int32 or int64; symmetric.
    value
        How strong each of them is, ``[E]``; a constant, without gradient.
    backend
        ``"auto"``, ``"cpu"`` or ``"reference"``.

    Returns
    -------
    Tensor
        ``[T, C]``, of the dtype of `x`; 0 for rows that are coupled with none.

    Raises
    ------
    ShapeError
        Shapes or types do not fit together, or tensors lie on several devices.
    BackendError
        The named backend cannot run on this device or dtype.

    Examples
    --------
    >>> import torch
    >>> x, value = torch.tensor([[1.0], [4.0]]), torch.ones(2)
    >>> row_ptr, col = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
    >>> laplacian(x, row_ptr, col, value)
    tensor([[-3.],
            [ 3.]])
    """
    wide, value = _prepare(x, row_ptr, col, value)
    run = _Linear.apply if is_transformed() else _laplacian
    y: Tensor = run(wide, row_ptr, col, value, backend)
    return y.to(x.dtype)


def dirichlet_energy(
    x: Tensor, row_ptr: Tensor, col: Tensor, value: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Add up the squared differences between rows that are coupled.

    ``sum over couplings of value |x[i] - x[j]|^2``, each pair of rows once: half the sum over both
    directions. Its gradient is twice the :func:`laplacian`.

    Parameters
    ----------
    x, row_ptr, col, value, backend
        As in :func:`laplacian`.

    Returns
    -------
    Tensor
        A scalar of the dtype of `x`, float32 for 16-bit `x`.

    Raises
    ------
    ShapeError, BackendError
        As in :func:`laplacian`.

    Examples
    --------
    >>> import torch
    >>> x, value = torch.tensor([[1.0], [4.0]]), torch.ones(2)
    >>> dirichlet_energy(x, torch.tensor([0, 1, 2]), torch.tensor([1, 0]), value)
    tensor(9.)
    """
    wide, value = _prepare(x, row_ptr, col, value)
    if is_transformed():
        wide = wide - wide.detach().mean(0)  # what all rows have in common would cancel
        return (wide * laplacian(wide, row_ptr, col, value, backend=backend)).sum()
    energy: Tensor = _dirichlet_energy(wide, row_ptr, col, value, backend)
    return energy


def _prepare(x: Tensor, row_ptr: Tensor, col: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Check the arguments; numbers in the type in which they are added up."""
    check_edges(row_ptr, col)
    check_places(x=x, row_ptr=row_ptr, col=col, value=value)
    if not (x.is_floating_point() and value.is_floating_point()):
        raise ShapeError(f"`x` ({x.dtype}) and `value` ({value.dtype}) must be floats")
    if x.dim() != 2 or len(row_ptr) != len(x) + 1 or value.shape != col.shape:
        raise ShapeError(
            f"`x` {list(x.shape)}, `row_ptr` {list(row_ptr.shape)}, `col` {list(col.shape)} and "
            f"`value` {list(value.shape)} must be [T, C], [T + 1], [E] and [E]"
        )
    wide = x.to(accumulator(x.dtype))
    return wide, value.detach().to(wide.dtype)


def _choose(op: str, backend: str, x: Tensor, row_ptr: Tensor, col: Tensor) -> Any:
    if _debug.is_debugging():
        _debug.check_edges(row_ptr, col, None, len(x), len(col))
    if backend == "auto" and _backends.current_backend() in ("triton", "cuda"):
        backend = "reference"  # on a GPU there is no other
    chosen = _backends.choose(op, IMPLEMENTATIONS[op], backend, x.device, x.dtype)
    _debug.check_ends_for(chosen.name, row_ptr, len(col))
    return chosen.run


def _run_laplacian(x: Tensor, row_ptr: Tensor, col: Tensor, value: Tensor, backend: str) -> Tensor:
    y: Tensor = _choose("laplacian", backend, x, row_ptr, col)(x, row_ptr, col, value)
    return y


def _run_energy(x: Tensor, row_ptr: Tensor, col: Tensor, value: Tensor, backend: str) -> Tensor:
    energy: Tensor = _choose("energy_of_rows", backend, x, row_ptr, col)(x, row_ptr, col, value)
    return energy.sum() / 2


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.backend = inputs[4]


def _laplacian_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    _, *couplings = ctx.saved_tensors
    return _laplacian(grad, *couplings, ctx.backend), None, None, None, None


def _energy_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, row_ptr, col, value = ctx.saved_tensors
    if torch.is_grad_enabled():
        pull = 2 * grad * _laplacian(x, row_ptr, col, value, ctx.backend)
    else:  # no derivative by `grad` is wanted: scales what is smaller than `x`
        pull = _laplacian(x, row_ptr, col, 2 * grad * value, ctx.backend)
    return pull, None, None, None, None


class _Linear(torch.autograd.Function):
    """The Laplacian under ``torch.func`` and in forward mode: linear in `x`, and symmetric."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        y: Tensor = _laplacian(*inputs)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, *couplings = ctx.saved_tensors
        return _Linear.apply(grad, *couplings, ctx.backend), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        _, *couplings = ctx.saved_tensors
        y: Tensor = _Linear.apply(tangent, *couplings, ctx.backend)
        return y

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, *rest: Any
    ) -> tuple[Tensor, int]:
        if in_dims[0] is None or any(dim is not None for dim in in_dims[1:4]):
            raise ShapeError("couplings of a Laplacian cannot be mapped by vmap, only its numbers")
        columns = x.movedim(in_dims[0], 1)  # copies side by side
        y: Tensor = _Linear.apply(columns.flatten(1), *rest)
        return y.unflatten(1, columns.shape[1:]), 1


_SCHEMA = "(Tensor x, Tensor row_ptr, Tensor col, Tensor value, str backend) -> Tensor"
register(
    "laplacian",
    _SCHEMA,
    _run_laplacian,
    lambda x, *_: x.new_empty(x.shape),
    _laplacian_backward,
    _save,
)
register(
    "dirichlet_energy",
    _SCHEMA,
    _run_energy,
    lambda x, *_: x.new_empty(()),
    _energy_backward,
    _save,
)
_laplacian = torch.ops.scisparse.laplacian
_dirichlet_energy = torch.ops.scisparse.dirichlet_energy
