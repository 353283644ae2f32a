r"""Importance of weights by the curvature of the loss; larger is more important.

Legend: w the weights, S samples, F the empirical Fisher matrix
:math:`\frac1S \sum_s g_s g_s^\top` of their gradients, which stands for the Hessian near a minimum.
Dtypes and gradients are as in `scisparse.sparsity.scores`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from scisparse.errors import OptionError, ShapeError
from scisparse.sparsity.scores import widen, widen_as

__all__ = [
    "cut",
    "empirical_fisher",
    "optimal_brain_damage",
    "optimal_brain_surgeon",
    "outer_products",
    "surgeon_of_sums",
    "surgeon_step",
]

# Numbers factored at once: blocks of a large weight pass through in turns.
_CHUNK = 2**22


def empirical_fisher(grads: Tensor) -> Tensor:
    r"""Return the diagonal of the empirical Fisher matrix, :math:`\frac1S \sum_s g_s^2`.

    Parameters
    ----------
    grads
        Gradients of the loss of single samples, ``[S, ...]``, S at least 1. Means over batches will
        not do: their squares are smaller by about the size of the batch.

    Returns
    -------
    Tensor
        The diagonal, ``[...]``, float32 for 16-bit gradients.

    Raises
    ------
    ShapeError
        `grads` holds no sample, or is not of floating point.

    Examples
    --------
    >>> empirical_fisher(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
    tensor([5., 2.])
    """
    if grads.ndim == 0 or len(grads) == 0:
        raise ShapeError(
            f"`grads` (shape {list(grads.shape)}) holds no sample; it must be [S, ...]: pass at "
            "least one"
        )
    return widen(grads, "grads").square().mean(0)


def optimal_brain_damage(weight: Tensor, fisher: Tensor) -> Tensor:
    r"""Return the second-order change of the loss without each weight (LeCun et al. 1989).

    .. math:: \tfrac12 F_{jj} w_j^2

    Parameters
    ----------
    weight
        Weights at a minimum of the loss, of any shape.
    fisher
        Diagonal of the Hessian or, in its place, `empirical_fisher`, of the shape of `weight`.

    Returns
    -------
    Tensor
        Scores of the shape of `weight`, in units of the loss.

    Raises
    ------
    ShapeError
        The shapes differ, or `weight` is not of floating point.

    References
    ----------
    LeCun, Y., Denker, J. S. and Solla, S. A. (1989). Optimal brain damage. Advances in Neural
    Information Processing Systems 2, 598-605.

    Examples
    --------
    >>> optimal_brain_damage(torch.tensor([-2.0, 1.0]), torch.tensor([1.0, 3.0]))
    tensor([2.0000, 1.5000])
    """
    return 0.5 * widen_as(weight, "fisher", fisher) * widen(weight).square()


def optimal_brain_surgeon(
    weight: Tensor, grads: Tensor, *, block: int = 64, damping: float = 1e-5
) -> Tensor:
    r"""Return the rise of the loss without a weight, the others adapted (Hassibi and Stork 1992).

    .. math:: \frac{w_j^2}{2 [F_B^{-1}]_{jj}},
              \quad F_B = \lambda I + \frac1S \sum_s g_{s, B} g_{s, B}^\top

    with F cut to diagonal blocks B of consecutive entries (WoodFisher, Singh and Alistarh 2020).

    Parameters
    ----------
    weight
        Weights at a minimum of the loss, of any shape.
    grads
        Gradients of the loss of single samples, ``[S, *weight.shape]``, S at least 1.
    block
        Entries of a block, in the order of ``weight.flatten()``. Memory grows with it, time with
        its square.
    damping
        :math:`\lambda`, above 0, in units of squared gradients: far above them the score is
        that of `scisparse.sparsity.scores.magnitude`.

    Returns
    -------
    Tensor
        Scores of the shape of `weight`, in units of the loss.

    Raises
    ------
    ShapeError
        The shapes do not fit, there is no sample, or `weight` is not of floating point.
    OptionError
        `block` is below 1, or `damping` not above 0.

    References
    ----------
    Hassibi, B. and Stork, D. G. (1992). Second order derivatives for network pruning: optimal brain
    surgeon. Advances in Neural Information Processing Systems 5, 164-171.

    Singh, S. P. and Alistarh, D. (2020). WoodFisher: efficient second-order approximation for
    neural network compression. arXiv:2004.14340

    Examples
    --------
    >>> weight, grads = torch.tensor([1.0, 1.0]), torch.tensor([[1.0, -1.0]])
    >>> optimal_brain_surgeon(weight, grads, damping=1.0)
    tensor([0.7500, 0.7500])
    """
    block = _block_size(weight, block, damping)
    scores = []
    for w, rows in _blocks(weight, grads, block, damping):
        root = torch.linalg.qr(rows, mode="r").R  # F = R^T R, without squaring its condition
        eye = torch.eye(block, dtype=root.dtype, device=root.device).expand_as(root)
        inverse = torch.linalg.solve_triangular(root, eye, upper=True)
        scores.append(0.5 * w.square() / inverse.square().sum(-1))
    return _unblocked(scores, weight)


def outer_products(grad: Tensor, block: int) -> Tensor:
    r"""Return :math:`g_B g_B^\top` of blocks B of consecutive entries, ``[b, n, n]``.

    Summed over steps they are what :func:`surgeon_of_sums` reads.

    Parameters
    ----------
    grad
        Gradient of a step, of any shape.
    block
        Entries of a block; n is this, or the size of `grad` where that is less.

    Examples
    --------
    >>> outer_products(torch.tensor([1.0, 2.0, 3.0]), 2).tolist()
    [[[1.0, 2.0], [2.0, 4.0]], [[9.0, 0.0], [0.0, 0.0]]]
    """
    rows = cut(widen(grad, "grad").flatten(), max(1, min(block, grad.numel())))
    return rows.unsqueeze(-1) * rows.unsqueeze(-2)


def surgeon_of_sums(weight: Tensor, total: Tensor, damping: float = 1e-3) -> Tensor:
    """Return the scores of `optimal_brain_surgeon`, times the number of steps that were summed.

    Parameters
    ----------
    weight
        Weights, of any shape.
    total
        Sum of the :func:`outer_products` of their gradients, ``[b, n, n]``.
    damping
        What is added to the diagonal, as a fraction of its mean; more in blocks that rounding
        of the sums, in single precision, has made indefinite.

    Returns
    -------
    Tensor
        Scores of the shape of `weight`.

    Examples
    --------
    >>> total = outer_products(torch.tensor([1.0, -1.0]), 2)
    >>> surgeon_of_sums(torch.tensor([1.0, 1.0]), total, damping=1.0)
    tensor([0.7500, 0.7500])
    """
    size = total.shape[-1]
    diagonal = total.diagonal(dim1=-2, dim2=-1).double()
    mean = float(diagonal.sum()) / max(1, weight.numel())
    # Rounding of the sums may make a block singular that is far above the mean.
    damped = damping * (mean or 1.0) + 1e-6 * diagonal.amax(-1, keepdim=True)
    scores = []
    step = _blocks_at_once(size, size)
    blocks = cut(widen(weight).flatten(), size)
    for w, part, extra in zip(*(one.split(step) for one in (blocks, total, damped)), strict=True):
        root = _root_of_sums(part.double(), extra)
        inverse = torch.cholesky_inverse(root).diagonal(dim1=-2, dim2=-1)
        scores.append(0.5 * w.square() / inverse.to(w.dtype))
    return _unblocked(scores, weight)


def _root_of_sums(total: Tensor, damping: Tensor) -> Tensor:
    """Cholesky factors of ``[b, n, n]`` with `damping` ``[b, 1]``, tenfold as often as it fails."""
    root = total
    for _ in range(8):
        damped = total + torch.diag_embed(damping.expand(total.shape[:-1]))
        root, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            break
        damping = torch.where(failed.unsqueeze(-1) > 0, 10.0 * damping, damping)
    return root


def surgeon_step(
    weight: Tensor, grads: Tensor, keep: Tensor, *, block: int = 64, damping: float = 1e-5
) -> Tensor:
    r"""Return the weights after removal of some, the others adapted (Hassibi and Stork 1992).

    With K kept and Q removed, within each block of F (see `optimal_brain_surgeon`)

    .. math:: w_Q' = 0, \quad w_K' = w_K + F_{KK}^{-1} F_{KQ} w_Q

    the exact minimum of :math:`(w' - w)^\top F (w' - w)` for all of Q together.

    Parameters
    ----------
    weight
        Weights at a minimum of the loss, of any shape.
    grads
        Gradients of the loss of single samples, ``[S, *weight.shape]``, S at least 1.
    keep
        Which weights remain, bool of the shape of `weight`.
    block
        Entries of a block, in the order of ``weight.flatten()``.
    damping
        What is added to the diagonal of F, above 0, in units of squared gradients.

    Returns
    -------
    Tensor
        New weights, of shape and dtype of `weight`, exactly 0 where not in `keep`.

    Raises
    ------
    ShapeError
        The shapes do not fit, there is no sample, `keep` is not bool, or `weight` is not of
        floating point.
    OptionError
        `block` is below 1, or `damping` not above 0.

    References
    ----------
    Hassibi, B. and Stork, D. G. (1992). Second order derivatives for network pruning: optimal brain
    surgeon. Advances in Neural Information Processing Systems 5, 164-171.

    Examples
    --------
    >>> weight, grads = torch.tensor([1.0, 1.0]), torch.tensor([[1.0, -1.0]])
    >>> surgeon_step(weight, grads, torch.tensor([True, False]), damping=1.0)
    tensor([0.5000, 0.0000])
    """
    if keep.dtype != torch.bool or keep.shape != weight.shape:
        raise ShapeError(
            f"`keep` ({keep.dtype} {list(keep.shape)}) must be booleans {list(weight.shape)}, one "
            "for each entry of `weight`: make it by a comparison of scores"
        )
    block = _block_size(weight, block, damping)
    all_kept = cut(keep.flatten(), block)
    updated: list[Tensor] = []
    start = 0
    for w, rows in _blocks(weight, grads, block, damping):
        kept = all_kept[start : start + len(w)]
        start += len(w)
        # Ridge regression, on what the kept weights did, of what the removed ones did. These are
        # held at 0: their columns are left with the damping alone.
        seen = rows[:, :-block]
        lost = seen @ torch.where(kept, 0.0, w).unsqueeze(-1)
        seen *= kept.unsqueeze(-2)
        # With one more column, R holds that column times Q^T too: Q need not be formed.
        both = torch.cat([rows, F.pad(lost, (0, 0, 0, block))], -1)
        root, right = torch.linalg.qr(both, mode="r").R[:, :block].split([block, 1], -1)
        change = torch.linalg.solve_triangular(root, right, upper=True)
        updated.append(torch.where(kept, w + change.squeeze(-1), 0.0))
    return _unblocked(updated, weight).to(weight.dtype)


def root_of_gram(rows: Tensor, damping: float) -> Tensor:
    r"""Stack ``[..., S, n]`` on :math:`\sqrt\lambda I`, the root of a damped Gram matrix."""
    size = rows.shape[-1]
    eye = math.sqrt(damping) * torch.eye(size, dtype=rows.dtype, device=rows.device)
    return torch.cat([rows, eye.expand(*rows.shape[:-2], size, size)], -2)


def check_damping(damping: float) -> None:
    """Raise unless `damping` makes every Gram matrix one that can be inverted."""
    if not 0.0 < damping < math.inf:
        raise OptionError(f"`damping` (={damping}) must be finite and above 0: try 1e-5")


def _block_size(weight: Tensor, block: int, damping: float) -> int:
    """Check the options; return the size of blocks, no larger than `weight`."""
    if block < 1:
        raise OptionError(f"`block` (={block}) must be at least 1: try 64")
    check_damping(damping)
    return max(1, min(block, weight.numel()))


def _blocks(
    weight: Tensor, grads: Tensor, block: int, damping: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of the weights ``[b, n]``, and rows ``[b, S + n, n]`` with F = rows^T rows."""
    gradients = widen_as(weight, "grads", grads, samples=True)
    samples = len(gradients)
    step = _blocks_at_once(block, samples)
    w = cut(widen(weight).flatten(), block)
    flat = gradients.reshape(samples, weight.numel()) / math.sqrt(samples)
    g = cut(flat, block).transpose(0, 1)
    for part, rows in zip(w.split(step), g.split(step), strict=True):
        yield part, root_of_gram(rows, damping)


def _blocks_at_once(block: int, samples: int) -> int:
    return max(1, _CHUNK // (block * (samples + block)))


def cut(values: Tensor, block: int) -> Tensor:
    """Cut ``[..., n]`` into ``[..., b, block]``, the last block filled up with 0."""
    *outer, size = values.shape
    count = math.ceil(size / block)
    return F.pad(values, (0, count * block - size)).reshape(*outer, count, block)


def _unblocked(parts: list[Tensor], weight: Tensor) -> Tensor:
    """Undo `cut`."""
    return torch.cat(parts).flatten()[: weight.numel()].reshape(weight.shape)
