"""Importance of weights: which to keep when a layer is pruned; larger is more important.

A score has the shape of the weight, and its dtype, but float32 for 16-bit weights: rounded back to
16 bits many would tie. None makes gradients. A NaN in the input is a NaN in the score. Scores by
curvature are in `scisparse.sparsity.curvature`, those that run the model in
`scisparse.sparsity.probes`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scisparse.errors import ShapeError

__all__ = [
    "magnitude",
    "movement",
    "random",
    "snip",
    "taylor",
    "wanda",
]


def magnitude(weight: Tensor) -> Tensor:
    r"""Return the size of each weight, :math:`|w|` (Han et al. 2015).

    Parameters
    ----------
    weight
        Weights, of any shape.

    Returns
    -------
    Tensor
        Scores of the shape of `weight`.

    Raises
    ------
    ShapeError
        `weight` is not of floating point.

    References
    ----------
    Han, S., Pool, J., Tran, J. and Dally, W. J. (2015). Learning both weights and connections for
    efficient neural networks. arXiv:1506.02626

    Examples
    --------
    >>> magnitude(torch.tensor([-2.0, 0.5]))
    tensor([2.0000, 0.5000])
    """
    return widen(weight).abs()


def taylor(weight: Tensor, grad: Tensor) -> Tensor:
    r"""Return the first-order change of the loss without each weight (Molchanov et al. 2019).

    .. math:: |w \, \partial L / \partial w|

    Parameters
    ----------
    weight
        Weights, of any shape.
    grad
        Gradient of the loss, of the shape of `weight`.

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
    Molchanov, P., Mallya, A., Tyree, S., Frosio, I. and Kautz, J. (2019). Importance estimation for
    neural network pruning. arXiv:1906.10771

    Examples
    --------
    >>> taylor(torch.tensor([-2.0, 0.5]), torch.tensor([0.25, 4.0]))
    tensor([0.5000, 2.0000])
    """
    return movement(weight, grad).abs()


def movement(weight: Tensor, grad: Tensor) -> Tensor:
    r"""Return how far one step of descent moves each weight from zero (Sanh et al. 2020).

    .. math:: -w \, \partial L / \partial w

    The score of movement pruning is the sum over all steps of training; this is one step's part.
    It is negative where the step shrinks the weight.

    Parameters
    ----------
    weight
        Weights before the step, of any shape.
    grad
        Gradient of the loss, of the shape of `weight`.

    Returns
    -------
    Tensor
        Part of the scores, of the shape of `weight`, in units of the loss.

    Raises
    ------
    ShapeError
        The shapes differ, or `weight` is not of floating point.

    References
    ----------
    Sanh, V., Wolf, T. and Rush, A. M. (2020). Movement pruning: adaptive sparsity by fine-tuning.
    arXiv:2005.07683

    Examples
    --------
    >>> movement(torch.tensor([-2.0, 0.5]), torch.tensor([0.25, 4.0]))
    tensor([ 0.5000, -2.0000])
    """
    return -widen(weight) * widen_as(weight, "grad", grad)


def snip(weight: Tensor, grad: Tensor) -> Tensor:
    r"""Return the share of each connection in the sensitivity of the loss (Lee et al. 2019).

    .. math:: |w_j g_j| / \sum_k |w_k g_k|

    where g is the gradient of the loss. The published sum runs over the whole network: to rank the
    weights of several layers together, pass them concatenated, or take `taylor`, which ranks alike.

    Parameters
    ----------
    weight
        Weights, of any shape.
    grad
        Gradient of the loss, of the shape of `weight`.

    Returns
    -------
    Tensor
        Scores of the shape of `weight`, with sum 1; all 0 where every product is 0.

    Raises
    ------
    ShapeError
        The shapes differ, or `weight` is not of floating point.

    References
    ----------
    Lee, N., Ajanthan, T. and Torr, P. H. S. (2019). SNIP: single-shot network pruning based on
    connection sensitivity. arXiv:1810.02340

    Examples
    --------
    >>> snip(torch.tensor([-2.0, 0.5]), torch.tensor([0.25, 3.0]))
    tensor([0.2500, 0.7500])
    """
    sensitivity = taylor(weight, grad)
    total = sensitivity.sum()
    return sensitivity / torch.where(total == 0, 1.0, total)


def wanda(weight: Tensor, inputs: Tensor, source: Tensor | None = None) -> Tensor:
    r"""Return the size of each weight times that of its input (Sun et al. 2023).

    .. math:: |W_{ij}| \, \lVert X_j \rVert_2

    with j the input channel of a weight, or the source of an edge.

    Weights are to be compared within a row (an output). Kernels of convolutions share the norm of
    their input channel.

    Parameters
    ----------
    weight
        Weights ``[O, I]``, or ``[O, I, ...]`` of a convolution without groups; with `source` those
        of edges, ``[E]``, as ``layer.edge_weight`` of ``SparseLinear``.
    inputs
        What the layer read, ``[..., I]``: channels last, at least one sample. For a convolution
        ``x.movedim(1, -1)``.
    source
        Source that each edge reads, integers ``[E]`` below I, as ``layer.pattern.col``.

    Returns
    -------
    Tensor
        Scores of the shape of `weight`, in units of the inputs.

    Raises
    ------
    ShapeError
        `weight` has fewer than 2 dims and there is no `source`, `inputs` or `source` does not fit,
        there is no sample, or `weight` is not of floating point.

    References
    ----------
    Sun, M., Liu, Z., Bair, A. and Kolter, J. Z. (2023). A simple and effective pruning approach for
    large language models. arXiv:2306.11695

    Examples
    --------
    >>> wanda(torch.tensor([[-2.0, 0.5]]), torch.tensor([[1.0, 3.0], [0.0, 4.0]]))
    tensor([[2.0000, 2.5000]])
    """
    if source is not None:
        return _wanda_of_edges(weight, inputs, source)
    if weight.ndim < 2:
        raise ShapeError(
            f"`weight` has shape {list(weight.shape)}; it must be [O, I] or [O, I, ...]: give "
            "`source` for weights of edges, and score other vectors by `magnitude`"
        )
    norm: Tensor = torch.linalg.vector_norm(input_rows(weight, inputs), dim=0)
    return magnitude(weight) * norm.reshape(-1, *[1] * (weight.ndim - 2))


def _wanda_of_edges(weight: Tensor, inputs: Tensor, source: Tensor) -> Tensor:
    if weight.ndim != 1 or source.shape != weight.shape or source.is_floating_point():
        raise ShapeError(
            f"`source` ({source.dtype} {list(source.shape)}) must be integers [E], as many as "
            f"`weight` (shape {list(weight.shape)}) has edges: give `layer.edge_weight` and "
            "`layer.pattern.col` of a SparseLinear"
        )
    given, most = list(inputs.shape), int(source.max()) if source.numel() else -1
    if not given or most >= given[-1]:
        raise ShapeError(
            f"`inputs` has shape {given}, and edges read source {most}: put the sources last"
        )
    norm: Tensor = torch.linalg.vector_norm(_rows(weight, inputs), dim=0)
    return magnitude(weight) * norm[source.to(norm.device).long()]


def random(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return uniform random numbers from [0, 1): the baseline of every other score.

    Parameters
    ----------
    weight
        Weights, of any shape; their values do not matter.
    generator
        Source of the numbers, on any device; torch's default one otherwise.

    Returns
    -------
    Tensor
        Scores of the shape of `weight`.

    Raises
    ------
    ShapeError
        `weight` is not of floating point.

    Examples
    --------
    >>> scores = random(torch.ones(2, 3), torch.Generator().manual_seed(1))
    >>> scores.shape, bool((scores < 1).all())
    (torch.Size([2, 3]), True)
    """
    dtype = score_dtype(weight)
    device = weight.device if generator is None else generator.device
    drawn = torch.rand(weight.shape, generator=generator, dtype=dtype, device=device)
    return drawn.to(weight.device)


def score_dtype(weight: Tensor, name: str = "weight") -> torch.dtype:
    """Return what the scores of `weight` are computed in."""
    if not weight.is_floating_point():
        raise ShapeError(f"`{name}` is of {weight.dtype}; it must be of floating point: convert it")
    return torch.float32 if weight.dtype.itemsize < 4 else weight.dtype


def widen(weight: Tensor, name: str = "weight") -> Tensor:
    """Return `weight` without its graph, in the dtype of its scores."""
    return weight.detach().to(score_dtype(weight, name))


def at_least_single(score: Tensor) -> Tensor:
    """Return scores in single precision, or in double where they are: flows may need its range."""
    return score.to(torch.promote_types(score.dtype, torch.float32))


def widen_as(weight: Tensor, name: str, tensor: Tensor, *, samples: bool = False) -> Tensor:
    """Return `tensor`, of the shape of `weight`, in the dtype that its scores are computed in."""
    given = list(tensor.shape)
    expected = ["S", *weight.shape] if samples else list(weight.shape)
    if given[samples:] != list(weight.shape) or len(given) != len(expected):
        raise ShapeError(
            f"`{name}` has shape {given}; it must be {_listed(expected)}, "
            + ("samples first, as `weight` is" if samples else "as `weight`")
            + f" {list(weight.shape)}: pass the two of one parameter"
        )
    if samples and given[0] == 0:
        raise ShapeError(f"`{name}` (shape {given}) holds no sample: pass at least one")
    return tensor.detach().to(score_dtype(weight))


def input_rows(weight: Tensor, inputs: Tensor) -> Tensor:
    """Return the inputs ``[..., I]`` of weights ``[O, I, ...]`` as a matrix of at least one row."""
    given, channels = list(inputs.shape), weight.shape[1]
    if not given or given[-1] != channels:
        raise ShapeError(
            f"`inputs` has shape {given}; its last dim must be {channels}, dim 1 of `weight` "
            f"{list(weight.shape)}: put channels last"
        )
    return _rows(weight, inputs)


def _rows(weight: Tensor, inputs: Tensor) -> Tensor:
    rows = inputs.detach().unsqueeze(0).flatten(0, -2)
    if len(rows) == 0:
        raise ShapeError(
            f"`inputs` (shape {list(inputs.shape)}) holds no sample: pass at least one"
        )
    return rows.to(score_dtype(weight))


def _listed(sizes: list[int | str]) -> str:
    return f"[{', '.join(map(str, sizes))}]"
