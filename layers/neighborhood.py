"""Neighbourhood attention in one to three dimensions, with periodic axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.integers import integers
from scisparse.layers.attention import Scores, SparseAttention
from scisparse.layers.heads import check_cells, check_mask
from scisparse.patterns import neighborhood

__all__ = ["NeighborhoodAttention1d", "NeighborhoodAttention2d", "NeighborhoodAttention3d"]


class _NeighborhoodAttention(SparseAttention):
    """Attention of each cell to the box of cells around it; see the subclasses."""

    axes: int

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int],
        *,
        input_size: int | Sequence[int],
        dilation: int | Sequence[int] = 1,
        causal: bool | Sequence[bool] = False,
        periodic: bool | Sequence[bool] = False,
        scores: Scores | None = None,
        kv_heads: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        size = integers(np.atleast_1d(input_size).tolist())
        if size is None or len(size) != self.axes:
            raise OptionError(
                f"`input_size` (={input_size}) must name {self.axes} sizes for "
                f"{type(self).__name__}"
            )
        pattern = neighborhood(
            size, kernel_size, dilation=dilation, causal=causal, periodic=periodic
        )
        super().__init__(
            *(pattern, embed_dim, num_heads),
            kv_heads=kv_heads,
            scores=Scores(taps=True) if scores is None else scores,
            dropout=dropout,
        )
        self.input_size, self.kernel_size = size, kernel_size

    def forward(
        self,
        x: Tensor,
        source: Tensor | None = None,
        *,
        source_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Attend: ``[..., *input_size, embed_dim]``, `source` and `source_mask` likewise."""
        for name, given in (("x", x), ("source", source)):
            if given is not None:
                check_cells(name, given, self.input_size, self.embed_dim)
        end = -self.axes - 1
        if source_mask is not None:
            check_mask(source_mask, self.input_size, x.shape[:end], "cells")
            source_mask = source_mask.flatten(-self.axes)
        flat = None if source is None else source.flatten(end, -2)
        y = super().forward(x.flatten(end, -2), flat, source_mask=source_mask, **options)
        return y.view(x.shape)


class NeighborhoodAttention1d(_NeighborhoodAttention):
    """Attention of each cell of a line to the cells around it.

    Parameters and shapes are those of :class:`NeighborhoodAttention2d`, with one axis.

    Examples
    --------
    >>> import torch
    >>> attend = NeighborhoodAttention1d(8, 2, 5, input_size=20, causal=True)
    >>> attend(torch.randn(3, 20, 8)).shape
    torch.Size([3, 20, 8])
    """

    axes = 1


class NeighborhoodAttention2d(_NeighborhoodAttention):
    """Attention of each cell of a grid to the box of cells around it.

    At the ends of an axis the box is moved inwards and keeps its size; longitudes are a periodic
    axis, and have no ends. Each offset between two cells has a learned bias, by head.

    Parameters
    ----------
    embed_dim
        Channels, in and out.
    num_heads
        H.
    kernel_size
        Cells of the box along each axis.
    input_size
        Cells of the grid along each axis.
    dilation
        Step between the cells of the box along each axis.
    causal, periodic
        For each axis: whether it reads nothing after a cell; whether its ends meet.
    scores
        How edges are scored; ``Scores(taps=True)``, a bias for each offset, where not given.
    kv_heads
        Heads of keys and values, which divide H (grouped queries); H where not given.
    dropout
        Part of the weights of the softmax that training sets to 0.

    Shapes
    ------
    Input and output ``[..., *input_size, embed_dim]``.

    Raises
    ------
    OptionError
        If sizes do not fit together, or heads do not divide the channels, or one another.

    References
    ----------
    Hassani, A., Walton, S., Li, J., Li, S., Shi, H. (2023). Neighborhood attention transformer.
    https://doi.org/10.48550/arXiv.2204.07143

    Examples
    --------
    >>> import torch
    >>> attend = NeighborhoodAttention2d(8, 2, 3, input_size=(9, 18), periodic=(False, True))
    >>> attend(torch.randn(4, 9, 18, 8)).shape
    torch.Size([4, 9, 18, 8])
    """

    axes = 2


class NeighborhoodAttention3d(_NeighborhoodAttention):
    """Attention of each cell of a volume to the box of cells around it.

    Parameters and shapes are those of :class:`NeighborhoodAttention2d`, with three axes.

    Examples
    --------
    >>> import torch
    >>> attend = NeighborhoodAttention3d(
    ...     8, 2, (3, 3, 5), input_size=(4, 6, 12), periodic=(False, False, True)
    ... )
    >>> attend(torch.randn(2, 4, 6, 12, 8)).shape
    torch.Size([2, 4, 6, 12, 8])
    """

    axes = 3
