"""When the far slots of a sparsifier are tested: once rewiring has ended, or when it lets go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scisparse.sparsity.edge_target import EdgeTarget
from scisparse.sparsity.far import AUDIT_STEPS, SIGNIFICANCE
from scisparse.sparsity.progress import Progress
from scisparse.sparsity.schedules import Schedule
from scisparse.sparsity.target import Rules, Target

__all__ = ["audit", "end_audits"]


def audit(targets: Sequence[Target], schedule: Schedule, progress: Progress, rules: Rules) -> None:
    """Test what the far slots hold, a step at a time, once rewiring has ended."""
    begin = getattr(schedule, "end", None)
    if begin is None or progress.steps < begin or progress.pending is not None:
        return
    if not progress.audited:
        progress.audited = True
        for target in _with_edges(targets):
            target.begin_audit(rules)
    for target in _with_edges(targets):
        if target.continue_audit() >= AUDIT_STEPS:
            progress.moved[target.name] = target.end_audit(SIGNIFICANCE, rules)


def end_audits(targets: Sequence[Target], rules: Rules) -> None:
    """End running tests on what evidence there is; without any, weights come back."""
    for target in _with_edges(targets):
        if target.in_audit:
            target.end_audit(SIGNIFICANCE, rules)


def _with_edges(targets: Sequence[Target]) -> Iterator[EdgeTarget]:
    return (target for target in targets if isinstance(target, EdgeTarget))
