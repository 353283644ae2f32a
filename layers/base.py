"""What layers over a pattern share: index buffers that follow from it, and a bias of the sites."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scisparse.errors import OptionError, ShapeError
from scisparse.grids.integers import integer_from
from scisparse.kernels._modes import is_transformed
from scisparse.layers.buffers import OwnBuffers
from scisparse.pattern import Pattern
from scisparse.tying import Tying, tie_edges

__all__ = [
    "PatternLayer",
    "add_to",
    "as_trainable",
    "carry_over",
    "check_channels",
    "draw_uniform",
    "group_mean",
]

_Layer = TypeVar("_Layer", bound=nn.Module)
_BIAS_MODES = (True, False, "site", "shared")


class PatternLayer(OwnBuffers):
    """Module over a pattern, with a bias for groups of sites.

    The pattern stays on the CPU; what it says is copied into buffers beside the parameters.

    Parameters
    ----------
    pattern
        Who reads whom, M sites and N sources, on the CPU.
    tying
        Its edges that share a weight, and its sites that share a bias.
    bias
        ``True``: one bias for each group of sites in `tying`; ``"site"``; ``"shared"``; ``False``.

    Raises
    ------
    OptionError
        `bias` is something else.
    """

    bias: nn.Parameter | None
    site_group: Tensor

    def __init__(self, pattern: Pattern, tying: Tying, bias: bool | str) -> None:
        super().__init__()
        if bias not in _BIAS_MODES:
            raise OptionError(f"`bias` is {bias!r}; choose True, 'site', 'shared' or False")
        self.pattern, self.tie, self.bias_mode = pattern, tying.tie, bias

    def _finish(self, tying: Tying, like: Tensor, channels: int) -> None:
        """Allocate the bias ``[G, channels]`` and write the index buffers, where `like` lies."""
        sizes = {True: tying.num_groups, "site": self.pattern.num_sites, "shared": 1}
        size = sizes.get(self.bias_mode)
        self.bias = None if size is None else nn.Parameter(like.new_empty(size, channels))
        self._write_indices(tying, like.device)

    def _write_indices(self, tying: Tying, device: torch.device) -> None:
        group = self._site_groups(tying)
        self._bias_fits = self.bias is not None and _broadcasts(group, self.bias.shape[0])
        for name, index in ({"site_group": group} | self._indices(tying)).items():
            self._put_buffer(name, index, device)

    def _indices(self, tying: Tying) -> dict[str, Tensor | None]:
        """Further index buffers, by name."""
        return {}

    def _site_groups(self, tying: Tying) -> Tensor:
        """Bias of each site, int64 ``[M]``; G, which stands for 0, where a site has no edges.

        On a regular window, sites that read padding alone have a bias, as in torch's convolutions.
        """
        group = tying.group
        if self.bias_mode == "site":
            group = torch.arange(len(group), device=group.device)
        elif self.bias_mode == "shared":
            group = torch.zeros_like(group)
        if self.bias is None or self.pattern.window is not None:
            return group
        return group.masked_fill(self.pattern.fan_in == 0, self.bias.shape[0])

    def _write_buffers(self, device: torch.device) -> None:
        self._write_indices(tie_edges(self.pattern, self.tie), device)

    def _add_bias(self, y: Tensor) -> Tensor:
        """Add to the sites ``[..., M, O]``, fresh from an operator, their biases."""
        if self.bias is None:
            return y
        bias: Tensor = self.bias
        if not self._bias_fits:
            # One row of zeros past the last group, for the sites without edges.
            bias = F.pad(bias, (0, 0, 0, 1)).index_select(0, self.site_group)
        return add_to(y, bias)


def add_to(y: Tensor, bias: Tensor) -> Tensor:
    """Add `bias` to `y`, fresh from an operator: in its own memory where that is possible.

    A compiler fuses the sum better, ``torch.vmap`` over biases alone would write many results into
    one, the gradient of a view that was written to is a copy, and a mode may hold on to what the
    operator returned, as selective checkpoints do.
    """
    if bias.dtype != y.dtype:
        bias = bias.to(y.dtype)
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    if watched or is_transformed() or y._is_view():
        return y + bias
    return y.add_(bias)


def check_channels(in_channels: int, out_channels: int, groups: int = 1) -> None:
    """Raise unless these are positive integers, and `groups` divides the channels."""
    channels = {"in_channels": in_channels, "out_channels": out_channels}
    for name, value in (channels | {"groups": groups}).items():
        integer_from(name, value, 1, ShapeError)
    for name, value in channels.items():
        if value % groups:
            raise ShapeError(f"`{name}` (={value}) must be divisible by `groups` (={groups})")


def as_trainable(layer: _Layer, like: nn.Module) -> _Layer:
    """Return a layer whose parameters are frozen where those of another are."""
    for name, parameter in layer.named_parameters(recurse=False):
        # Not get_parameter: pruned and parametrized layers compute theirs.
        parameter.requires_grad_(getattr(like, name).requires_grad)
    return layer


def carry_over(layer: nn.Module, to: nn.Module) -> None:
    """Copy to a layer what another one has and it lacks: what a subclass has added."""
    state: dict[str, Any] = layer.__getstate__()
    memo: dict[int, Any] = {}
    for kind in ("_parameters", "_buffers", "_modules"):
        _add_missing(getattr(to, kind), state[kind], memo)
    _add_missing(to.__dict__, state, memo)
    to._non_persistent_buffers_set |= layer._non_persistent_buffers_set


def _add_missing(to: dict[str, Any], values: dict[str, Any], memo: dict[int, Any]) -> None:
    to |= {name: copy.deepcopy(value, memo) for name, value in values.items() if name not in to}


def _broadcasts(group: Tensor, num_groups: int) -> bool:
    """Whether one bias serves all sites, or each site has its own in order: no lookup is due."""
    if num_groups == 1:
        return not bool(group.any())
    return torch.equal(group, torch.arange(num_groups, device=group.device))


def draw_uniform(parameter: Tensor, fan_in: Tensor) -> None:
    """Draw each row of `parameter` uniformly within ``+-1 / sqrt(fan_in)``, as torch's layers do.

    Parameters
    ----------
    parameter
        ``[T, ...]``, written in place.
    fan_in
        Inputs that are summed with each row, float64 ``[T]``.
    """
    bound = fan_in.clamp(min=1).rsqrt().to(parameter.dtype)
    with torch.no_grad():
        parameter.uniform_(-1, 1).mul_(bound.view(-1, *[1] * (parameter.dim() - 1)))


def group_mean(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Mean of ``[n]`` over the members of each group, ``[num_groups]``; 0 for an empty group."""
    total = values.new_zeros(num_groups).index_add_(0, group, values)
    count = values.new_zeros(num_groups).index_add_(0, group, torch.ones_like(values))
    return total / count.clamp(min=1)
