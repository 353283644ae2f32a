"""Locally connected layer whose stencils are mixtures of a few shared ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.grids.integers import integer_from
from scisparse.layers.base import PatternLayer, check_channels
from scisparse.layers.local import LocallyConnected
from scisparse.layers.rewiring import checked_pattern
from scisparse.memory import check_fits
from scisparse.pattern import Pattern
from scisparse.tying import Tie, tie_edges

__all__ = ["LowRankLocallyConnected"]


class LowRankLocallyConnected(PatternLayer):
    """Locally connected layer of low rank (Elsayed et al. 2020): sites mix `rank` shared stencils.

    ``y[b,i,o] = bias[i,o] + sum_{e in row i,c,r} mixing[i,r] * basis[r,tap,c,o] * x[b,col[e],c]``

    where ``tap`` is that of edge ``e``. With ``rank=1`` it is a convolution scaled at each site;
    with ``rank = K * C * O`` stencils of K taps it could be any untied layer. :meth:`untie` goes
    there exactly.

    Parameters
    ----------
    pattern
        Who reads whom; it needs taps.
    in_channels, out_channels
        C and O.
    rank
        Number of shared stencils.
    bias
        ``True`` or ``"site"``: one a site; ``"shared"``; ``False``.
    device, dtype
        Of the parameters.

    Shapes
    ------
    Input ``[..., N, C]``, output ``[..., M, O]``.

    Raises
    ------
    OptionError
        `rank` is no integer, or below 1.
    ShapeError
        Channels are no positive integers.
    PatternError
        The pattern has no taps.
    MemoryLimitError
        The weights would not fit in memory; says which `rank` would.

    References
    ----------
    Elsayed, G., Ramachandran, P., Shlens, J., Kornblith, S. (2020).
    Revisiting spatial invariance with low-rank local connectivity.
    https://doi.org/10.48550/arXiv.2002.02959

    Examples
    --------
    >>> import torch
    >>> from scisparse.patterns import window
    >>> layer = LowRankLocallyConnected(window((4, 6), 3, padding=1), 2, 5, rank=2)
    >>> layer(torch.randn(8, 24, 2)).shape
    torch.Size([8, 24, 5])
    """

    def __init__(
        self,
        pattern: Pattern,
        in_channels: int,
        out_channels: int,
        rank: int,
        *,
        bias: bool | str = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        rank = integer_from("rank", rank, 1, OptionError)
        check_channels(in_channels, out_channels)
        pattern = checked_pattern(pattern)
        tying = tie_edges(pattern, None)
        super().__init__(pattern, tying, bias)
        self.in_channels, self.out_channels, self.rank = in_channels, out_channels, rank
        like = torch.empty(0, device=device, dtype=dtype)
        stencil = pattern.num_taps * in_channels * out_channels
        _check_memory(rank, stencil + pattern.num_sites, like)
        self.basis = LocallyConnected(
            pattern,
            in_channels,
            rank * out_channels,
            tie="all",
            bias=False,
            device=device,
            dtype=dtype,
        )
        self.mixing = nn.Parameter(like.new_empty(pattern.num_sites, rank))
        self._finish(tying, like, out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the basis as a convolution; sites start alike, but for a tenth of noise.

        The noise tells the stencils apart.
        """
        self.basis.reset_parameters()
        # So many independent stencils, each with this factor, have the variance of one.
        scale = self.rank**-0.5
        nn.init.normal_(self.mixing, scale, 0.1 * scale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., M, O]`` for ``[..., N, C]``."""
        mixed = self.basis(x).unflatten(-1, (self.rank, self.out_channels))
        y = torch.einsum("...mro,mr->...mo", mixed, self.mixing.to(mixed.dtype))
        return self._add_bias(y)

    def untie(self, to: Tie = None) -> LocallyConnected:
        """Return the same function as a layer with own weights on every edge.

        Raises
        ------
        OptionError
            `to` is not ``None``: mixtures differ from site to site.
        """
        if to is not None:
            raise OptionError(
                f"`to` is {to!r}; it must be None: the stencils of a low-rank layer differ at "
                "every site"
            )
        layer = LocallyConnected(
            self.pattern,
            self.in_channels,
            self.out_channels,
            bias=self.bias_mode,
            device=self.mixing.device,
            dtype=self.mixing.dtype,
        )
        site = self.pattern.rows().to(self.mixing.device)
        tap = self.basis.weight_of_edges()
        stencils = torch.unflatten(self.basis.weight, -1, (self.rank, self.out_channels))
        with torch.no_grad():
            layer.weight.zero_()
            # One stencil at a time: all at once would take `rank` times the memory of the weights.
            for r in range(self.rank):
                layer.weight.addcmul_(stencils[tap, :, r], self.mixing[site, r, None, None])
            if self.bias is not None and layer.bias is not None:
                layer.bias.copy_(self.bias)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return f"{self.in_channels}, {self.out_channels}, rank={self.rank}, bias={self.bias_mode!r}"


def _check_memory(rank: int, numbers: int, like: Tensor) -> None:
    """Raise unless `rank` times so many numbers fit in memory."""
    size = numbers * like.element_size()

    def remedies() -> dict[str, int]:
        return {f"rank={smaller}": smaller * size for smaller in (1, 8, 64) if smaller < rank}

    check_fits(rank * size, like.device, remedies)
