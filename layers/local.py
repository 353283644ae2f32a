"""Locally connected layers: a stencil whose weights may differ from site to site."""

from __future__ import annotations

import contextlib
import hashlib
import math
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from scisparse.errors import PatternError, ShapeError
from scisparse.kernels.gather_matmul import Edges, gather_matmul
from scisparse.layers.base import (
    PatternLayer,
    as_trainable,
    carry_over,
    check_channels,
    draw_uniform,
    group_mean,
)
from scisparse.layers.convolution import convolve, is_convolution
from scisparse.layers.rewiring import Rewirable, check_parameters, checked_pattern, pack_edges
from scisparse.layers.smoothness import WeightCouplings, couple_weights, roughness
from scisparse.memory import check_fits
from scisparse.pattern import Pattern
from scisparse.pattern.edges import index_dtype
from scisparse.tying import (
    Tie,
    Tying,
    parents,
    refine,
    site_shape,
    split_channels,
    tie_edges,
    tie_name,
)

__all__ = ["LocallyConnected"]


class LocallyConnected(Rewirable, PatternLayer):
    """Locally connected layer over any pattern: sites have own stencils, or share them by `tie`.

    ``y[b,i,o] = bias[group(i),o] + sum_{e in row i} sum_c x[b,col[e],c] * weight[tie[e],c,o]``

    With ``tie="all"`` on a regular window this is a convolution and runs as torch's own; each
    further rung of the ladder (``"longitude"``, region labels, ``None``) shares less, and
    :meth:`untie` climbs it exactly. Sites without edges, such as masked cells, store no weights and
    give 0; on a window without a mask, sites that read only padding give their bias, as in torch's
    convolutions.

    Parameters
    ----------
    pattern
        Who reads whom, M sites and N sources.
    in_channels, out_channels
        C and O.
    tie
        ``None``: own weights on every edge. ``"longitude"``: shared along longitude. ``"all"``: one
        weight a tap. Or region labels, one a site, also in the shape of the sites or a DataArray.
    bias
        ``True``: one bias for each group of sites that `tie` makes (with ``tie=None``: one a site);
        ``"site"``; ``"shared"``; ``False``.
    groups
        Channels come in this many groups that do not mix.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    weight
        ``[T, C, O]``, with ``tie=None`` in the order of the edges, ``[E, C, O]``; with `groups`,
        ``[T * groups, C / groups, O / groups]``.
    bias
        ``[number of site groups, O]`` or ``None``.

    Shapes
    ------
    Input ``[..., N, C]``, output ``[..., M, O]``.

    Raises
    ------
    ShapeError
        Channels or `groups` are no positive integers, `groups` does not divide them, or there is
        not one label a site.
    OptionError
        `tie` or `bias` is not one of the above.
    PatternError
        `pattern` is not a Pattern, or lacks the taps or the latitudes that `tie` needs.
    MemoryLimitError
        The weights would not fit in memory; says how many bytes they need and which `tie` would
        fit.

    References
    ----------
    Gregor, K., LeCun, Y. (2010). Emergence of complex-like cells in a temporal product network with
    local receptive fields. https://doi.org/10.48550/arXiv.1006.0448

    Examples
    --------
    >>> import torch
    >>> from scisparse.patterns import window
    >>> pattern = window((4, 6), 3, padding=1, padding_mode=("zeros", "circular"))
    >>> layer = LocallyConnected(pattern, 2, 5)
    >>> layer(torch.randn(8, 24, 2)).shape
    torch.Size([8, 24, 5])
    >>> layer.weight.shape
    torch.Size([180, 2, 5])
    """

    row_ptr: Tensor
    col: Tensor
    tie_index: Tensor | None
    row_ptr_t: Tensor
    col_t: Tensor
    tie_index_t: Tensor

    def __init__(
        self,
        pattern: Pattern,
        in_channels: int,
        out_channels: int,
        *,
        tie: Tie = None,
        bias: bool | str = True,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_channels(in_channels, out_channels, groups)
        pattern = checked_pattern(pattern)
        tying = tie_edges(pattern, tie)
        super().__init__(pattern, tying, bias)
        self.built_on = pattern  # its window, which knows the shapes, is lost with the first edge
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        like = torch.empty(0, device=device, dtype=dtype)
        block = (in_channels // groups, out_channels // groups)
        _check_memory(pattern, tying, math.prod(block) * groups, bias, out_channels, like)
        self.weight = nn.Parameter(like.new_empty(tying.num_weights * groups, *block))
        self._finish(tying, like, out_channels)
        self.reset_parameters()

    def _indices(self, tying: Tying) -> dict[str, Tensor | None]:
        self._couplings: WeightCouplings | None = None
        pattern, tying_split = split_channels(self.pattern, tying, self.groups)
        transposed, order = pattern.transpose()
        # Numbers of weights can pass 32 bits where those of sources do not.
        dtype = index_dtype(max(pattern.num_edges, tying_split.num_weights))
        edge = tying_split.edge
        return {
            "row_ptr": pattern.row_ptr,
            "col": pattern.col,
            "tie_index": None if edge is None else edge.to(dtype),
            "row_ptr_t": transposed.row_ptr,
            "col_t": transposed.col,
            "tie_index_t": (order if edge is None else edge[order]).to(dtype),
        }

    def _site_groups(self, tying: Tying) -> Tensor:
        # Sites that a rewiring leaves without edges go on with their bias.
        if not self.rewired:
            self._built_groups = super()._site_groups(tying)
        return self._built_groups

    def check_rewirable(self) -> None:
        """Raise unless every edge has a weight of its own."""
        if self.tie is not None or self.groups != 1:
            raise PatternError(
                f"a layer with tie={tie_name(self.tie)} and groups={self.groups} cannot be "
                "rewired; its edges need weights of their own: build it with tie=None and groups=1"
            )

    def reset_parameters(self) -> None:
        """Draw weights and biases uniformly within ``+-1 / sqrt(C * fan-in)``, as torch does.

        The fan-in is the true one of the site: fewer edges at the rim, other weights. A weight or
        bias that sites share takes the mean of their fan-ins.
        """
        fan_in = self.row_ptr.diff()
        of_edge = fan_in.repeat_interleave(fan_in, output_size=self.col.numel()).double()
        if self.tie_index is not None:
            of_edge = group_mean(of_edge, self.tie_index.long(), self.weight.shape[0])
        channels = self.weight.shape[1]
        draw_uniform(self.weight, of_edge * channels)
        if self.bias is not None:
            count = self.bias.shape[0]
            of_site = fan_in[:: self.groups].double()
            draw_uniform(self.bias, group_mean(of_site, self.site_group, count + 1)[:-1] * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., M, O]`` for ``[..., N, C]``."""
        if x.dim() < 2 or x.shape[-2:] != (self.pattern.num_sources, self.in_channels):
            raise ShapeError(
                f"{type(self).__name__} got an input of shape {list(x.shape)}; it must be "
                f"[..., {self.pattern.num_sources} sources, {self.in_channels} channels]"
            )
        batch = x.shape[:-2]
        y = self._gather(x.reshape(math.prod(batch), *x.shape[-2:]))
        return y.reshape(*batch, self.pattern.num_sites, self.out_channels)

    def _gather(self, x: Tensor) -> Tensor:
        """Apply the layer to ``[B, N, C]``."""
        window = self.pattern.window
        if window is not None and self.runs_as_convolution:
            return self._add_bias(convolve(x, self.weight, window, self.groups))
        batch, sources, _ = x.shape
        y = gather_matmul(
            x.reshape(batch, sources * self.groups, self.weight.shape[1]),
            self.edge_weight if self.rewired else self.weight,
            self.row_ptr,
            self.col,
            self.tie_index,
            transpose=Edges(self.row_ptr_t, self.col_t, self.tie_index_t),
        )
        if self.groups > 1:
            y = y.view(batch, self.pattern.num_sites, self.out_channels)
        return self._add_bias(y)

    @property
    def runs_as_convolution(self) -> bool:
        """Whether torch's convolution runs: ``tie="all"`` on a regular window without a mask."""
        window = self.pattern.window
        tied = isinstance(self.tie, str) and self.tie == "all"
        return tied and window is not None and is_convolution(window)

    def untie(self, to: Tie = None) -> Self:
        """Return the same function with weights shared less: one or more rungs up the ladder.

        Parameters
        ----------
        to
            The finer tie; as the argument `tie`.

        Returns
        -------
        LocallyConnected
            A new layer with copied parameters that gives the same output.

        Raises
        ------
        PatternError
            `to` does not refine the tie of this layer, or torch computes weights or biases from
            other tensors: parametrized, normed or pruned ones.

        Examples
        --------
        >>> from scisparse.patterns import window
        >>> layer = LocallyConnected(window((4, 6), 3, padding=1), 1, 1, tie="all")
        >>> zonal, untied = layer.untie("longitude"), layer.untie()
        >>> layer.weight.shape[0], zonal.weight.shape[0], untied.weight.shape[0]
        (9, 30, 160)
        """
        check_parameters(self, "weight", "bias")
        refine(
            tie_edges(self.pattern, self.tie), tie_edges(self.pattern, to), self.pattern.num_edges
        )
        finer = self._with_tie(to)
        index, finer_index = self.weight_of_edges(), finer.weight_of_edges()
        with torch.no_grad():
            finer.weight.copy_(self.weight[parents(index, finer_index, finer.weight.shape[0])])
            if self.bias is not None and finer.bias is not None:
                # The last group is of the sites without edges: it has no bias.
                group = parents(self.site_group, finer.site_group, finer.bias.shape[0] + 1)[:-1]
                finer.bias.copy_(self.bias[group])
        return as_trainable(finer, self)

    def _with_tie(self, tie: Tie) -> Self:
        """Layer of the same class with another tie, its parameters not yet copied."""
        layer: Any = LocallyConnected(
            self.pattern,
            self.in_channels,
            self.out_channels,
            tie=tie,
            bias=self.bias_mode,
            groups=self.groups,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        if self.rewired:
            for name in ("rewired", "built_on", "_built_groups"):
                setattr(layer, name, getattr(self, name))
            layer._write_buffers(layer.weight.device)
        # Subclasses take other arguments, and may keep more than the pattern says.
        layer.__class__ = type(self)
        carry_over(self, layer)
        return cast(Self, layer.train(self.training))

    def weight_of_edges(self) -> Tensor:
        """Row of :attr:`weight` for each edge, int64 ``[E * groups]``, by site, group, source."""
        if self.tie_index is not None:
            return self.tie_index.long()
        return torch.arange(self.col.numel(), device=self.col.device)

    def smoothness(self) -> Tensor:
        """Return the roughness of the weights: a graph Laplacian over neighbouring sites.

        ``sum over neighbours i, j and taps k of g[i,j] * |weight[i,k] - weight[j,k]|^2 / M``

        On grids with coordinates ``g`` is the length of the cells' common face over the distance of
        their centres, so that the sum is the integral of the squared gradient, right across the
        date line and at the poles, where faces shrink to nothing; on index spaces ``g`` is 1. Add
        it to a loss to keep untied weights from following noise.

        Returns
        -------
        Tensor
            A scalar, 0 for weights that are the same everywhere.

        Raises
        ------
        PatternError
            The pattern has no taps, or sites without rows and columns.

        Examples
        --------
        >>> from scisparse.patterns import window
        >>> layer = LocallyConnected(window((2,), 1), 1, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[[1.0]], [[4.0]]]))
        >>> layer.smoothness().item()
        4.5
        """
        held = self._couplings
        if held is None or held.col.device != self.weight.device:
            held = couple_weights(self.pattern, self.tie, self.groups, sites=self.built_on)
            held = self._couplings = held.to(self.weight.device)
        return roughness(self.weight, held) / max(1, self.pattern.num_sites)

    def get_extra_state(self) -> Tensor:
        """Fingerprints of pattern and tie, so that weights never load onto others, ``[64]``.

        The edges of a rewired layer follow, packed into bytes.
        """
        digests = bytes.fromhex(self.pattern.fingerprint) + _tie_digest(self.tie)
        state = torch.tensor(list(digests), dtype=torch.uint8, device="cpu")
        return torch.cat([state, pack_edges(self.pattern)]) if self.rewired else state

    def _saved_edges(self, extra_state: Tensor) -> Tensor | None:
        if extra_state.numel() > 64:
            return extra_state[64:]
        # Of edges that never moved there is the fingerprint: the layer knows those of its start.
        start = self.rewired and bytes(extra_state[:32].tolist()).hex() == self.built_on.fingerprint
        return pack_edges(self.built_on) if start else None

    def set_extra_state(self, state: Any) -> None:
        """Check the fingerprints of the pattern and the tie that the weights were trained with."""
        digests = bytes(state[:64].tolist())
        back = self.rewired and torch.equal(pack_edges(self.pattern), pack_edges(self.built_on))
        known = self.pattern.fingerprint, self.built_on.fingerprint if back else None
        if digests[:32].hex() not in known:
            shared = isinstance(self.tie, str) and self.tie == "all"
            by_tap = ", or copy its parameters one by one: tie='all' has them by tap"
            raise PatternError(
                f"the saved weights belong to another pattern than this layer's {self.pattern!r}; "
                "build the layer on the pattern (grid, mask, stencil) it was trained on"
                f"{by_tap if shared else ''}"
            )
        if digests[32:64] != _tie_digest(self.tie):
            raise PatternError(
                f"the saved weights are tied otherwise than this layer's, {tie_name(self.tie)}; "
                "build the layer with the `tie` (word or labels) it was trained with"
            )

    def extra_repr(self) -> str:
        """Sizes and tie, for ``print(layer)``."""
        groups = f", groups={self.groups}" if self.groups != 1 else ""
        return (
            f"{self.in_channels}, {self.out_channels}, {tie_name(self.tie)}, "
            f"bias={self.bias_mode!r}{groups}, {self.pattern!r} in {site_shape(self.built_on)}"
        )


def _check_memory(
    pattern: Pattern,
    tying: Tying,
    channels: int,
    bias: bool | str,
    out_channels: int,
    like: Tensor,
) -> None:
    def size(tying: Tying) -> int:
        biases = {True: tying.num_groups, "site": pattern.num_sites, "shared": 1}.get(bias, 0)
        numbers = tying.num_weights * channels + biases * out_channels
        return numbers * like.element_size()

    def remedies() -> dict[str, int]:
        found = {}
        for tie in ("longitude", "all"):
            with contextlib.suppress(PatternError):  # a tie that the pattern lacks is no remedy
                found[tie_name(tie)] = size(tie_edges(pattern, tie))
        return found

    check_fits(size(tying), like.device, remedies)


def _tie_digest(tie: Tie) -> bytes:
    """SHA-256 of a tie as layers keep it."""
    labels = tie.numpy().tobytes() if isinstance(tie, Tensor) else b""
    return hashlib.sha256(tie_name(tie).encode() + labels).digest()
