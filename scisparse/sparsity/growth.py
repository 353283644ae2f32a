"""Where new connections go: scores of candidates, larger = sooner.

A rule gets what is known of some candidates and returns one score each. It never sees more than a
chunk of rows at a time, so that no rule needs memory for all pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.integers import is_finite
from scisparse.sparsity import link_prediction
from scisparse.sparsity.link_prediction import Links

__all__ = [
    "Candidates",
    "Growth",
    "Rule",
    "cannistraci_hebb",
    "distance_prior",
    "gradient",
    "momentum",
    "named",
    "never_active_first",
    "preferential_attachment",
    "random",
    "superset",
]


@dataclass(frozen=True)
class Candidates:
    """What a rule may look at; tensors are ``[n]``, and ``None`` unless the rule needs them.

    Parameters
    ----------
    count
        How many candidates there are, n.
    generator
        Of random numbers, on the CPU.
    gradient
        Size of the loss's gradient with respect to the candidate's weight, which is 0 now;
        -infinity for a candidate that must not grow.
    momentum
        Size of the running mean of that gradient, likewise.
    distance
        Metres between site and source; ``None`` also where neither the pattern nor grids say so.
    explored
        Whether the candidate has been active before, booleans.
    site_degree, source_degree
        Edges that its site and its source have now, int64.
    site
        Number of the candidate's site, counted from the first site of this chunk, not of the
        layer, int64.
    links
        Edges that stay and ends of the candidates.
    block
        Weights of one edge, of which `gradient` is the root of the sum of squares.
    """

    count: int
    generator: torch.Generator
    gradient: Tensor | None = None
    momentum: Tensor | None = None
    distance: Tensor | None = None
    explored: Tensor | None = None
    site_degree: Tensor | None = None
    source_degree: Tensor | None = None
    site: Tensor | None = None
    links: Links | None = None
    block: int = 1


def _random(candidates: Candidates) -> Tensor:
    return torch.rand(candidates.count, generator=candidates.generator)


_Known = TypeVar("_Known", Tensor, Links)


def _need(values: _Known | None, what: str) -> _Known:
    if values is None:
        raise OptionError(f"this growth needs {what}, which the layer does not have")
    return values


@dataclass(frozen=True)
class Growth:
    """A rule and what it needs: costly things are made for rules that declare them.

    Parameters
    ----------
    name
        For messages.
    score
        Takes :class:`Candidates` and returns a score of each, ``[n]``, larger = sooner, -infinity
        or NaN for never. A call sees whole rows of a layer, not all of them. Of a dataclass that is
        called, states of a sparsifier hold the numbers, and resume with the same alone.
    needs_gradient
        Whether it reads ``gradient``: backward passes before a change are kept.
    needs_momentum
        Whether it reads ``momentum``: all backward passes are kept, and a number for each weight of
        all candidates.
    needs_explored
        Whether it reads ``explored``.
    needs_distance
        Whether it reads ``distance``, which layers over patterns alone have.
    needs_degrees
        Whether it reads ``site_degree`` and ``source_degree``.
    needs_sites
        Whether it reads ``site``, which layers over patterns alone have.
    needs_links
        Whether it reads ``links``.
    extra
        Above 0 weights keep their values while they are not in use, and for each one in use so many
        more are trained, see :func:`superset`; `score` is not called.
    penalty
        As there.
    draws
        Whether scores are random numbers: of taps and sites as wholes each then gets one, as the
        mean over many edges is never far from the middle.

    Examples
    --------
    >>> named("gradient").needs_gradient, named("random").needs_gradient
    (True, False)

    A rule of one's own, by gradient where sources are read seldom:

    >>> import torch
    >>> from scisparse.layers import SparseLinear
    >>> from scisparse.sparsity import Sparsifier
    >>> def seldom_read(candidates):
    ...     return candidates.gradient / (1 + candidates.source_degree)
    >>> rule = Growth("seldom_read", seldom_read, needs_gradient=True, needs_degrees=True)
    >>> layer = SparseLinear(16, 8, fan_in=4)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> sparsifier = Sparsifier(layer, optimizer, "rigl", growth=rule, total_steps=40)
    >>> for _ in range(3):
    ...     loss = (layer(torch.randn(32, 16)) - 1).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     sparsifier.step()
    >>> sparsifier.report().layers[0].churn > 0
    True
    """

    name: str
    score: Callable[[Candidates], Tensor]
    needs_gradient: bool = False
    needs_momentum: bool = False
    needs_explored: bool = False
    needs_distance: bool = False
    needs_degrees: bool = False
    needs_sites: bool = False
    needs_links: bool = False
    extra: float = 0.0
    penalty: float = 0.0
    draws: bool = False

    def evaluate(self, candidates: Candidates) -> Tensor:
        """Scores of candidates, checked; -infinity where a rule says NaN.

        Raises
        ------
        OptionError
            The rule does not return one score for each.
        """
        score: object = self.score(candidates)
        if not isinstance(score, Tensor) or score.shape != (candidates.count,):
            got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise OptionError(
                f"the rule of `growth` {self.name!r} returned {got} for {candidates.count} "
                f"candidates; return a tensor [{candidates.count}] of scores, and declare what it "
                "reads, such as Growth(name, rule, needs_gradient=True): all else is None"
            )
        return score.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


#: What may be given as a growth: a name, or a function of :class:`Candidates` that reads nothing
#: which a `Growth` would have to declare, or a `Growth`.
Rule: TypeAlias = str | Growth | Callable[[Candidates], Tensor]


def random() -> Growth:
    """Anywhere (SET).

    References
    ----------
    Mocanu, D. C., et al. (2018). https://doi.org/10.1038/s41467-018-04316-3
    """
    return Growth("random", _random, draws=True)


def gradient() -> Growth:
    """Where the loss would fall fastest: ``|dL/dw|`` (RigL).

    References
    ----------
    Evci, U., et al. (2020). https://doi.org/10.48550/arXiv.1911.11134
    """
    return Growth("gradient", lambda c: _need(c.gradient, "gradients"), needs_gradient=True)


def momentum() -> Growth:
    """Where the running mean of the gradient is largest (SNFS).

    References
    ----------
    Dettmers, T., Zettlemoyer, L. (2019). https://doi.org/10.48550/arXiv.1907.04840
    """
    return Growth("momentum", lambda c: _need(c.momentum, "a running mean"), needs_momentum=True)


def never_active_first() -> Growth:
    """Where no connection has ever been, by gradient; then the others (ITOP).

    References
    ----------
    Liu, S., et al. (2021). Do we actually need dense over-parameterization? In-time
    over-parameterization in sparse training. https://doi.org/10.48550/arXiv.2102.02887
    """

    def score(candidates: Candidates) -> Tensor:
        size = _need(candidates.gradient, "gradients").float()
        tiny = 1e-30  # sums over blocks stay finite: minus infinity is never chosen
        # Two ranges, each in the order of the gradient: no sum that would round it away.
        return torch.where(_need(candidates.explored, "a record"), -1 / (size + tiny), size)

    return Growth("never_active_first", score, needs_gradient=True, needs_explored=True)


def preferential_attachment() -> Growth:
    """Where connections are already: ``(site's edges + 1) * (source's edges + 1)``, times chance.

    Drawn without repetition with these probabilities (Efraimidis & Spirakis keys).

    References
    ----------
    Barabasi, A.-L., Albert, R. (1999). Emergence of scaling in random networks.
    https://doi.org/10.1126/science.286.5439.509

    Efraimidis, P. S., Spirakis, P. G. (2006). Weighted random sampling with a reservoir.
    https://doi.org/10.1016/j.ipl.2005.11.003
    """

    def score(candidates: Candidates) -> Tensor:
        site = _need(candidates.site_degree, "degrees")
        weight = (site + 1.0) * (_need(candidates.source_degree, "degrees") + 1.0)
        return _random(candidates).to(weight.device).log() / weight

    return Growth("preferential_attachment", score, needs_degrees=True)


def cannistraci_hebb() -> Growth:
    """Where short paths of connections that stay among themselves join both ends (CHT).

    The scores are those of :func:`~scisparse.sparsity.link_prediction.cannistraci_hebb`, without
    any gradient, for the edges that are left after dropping. Equal scores, such as the 0 of all
    pairs without a path, go by chance.

    References
    ----------
    Zhang, Y., Zhao, J., Wu, W., Muscoloni, A., Cannistraci, C. V. (2024). Epitopological learning
    and Cannistraci-Hebb network shape intelligence brain-inspired theory for ultra-sparse advantage
    in deep learning. ICLR. https://openreview.net/forum?id=iayEcORsGd
    """

    def score(candidates: Candidates) -> Tensor:
        at = _need(candidates.links, "links")
        found = link_prediction.cannistraci_hebb(at.row_ptr, at.col, at.sources, at.site, at.source)
        return link_prediction.break_ties(found, candidates.generator)

    return Growth("cannistraci_hebb", score, needs_links=True)


def distance_prior(scale: float) -> Growth:
    """By gradient, near candidates first: ``|dL/dw| * exp(-distance / scale)``.

    Distances are those of the pattern, such as one by ``patterns.radius`` or ``nearest``, or else
    those between the points of its grids.

    Parameters
    ----------
    scale
        Metres over which the prior falls by a factor of e.
    """
    if not is_finite(scale) or scale <= 0:
        raise OptionError(f"`scale` (={scale!r}) must be positive and finite, in metres")

    rule = _NearFirst(scale)
    return Growth("distance_prior", rule, needs_gradient=True, needs_distance=True)


@dataclass(frozen=True)
class _NearFirst:
    scale: float

    def __call__(self, candidates: Candidates) -> Tensor:
        if candidates.distance is None:
            raise OptionError(
                "this growth needs distances, which the layer does not have; build its pattern on "
                "a grid, or give them: Pattern.from_edge_index(..., distance=...)"
            )
        size = _need(candidates.gradient, "gradients")
        return size * torch.exp(-candidates.distance / self.scale)


def superset(extra: float = 1.0, penalty: float = 1e-4) -> Growth:
    """Of a larger set of weights, all trained, the best are used (Top-KAST).

    Weights that are not in use keep their values, and any may come back: no memory is saved while
    the model trains, and edges of pattern layers are those that the layer was built with. See
    :class:`scisparse.sparsity.reserve.ReserveTarget`.

    Parameters
    ----------
    extra
        Weights trained beyond those in use, as a fraction of them.
    penalty
        Strength of the decay that is added to the gradient: for weights in use as `weight_decay`
        of ``torch.optim.SGD``, for the others divided by the density.

    References
    ----------
    Jayakumar, S. M., Pascanu, R., Rae, J. W., Osindero, S., Elsen, E. (2020). Top-KAST: top-K
    always sparse training. https://doi.org/10.48550/arXiv.2106.03517
    """
    if not (is_finite(extra) and is_finite(penalty)) or extra <= 0 or penalty < 0:
        raise OptionError(
            f"`extra` (={extra!r}) must be above 0 and `penalty` (={penalty!r}) at least 0, both "
            "finite numbers"
        )
    return Growth("superset", _in_reserve, extra=extra, penalty=penalty)


def _in_reserve(candidates: Candidates) -> Tensor:
    raise OptionError("growth 'superset' chooses among weights, not among candidates without one")


BY_NAME: dict[str, Callable[[], Growth]] = {
    "random": random,
    "gradient": gradient,
    "momentum": momentum,
    "never_active_first": never_active_first,
    "preferential_attachment": preferential_attachment,
    "cannistraci_hebb": cannistraci_hebb,
    "superset": superset,
}


def named(growth: Rule) -> Growth:
    """Return the growth of a name, or of a function that needs nothing."""
    if isinstance(growth, Growth):
        return growth
    if callable(growth):
        return Growth(getattr(growth, "__name__", "function"), growth)
    if growth not in BY_NAME:
        from scisparse.names import choice

        raise OptionError(choice("growth", growth, [*BY_NAME, "distance_prior(scale)"]))
    return BY_NAME[growth]()
