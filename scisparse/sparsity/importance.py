"""Which connections go: rules for scores of active weights, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.integers import is_finite
from scisparse.names import choice
from scisparse.sparsity import curvature, probes, scores

__all__ = [
    "Gating",
    "Importance",
    "NoGradientError",
    "Score",
    "area_weighted",
    "hard_concrete",
    "named",
]


@dataclass(frozen=True)
class Gating:
    """How gates are trained; see :func:`hard_concrete`."""

    open_probability: float
    learning_rate: float
    price_rate: float


@dataclass(frozen=True)
class Importance:
    """A score of weights and what it needs.

    Parameters
    ----------
    name
        For messages and recipes.
    score
        Takes the weights and the gradient of the loss (``None`` unless needed), both of one shape,
        and returns scores of it, larger = kept.
    needs_gradient
        Whether it reads the gradient.
    sums
        Whether the scores of all steps are added up; else that of the step of the change counts.
    gating
        Of a score that is learned with gates, which `score` does not know.
    by_area
        Whether scores of pattern layers are multiplied by the area of the site's cell.
    by_name
        Scores by the name of the weight, in place of `score`.
    draws
        Whether they are random numbers, of the generator that a sparsifier has.
    block
        Above 0 outer products of gradients are added up, in blocks of so many consecutive weights,
        and not `score`.
    of_sums
        Takes the weights and what has been added up, and returns the scores; ``None``: the sums are
        the scores, or give those of ``curvature.surgeon_of_sums`` in blocks.
    """

    name: str
    score: Callable[[Tensor, Tensor | None], Tensor]
    needs_gradient: bool = False
    sums: bool = False
    gating: Gating | None = None
    by_area: bool = False
    by_name: Mapping[str, Tensor] | None = None
    draws: bool = False
    block: int = 0
    of_sums: Callable[[Tensor, Tensor], Tensor] | None = None

    def share(
        self,
        weight: Tensor,
        gradient: Tensor,
        generator: torch.Generator | None = None,
        *,
        of: str = "a weight",
    ) -> Tensor:
        """What a step adds to the sums; see :meth:`evaluate`."""
        if self.block:
            return curvature.outer_products(gradient, self.block)
        return self.evaluate(weight, gradient, generator, of=of)

    def of_sum(self, weight: Tensor, total: Tensor) -> Tensor:
        """Scores of weights, from the sums."""
        if self.of_sums is not None:
            return self.of_sums(weight, total)
        return curvature.surgeon_of_sums(weight, total) if self.block else total

    def forget(self, total: Tensor, weights: Tensor) -> None:
        """Set to 0 what sums hold of some `weights`, booleans of their shape."""
        if not self.block:
            total.masked_fill_(weights, 0)
            return
        cut = curvature.cut(weights.flatten(), total.shape[-1])
        total.masked_fill_(cut.unsqueeze(-1) | cut.unsqueeze(-2), 0)

    def evaluate(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        generator: torch.Generator | None = None,
        *,
        of: str = "a weight",
    ) -> Tensor:
        """Scores of weights, checked; `of` is what they are called.

        Raises
        ------
        OptionError
            The function does not return one score for each weight.
        NoGradientError
            It reads the gradient, and there is none.
        """
        if self.draws:
            return scores.random(weight, generator)
        try:
            score: object = self.score(weight, gradient)
        except (NoGradientError, AttributeError, TypeError) as error:
            if gradient is not None or not self.needs_gradient:
                raise
            own = "" if isinstance(error, NoGradientError) else f" (it raised: {error})"
            raise NoGradientError(
                f"the score {self.name!r} reads the gradient of {of}, and there is none{own}: call "
                "loss.backward() before sparsifier.step(), or before building a sparsifier that "
                "prunes at once, and optimizer.zero_grad() after it; leave weights that take no "
                "part in the loss out of `params`, or choose score='magnitude'"
            ) from error
        if not isinstance(score, Tensor) or score.shape != weight.shape:
            got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise OptionError(
                f"the function of `score` {self.name!r} returned {got} for weights "
                f"{list(weight.shape)}; return a tensor of that shape, larger = kept"
            )
        return score

    def check(self, score: Tensor, *, of: str) -> None:
        """Raise unless these scores can be ranked; `of` is what the weights are called.

        Raises
        ------
        OptionError
            Some are NaN or minus infinity.
        """
        bad = int((~(score > -torch.inf)).sum())
        if bad:
            raise OptionError(
                f"{bad} of {score.numel()} scores {self.name!r} of {of} are NaN or -infinity and "
                "cannot be ranked; return finite numbers, larger = kept"
            )


#: What `score` of a sparsifier may be: a name, a rule, a function of weights and gradients, or
#: scores of weights by their names.
Score: TypeAlias = str | Importance | Callable[..., Tensor] | Mapping[str, Tensor]


class NoGradientError(OptionError):
    """A score has to read a gradient that is not there."""


def _needed(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise NoGradientError("this score needs gradients: call loss.backward() before the step")
    return gradient


def mest(weight: Tensor, gradient: Tensor, share: float = 0.01) -> Tensor:
    """Size of a weight and of where it is going: ``|w| + share * |dL/dw|`` (MEST).

    References
    ----------
    Yuan, G., et al. (2021). MEST: accurate and fast memory-economic sparse training framework on
    the edge. https://doi.org/10.48550/arXiv.2110.14032
    """
    going = scores.widen_as(weight, "gradient", gradient).abs()
    return scores.magnitude(weight) + share * going


def _of_blocks(weight: Tensor, gradient: Tensor | None) -> Tensor:
    raise OptionError("this score is made of sums over steps, not of weights and a gradient")


def _of_gates(weight: Tensor, gradient: Tensor | None) -> Tensor:
    raise OptionError("the score 'hard_concrete' is learned with gates, not made of weights")


def hard_concrete(
    *, open_probability: float = 0.9, learning_rate: float = 0.1, price_rate: float = 0.1
) -> Importance:
    """How open learned gates are (L0); see :class:`scisparse.sparsity.gated.GatedTarget`.

    Parameters
    ----------
    open_probability
        Probability at first, in (0, 1), that a gate is not 0.
    learning_rate
        Of the gates, which an Adam of their own trains: the most that their log odds move in a
        step.
    price_rate
        What the price of an open gate, in units of the loss, rises by in a step in which all
        weights are open and none should be.

    References
    ----------
    Louizos, C., Welling, M., Kingma, D. P. (2018). Learning sparse neural networks through L0
    regularization. https://doi.org/10.48550/arXiv.1712.01312
    """
    rates = (learning_rate, price_rate)
    if not all(is_finite(rate) and rate > 0 for rate in rates):
        raise OptionError(
            f"`learning_rate` (={learning_rate!r}) and `price_rate` (={price_rate!r}) must be "
            "positive and finite"
        )
    if not is_finite(open_probability) or not 0 < open_probability < 1:
        raise OptionError(
            f"`open_probability` (={open_probability!r}) must lie strictly between 0 and 1"
        )
    gating = Gating(open_probability, learning_rate, price_rate)
    return Importance("hard_concrete", _of_gates, gating=gating)


def area_weighted(score: Score = "magnitude") -> Importance:
    """Weight a score by the area of the cell that a site of a pattern layer stands for.

    On a grid of latitudes, a loss that is a mean over the sphere counts a cell near the pole less
    than its weights tell. Areas are in units of their mean; dense layers keep their scores.

    Parameters
    ----------
    score
        A name or a function, as for :class:`scisparse.Sparsifier`, of scores that are at least 0.

    Examples
    --------
    >>> area_weighted("taylor").name
    'taylor by area'
    """
    rule = named(score)
    if rule.gating is not None or rule.name == "movement":
        raise OptionError(
            f"the score {rule.name!r} cannot be weighted by area, as it may be below 0; choose one "
            "of sizes, such as 'magnitude' or 'taylor'"
        )
    return replace(rule, name=f"{rule.name} by area", by_area=True)


BY_NAME = {
    "hard_concrete": hard_concrete(),
    "magnitude": Importance("magnitude", lambda w, g: scores.magnitude(w)),
    "taylor": Importance("taylor", lambda w, g: scores.taylor(w, _needed(g)), True),
    "movement": Importance("movement", lambda w, g: scores.movement(w, _needed(g)), True, True),
    # Its sum over the whole network is the same for all weights, and left out.
    "snip": Importance("snip", lambda w, g: scores.taylor(w, _needed(g)), True),
    "random": Importance("random", lambda w, g: scores.random(w), draws=True),
    "mest": Importance("mest", lambda w, g: mest(w, _needed(g)), True),
    "optimal_brain_damage": Importance(
        "optimal_brain_damage",
        # Gradients of steps stand for those of samples, sums for means: of all weights alike.
        lambda w, g: curvature.empirical_fisher(_needed(g).unsqueeze(0)),
        True,
        True,
        of_sums=curvature.optimal_brain_damage,
    ),
    # WoodFisher, likewise; 64 numbers are kept for a weight.
    "optimal_brain_surgeon": Importance("optimal_brain_surgeon", _of_blocks, True, True, block=64),
}


# Functions of this package that mean a rule, and those that need more than a weight and a gradient.
_RULES: dict[object, str] = {
    scores.magnitude: "magnitude",
    scores.taylor: "taylor",
    scores.movement: "movement",
    scores.snip: "snip",
    scores.random: "random",
    mest: "mest",
    curvature.optimal_brain_damage: "optimal_brain_damage",
    curvature.optimal_brain_surgeon: "optimal_brain_surgeon",
}
_NEED_MORE = (
    scores.wanda,
    probes.grasp,
    probes.leave_one_out,
    probes.synflow,
)


def _of_names(weight: Tensor, gradient: Tensor | None) -> Tensor:
    raise OptionError("scores by the names of weights are not made of weights")


def named(score: Score) -> Importance:
    """Return the importance of a name, of a function, or of scores by name."""
    if isinstance(score, Importance):
        return score
    if isinstance(score, Mapping):
        return Importance("by name", _of_names, by_name=score)
    if any(score is function or score == function.__name__ for function in _NEED_MORE):
        name = score if isinstance(score, str) else getattr(score, "__name__", "")
        raise OptionError(
            f"`score` is {name}, which needs more than a weight and its gradient; call it before, "
            f"and give what it returns by names of weights: score={{'0.weight': {name}(...)}}"
        )
    for function, rule in _RULES.items():
        if score is function:
            return BY_NAME[rule]
    if callable(score):
        return Importance(getattr(score, "__name__", "function"), score, needs_gradient=True)
    if score not in BY_NAME:
        raise OptionError(choice("score", score, BY_NAME))
    return BY_NAME[score]
