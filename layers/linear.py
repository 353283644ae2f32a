"""Linear layers that store the values of their edges and nothing else."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.grids.integers import integer, integer_from
from scisparse.kernels.gather_matmul import Edges, gather_matmul
from scisparse.layers.base import add_to, as_trainable, draw_uniform
from scisparse.layers.edges import edge_buffers
from scisparse.layers.rewiring import Rewirable, checked_pattern, pack_edges
from scisparse.pattern import Pattern
from scisparse.patterns import constant_fan_in

__all__ = ["SparseLinear"]


class SparseLinear(Rewirable):
    """Linear layer with weights on the edges of a pattern only.

    ``y[b,i] = bias[i] + sum_{e in row i} x[b,col[e]] * weight[e]``

    Parameters, gradients and the state of optimizers have one number an edge. A
    ``scisparse.Sparsifier`` moves the edges while it trains.

    Parameters
    ----------
    in_features, out_features
        N and M.
    fan_in
        Inputs that each output reads, drawn at random without repetition from torch's generator.
    pattern
        Who reads whom instead, M sites and N sources.
    bias
        Whether outputs have a bias, those without edges too.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    weight
        ``[E]``, in the order of the edges of :attr:`pattern`.
    bias
        ``[M]`` or ``None``.

    Shapes
    ------
    Input ``[..., N]``, output ``[..., M]``.

    Raises
    ------
    OptionError
        Both or neither of `fan_in` and `pattern` are given, or a size is no integer, or negative.
    PatternError
        The pattern has other sizes than the layer, or `fan_in` is no integer from 0 to N.

    References
    ----------
    Lasby, M., Golubeva, A., Evci, U., Nica, M., Ioannou, Y. (2024). Dynamic sparse training with
    structured sparsity. https://doi.org/10.48550/arXiv.2305.02299

    Examples
    --------
    >>> import torch
    >>> layer = SparseLinear(512, 256, fan_in=16)
    >>> layer(torch.randn(8, 512)).shape, layer.weight.shape
    (torch.Size([8, 256]), torch.Size([4096]))
    """

    bias: nn.Parameter | None
    row_ptr: Tensor
    col: Tensor
    row_ptr_t: Tensor
    col_t: Tensor
    order_t: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        fan_in: int | None = None,
        *,
        pattern: Pattern | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (fan_in is None) == (pattern is None):
            raise OptionError(
                f"`fan_in` is {fan_in} and `pattern` is {pattern!r}; give one of the two"
            )
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            integer_from(name, value, 0, OptionError)
        if fan_in is not None:
            fan_in = integer("fan_in", fan_in, PatternError)
            if not 0 <= fan_in <= in_features:
                raise PatternError(
                    f"`fan_in` (={fan_in}) must lie between 0 and `in_features` (={in_features})"
                )
            pattern = constant_fan_in(out_features, in_features, fan_in)
        pattern = checked_pattern(pattern)
        if pattern.shape != (out_features, in_features):
            raise PatternError(
                f"`pattern` (sites x sources {pattern.shape}) must have `out_features` sites and "
                f"`in_features` sources, {(out_features, in_features)}"
            )
        self.in_features, self.out_features, self.pattern = in_features, out_features, pattern
        like = torch.empty(0, device=device, dtype=dtype)
        self.weight = nn.Parameter(like.new_empty(pattern.num_edges))
        self.bias = nn.Parameter(like.new_empty(out_features)) if bias else None
        self._write_buffers(like.device)
        self.reset_parameters()

    @classmethod
    def from_dense(cls, linear: nn.Linear, keep: Tensor | None = None) -> Self:
        """Make a sparse layer of a dense one.

        Parameters
        ----------
        linear
            Dense layer ``[M, N]``.
        keep
            Booleans ``[M, N]``, true at weights to keep; those that are not 0 where not given.

        Examples
        --------
        >>> import torch
        >>> dense = torch.nn.Linear(4, 3)
        >>> sparse = SparseLinear.from_dense(dense, torch.eye(3, 4).bool())
        >>> sparse.weight.tolist() == dense.weight.diagonal().tolist()
        True
        """
        dense = linear.weight.detach()
        keep = dense != 0 if keep is None else keep.to(dense.device)
        if keep.shape != dense.shape or keep.dtype != torch.bool:
            raise ShapeError(
                f"`keep` ({keep.dtype} {list(keep.shape)}) must be booleans {list(dense.shape)}"
            )
        layer = cls(
            linear.in_features,
            linear.out_features,
            pattern=Pattern.from_dense(keep.cpu()),
            bias=linear.bias is not None,
            device=dense.device,
            dtype=dense.dtype,
        )
        with torch.no_grad():
            layer.weight.copy_(dense[keep])
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return as_trainable(layer, linear).train(linear.training)

    def to_dense(self) -> nn.Linear:
        """Return the same function as a dense layer, zeros where there is no edge."""
        linear = nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        with torch.no_grad():
            linear.weight.zero_()
            site = self.pattern.rows().to(self.col.device)
            at = (site, self.col.long())  # a pattern may have an edge twice
            linear.weight.index_put_(at, self.edge_weight, accumulate=True)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        dense: nn.Linear = as_trainable(linear, self).train(self.training)
        return dense

    def reset_parameters(self) -> None:
        """Draw weights and biases uniformly within ``+-1 / sqrt(fan-in)`` of their output."""
        fan_in = self.row_ptr.diff()
        of_edge = fan_in.repeat_interleave(fan_in, output_size=self.col.numel())
        draw_uniform(self.edge_weight, of_edge.double())
        if self.bias is not None:
            draw_uniform(self.bias, fan_in.double())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., M]`` for ``[..., N]``."""
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            raise ShapeError(
                f"SparseLinear got an input of shape {list(x.shape)}; it must be "
                f"[..., {self.in_features} features]"
            )
        y = gather_matmul(
            x.reshape(math.prod(x.shape[:-1]), self.in_features, 1),
            self.edge_weight.view(-1, 1, 1),
            self.row_ptr,
            self.col,
            transpose=Edges(self.row_ptr_t, self.col_t, self.order_t),
        )
        if (bias := self.bias) is not None:
            y = add_to(y, bias.unsqueeze(1))
        return y.view(*x.shape[:-1], self.out_features)

    def _write_buffers(self, device: torch.device) -> None:
        for name, index in edge_buffers(self.pattern).items():
            self._put_buffer(name, index, device)

    def get_extra_state(self) -> Tensor:
        """Edges, packed into bytes: weights without them are worth nothing."""
        return pack_edges(self.pattern)

    def set_extra_state(self, state: Any) -> None:
        """Nothing is left to do: the edges were taken over before the weights."""

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.pattern!r}"
        )
