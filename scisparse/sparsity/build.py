"""What a sparsifier works on, made for each weight that was found: a mask, or edges that move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from scisparse.errors import OptionError
from scisparse.layers.rewiring import match_edges
from scisparse.pattern import Pattern
from scisparse.sparsity import optimizer_state
from scisparse.sparsity.attended import AttentionTarget
from scisparse.sparsity.budgets import AreaWeighted, Budget, Regions
from scisparse.sparsity.candidates import AllPairs, CandidateEdges, Listed
from scisparse.sparsity.discovery import TRANSPOSED, Found
from scisparse.sparsity.edge_structures import SiteRows, for_pattern
from scisparse.sparsity.edge_units import units_of
from scisparse.sparsity.far import FarSlots
from scisparse.sparsity.gated import GatedTarget
from scisparse.sparsity.masked import MaskedTarget
from scisparse.sparsity.reserve import ReserveTarget
from scisparse.sparsity.rewired import RewiredTarget
from scisparse.sparsity.row_groups import RowGroups, groups_of_budget, row_groups
from scisparse.sparsity.structures import ConstantFanIn, Rows, Structure, Taps, Unstructured
from scisparse.sparsity.target import Rules, Target

__all__ = ["masked_target", "rewired_target"]


def masked_target(
    found: Found, structure: Structure, rules: Rules, budget: Budget, final: float | None
) -> Target:
    """Put a mask over a weight; a pattern layer loses and keeps whole edges.

    Parameters
    ----------
    found
        The weight.
    structure, rules, budget
        Of the sparsifier.
    final
        Sparsity at the end.
    """
    if found.attends:
        raise OptionError(
            f"{found.name} are edges without weights that could be pruned under a mask; choose a "
            "method that moves edges, such as 'rigl', or leave them out of `params`"
        )
    if isinstance(found.module, TRANSPOSED) and not isinstance(structure, Unstructured | Taps):
        raise OptionError(
            f"{structure!r} reads the rows of a weight as outputs, and those of {found.name} are "
            "inputs, as its convolution is transposed; choose 'unstructured' or 'taps', or leave "
            "it out of `params`"
        )
    if found.edges and isinstance(structure, ConstantFanIn):
        raise OptionError(
            f"{structure!r} needs a method that regrows on the edges of {found.name}; choose "
            "method='srigl', or structure='unstructured' to prune them"
        )
    if found.edges:
        _without_spares(found.module, rules)
    by_sites = isinstance(budget, Regions | AreaWeighted)
    if found.edges and by_sites:
        structure = _by_sites(found, structure, budget, final)
    elif hasattr(found.module, "pattern"):
        structure = for_pattern(structure, found.name, found.module, found.edges)
    where = (found.name, found.module, found.attribute, structure)
    if rules.importance.gating is not None:
        return GatedTarget(*where, rules.importance.gating, rules)
    return ReserveTarget(*where) if rules.reserve else MaskedTarget(*where)


def _by_sites(found: Found, structure: Structure, budget: Any, final: float | None) -> SiteRows:
    """Edges under a budget by sites."""
    if not isinstance(structure, Unstructured | Rows):
        raise OptionError(
            f"`budget` {type(budget).__name__} gives single edges to the sites of {found.name}, "
            f"and {structure!r} is more than that; leave one of the two out"
        )
    layer: Any = found.module
    pattern = layer.pattern.to("cpu")
    fan_in = pattern.fan_in
    return SiteRows(pattern.rows(), groups_of_budget(budget, fan_in, fan_in, pattern, final))


def _without_spares(layer: Any, rules: Rules) -> None:
    """Remove spare rows, which are no weights."""
    if layer.weight.shape[0] != layer.pattern.num_edges:
        optimizer_state.rewire(rules.optimizer, layer, layer.pattern)


def rewired_target(
    found: Found,
    structure: Structure,
    budget: Budget,
    rules: Rules,
    candidates: Pattern | Mapping[str, Pattern] | None,
    teleconnections: int = 0,
) -> Target:
    """Let the edges of a pattern layer move, or those alone that fill its far slots."""
    layer: Any = found.module
    if found.attends:
        if teleconnections and rules.growth is not None and rules.growth.needs_momentum:
            raise OptionError(
                f"the far slots of {found.name} are filled by what a single step tells surely, not "
                f"by running means; choose method='rigl' in place of growth={rules.growth.name!r}"
            )
        return _attention_target(found, structure, budget, candidates, teleconnections)
    _without_spares(layer, rules)
    edges = _candidates(found, candidates, teleconnections > 0)
    reference = edges.fan_in if isinstance(edges, AllPairs) else layer.pattern.fan_in
    rows = _rows(structure, budget, edges, reference, layer.pattern, teleconnections)
    ablation = structure if isinstance(structure, ConstantFanIn) and structure.ablation else None
    if isinstance(budget, Regions | AreaWeighted):
        ablation = None  # it says itself how many edges a site has
    units = units_of(structure, edges, found.name)
    target = RewiredTarget(found.name, layer, edges, *rows, ablation, units)
    target.gains = budget == "momentum"
    return target


def _rows(
    structure: Structure,
    budget: Budget,
    edges: CandidateEdges,
    fan_in: Tensor,
    pattern: Pattern,
    teleconnections: int,
) -> tuple[Tensor, RowGroups, FarSlots | None]:
    """Edges that sites have, which sites share them, and far slots, which replace both."""
    groups = row_groups(structure, budget, edges, fan_in, pattern)
    if not teleconnections:
        return fan_in, groups, None
    far = FarSlots(edges, pattern, teleconnections)
    return far.quota(), far.row_groups, far


def _attention_target(
    found: Found,
    structure: Structure,
    budget: Budget,
    candidates: Pattern | Mapping[str, Pattern] | None,
    teleconnections: int,
) -> Target:
    """Let the edges of an attention layer move, or those alone that fill its far slots."""
    layer: Any = found.module
    layer.check_rewirable()
    reads_taps = isinstance(structure, Taps)
    edges = _attended(found, _given(found, candidates), teleconnections, reads_taps)
    pattern = layer.pattern
    rows = _rows(structure, budget, edges, pattern.fan_in, pattern, teleconnections)
    units = units_of(structure, edges, found.name)
    return AttentionTarget(found.name, layer, edges, *rows, units=units)


def _attended(
    found: Found, given: Pattern | None, teleconnections: int, reads_taps: bool
) -> CandidateEdges:
    """Edges that an attention layer may have: any pair is one that a far slot may hold."""
    layer: Any = found.module
    if given is None and teleconnections:
        if layer.bias.knots or layer.bias.taps:
            reads = "distances" if layer.bias.knots else "taps"
            raise OptionError(
                f"`teleconnections` (={teleconnections}) may be any pair, and the scores of "
                f"{found.name} read {reads}, which not all pairs have; give `candidates` that have "
                "them, or build the layer without `Scores` of this kind"
            )
        return AllPairs(layer.pattern)
    given = layer.pattern if given is None else given
    repeats = any(p.statistics()["duplicates"] for p in (given, layer.pattern))
    if given.tap is not None and not (layer.bias.taps or reads_taps or repeats):
        # Nothing reads the taps, and a wider window numbers the same edges differently.
        given = replace(given, tap=None, tap_count=None, window=None)
    layer.bias.fit(given)
    return Listed(_with_own_edges(given, layer.pattern))


def _candidates(
    found: Found, candidates: Pattern | Mapping[str, Pattern] | None, far: bool
) -> CandidateEdges:
    layer: Any = found.module
    given = _given(found, candidates)
    if given is not None:
        return Listed(_with_own_edges(given, layer.pattern))
    if far or layer.weight.dim() == 1:  # of a linear layer any pair may be an edge
        return AllPairs(layer.pattern)
    return Listed(layer.pattern)


def _with_own_edges(given: Pattern, own: Pattern) -> Pattern:
    """Candidates with the edges that a layer has, which may stay."""
    if not bool((match_edges(given, own) < 0).any()):
        return given
    if (given.tap is None) != (own.tap is None):
        given, own = (replace(p, tap=None, tap_count=None, window=None) for p in (given, own))
    return given.union(own)


def _given(found: Found, candidates: Pattern | Mapping[str, Pattern] | None) -> Pattern | None:
    """Candidates that are given for a layer."""
    layer: Any = found.module
    given = candidates
    if isinstance(candidates, Mapping):
        given = candidates.get(found.path, candidates.get(found.name))
    if given is None:
        return None
    if not isinstance(given, Pattern) or given.shape != layer.pattern.shape:
        raise OptionError(
            f"`candidates` of {found.name} is {given!r}; give a Pattern of "
            f"{layer.pattern.shape} sites x sources, or a dict of layer name to Pattern"
        )
    return given.to("cpu")
