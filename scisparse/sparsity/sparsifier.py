"""The controller: prunes and regrows connections while a model trains."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from scisparse.errors import OptionError
from scisparse.pattern import Pattern
from scisparse.sparsity import methods, options, structures
from scisparse.sparsity.allotment import Allotment, check_counts, choose_budget
from scisparse.sparsity.audits import audit, end_audits
from scisparse.sparsity.budgets import Budget
from scisparse.sparsity.build import masked_target, rewired_target
from scisparse.sparsity.discovery import Found, check_candidates, check_own, edges_alone, find
from scisparse.sparsity.edge_target import EdgeTarget
from scisparse.sparsity.far import AUDIT_STEPS
from scisparse.sparsity.finalize import Form, check_form, check_free, finalize_layers
from scisparse.sparsity.growth import Rule
from scisparse.sparsity.importance import Score
from scisparse.sparsity.measure import measure
from scisparse.sparsity.ownership import hold, let_go
from scisparse.sparsity.progress import Progress
from scisparse.sparsity.report import Report
from scisparse.sparsity.resuming import check_state, settings
from scisparse.sparsity.rewinding import Rewinding
from scisparse.sparsity.schedules import Change, Schedule
from scisparse.sparsity.structures import Structure
from scisparse.sparsity.target import Target, attend_steps, check_gathers, without_passes

__all__ = ["Sparsifier"]


class Sparsifier:
    """Prune and regrow the connections of a model during training.

    Call :meth:`step` after each step of the optimizer; nothing else in the training loop changes.
    Weights of dense layers are held at 0 under a mask. Layers over patterns store the weights of
    their edges alone, and methods that regrow move edges among candidates; edges of attention
    layers move without weights (see :mod:`scisparse.sparsity.attended`). Parameters keep their
    identity and, once training has begun, their shapes.

    Parameters
    ----------
    model
        The model; build the sparsifier before compiling it or wrapping it for several devices.
    optimizer
        Which trains it: the state of a connection goes with it, and new ones start clean. So it is
        with others that step the weights later, but what was before their first step stays.
    method
        ``"static"``, ``"set"``, ``"rigl"``, ``"srigl"``, ``"mest"``, ``"sparse_momentum"``,
        ``"top_kast"``, ``"magnitude"``, ``"gmp"``, ``"movement"``, ``"l0"`` or ``"lottery"``.
    sparsity
        Fraction of weights that are pruned at the end, in [0, 1); of all weights of a dense layer,
        of the edges of a pattern layer as it was built, of all pairs for ``SparseLinear``. ``None``
        for methods that regrow: as many edges as pattern layers have now.
    total_steps
        Steps of the whole training, from which the default schedule follows. Connections change
        every ``min(100, total_steps // 40)`` steps, at least 1, until 75 % of the training, when
        the sparsity is reached: by ``Steady`` for ``"top_kast"``, ``Cubic`` for ``"gmp"``,
        ``"movement"`` and ``"l0"``, else ``CosineDrop``. ``"lottery"`` prunes in 10 rounds or
        fewer; ``"static"`` and ``"magnitude"`` at once, without `total_steps`.
    structure
        What is pruned together: a name, such as ``"constant_fan_in"`` or ``"2:4"``, or one of
        :mod:`scisparse.sparsity.structures`.
    budget
        How `sparsity` is shared out: ``"uniform"``, ``"erdos_renyi"``, ``"global"``, a sparsity by
        names (the nearest counts: without ``*``, longest), or of :mod:`scisparse.sparsity.budgets`;
        all fix the weights of each layer. By ``"momentum"``, the default of ``"sparse_momentum"``,
        layers hand on weights at each change: see :mod:`~scisparse.sparsity.redistribution`.
    schedule
        When connections change: one of :mod:`scisparse.sparsity.schedules`.
    score
        Which connections go: a name, a function of weights and gradients, or scores by the names of
        the weights, such as those of :mod:`scisparse.sparsity.probes`.
    growth
        Where they come: a name, one of :mod:`scisparse.sparsity.growth`, or a function of
        ``growth.Candidates``; one that reads gradients or degrees says so in a ``growth.Growth``.
    params
        Names of weights or modules, with ``*``; default: all weights that can be sparse. Others, as
        of transposed convolutions, join by full name. Edges of an attention layer ``attend`` are
        ``"attend.edges"``: they move where that, or ``"*.edges"``, or `candidates` are given.
    candidates
        Edges that pattern layers may grow, such as a wider window: a Pattern, for all layers,
        attention of its size among them, or one for each layer name; the edges of the layers join
        them. By default those that they have, and any pair for ``SparseLinear`` and far slots.
        Growth takes no source that is missing (NaN) in the step before; the start of training does
        not know it: leave out those, such as land, with ``restrict(source_mask=...)``.
    teleconnections
        Far slots that each site of a pattern layer gets, without `sparsity`: they alone are
        rewired. When rewiring ends, slots without a significant effect are emptied: see
        :mod:`scisparse.sparsity.far`, and :mod:`scisparse.sparsity.attention_audit` for attention.
    seed
        Of all random choices.

    Raises
    ------
    OptionError
        A word, name or number is not allowed; names the nearest that is.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> sparsifier = Sparsifier(model, optimizer, method="rigl", sparsity=0.75, total_steps=100)
    >>> for _ in range(3):
    ...     loss = model(torch.randn(4, 8)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     sparsifier.step()
    >>> sparsifier.report().sparsity
    0.75
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        method: str = "rigl",
        *,
        sparsity: float | None = None,
        total_steps: int | None = None,
        structure: str | Structure | None = None,
        budget: Budget | None = None,
        schedule: Schedule | None = None,
        score: Score | None = None,
        growth: Rule | None = None,
        params: Sequence[str] | None = None,
        candidates: Pattern | Mapping[str, Pattern] | None = None,
        teleconnections: int = 0,
        seed: int = 0,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.method = methods.named(method)
        self.sparsity, self.progress = options.check_sparsity(sparsity), Progress()
        self.structure = structures.named(structure or self.method.structure)
        self.schedule = options.choose_schedule(self.method, schedule, total_steps)
        self.rules = options.choose_rules(
            self.method, score, growth, seed, optimizer, self.schedule
        )
        self.budget = choose_budget(self.method, self.structure, budget, self.rules)
        wanted = (teleconnections, self.method, self.rules, sparsity, self.structure, budget)
        self.far = options.check_teleconnections(*wanted)
        if self.rules.growth is not None:
            options.check_audit(self.far, self.schedule, total_steps, AUDIT_STEPS)
        found = find(model, params, candidates)
        check_candidates(found, candidates, self.method, self.rules)
        found = edges_alone(found, self._moves) if sparsity is None else found
        check_own(model, found, self.rules)
        self.targets: list[Target] = []
        self.forms: list[Form] = []  #: what became of each layer, after :meth:`finalize`
        self._finalized = self._released = False
        rewind_to = getattr(self.schedule, "rewind_to", None)
        self._rewinding = Rewinding(model, optimizer, rewind_to, self.targets)
        self._gather: Any = None
        try:
            for one in found:
                self.targets.append(self._target(one, candidates))
            options.check_optimizer(optimizer, self.targets)
            options.check_parts(self.targets, self.structure, self.budget, self.schedule)
            options.check_rules(self.targets, self.rules, self.schedule)
            if sparsity is None and not self.far:
                options.check_steady_number(self.targets, self.structure, budget, self.rules)
            hold(self.targets)
            self._gather = attend_steps(self.targets, self.rules)
            self._allotment = Allotment(
                self.targets, self.budget, self.sparsity, self.rules, self._moves
            )
            self._start()
        except BaseException:
            self.release()
            raise

    # -- set-up --------------------------------------------------------------------------------

    def _target(self, found: Found, candidates: Any) -> Target:
        parts = (found, self.structure)
        if not found.edges or not self._moves:
            return masked_target(*parts, self.rules, self.budget, self.sparsity)
        return rewired_target(*parts, self.budget, self.rules, candidates, self.far)

    @property
    def _moves(self) -> bool:
        """Whether edges of pattern layers are stored compactly from the start."""
        return self.method.sparse_start and not self.rules.reserve

    def _start(self) -> None:
        """Make the model as sparse as the schedule has it before the first step."""
        if self.far:
            for target in self.targets:
                target.sparsify(target.size, self.rules)
        elif self.sparsity is not None:
            if self.budget != "global":  # which is known when scores are
                check_counts(self.targets, self._allotment.at(self.sparsity), self.budget)
            first = self._allotment.now = self.schedule.start(self.sparsity)
            counts = self._allotment.at(first) if first or self._moves else []
            for target, count in zip(self.targets, counts, strict=False):
                if self._moves:
                    target.sparsify(count, self.rules)
                else:
                    target.change(count, 0.0, self.rules)
        for target in self.targets:
            target.begin()
        self._allotment.aim()
        self._rewinding.remember(self.progress.steps)
        self._record()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy it with its model and optimizer, with hooks of its own."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        parts = {key: value for key, value in vars(self).items() if key != "_gather"}
        vars(copied).update(copy.deepcopy(parts, memo), _gather=None)
        if not self._released:
            hold(copied.targets)
            for target, like in zip(copied.targets, self.targets, strict=True):
                target.reattach(like)
            copied._gather = attend_steps(copied.targets, copied.rules)
        return copied

    # -- training ------------------------------------------------------------------------------

    def step(self) -> None:
        """Do what is due; call it once after every step of the optimizer.

        A change on a step whose gradients are not finite waits for the next that is; a warning
        says so where that takes long.
        """
        if self._released:
            raise OptionError("finalize() or release() has ended the sparsifier; build a new one")
        self.progress.steps += 1
        due = self.progress.due(self.schedule, self.sparsity)
        change = self.progress.ready(due, self.targets)
        if change is not None:
            self._change(change)
        if self.far:
            audit(self.targets, self.schedule, self.progress, self.rules)
        for target in self.targets:
            target.enforce()
        self._rewinding.remember(self.progress.steps)
        self._record()

    def _change(self, change: Change) -> None:
        check_gathers(self.targets, self.rules)
        for target in self.targets:
            target.enforce()  # no score should see what the optimizer did to pruned weights
        self._allotment.aim()
        unknown = without_passes(self.targets, self.rules) if change.drop else []
        counts = self._allotment.after(change.sparsity, change.drop, unknown)
        for target, count in zip(self.targets, counts, strict=True):
            if target not in unknown:  # one that is frozen or has no gradients stays as it is
                self.progress.moved[target.name] = target.change(count, change.drop, self.rules)
        if change.rewind:
            self._rewinding.go_back()

    def _record(self) -> None:
        """Keep gradients of the next step, if a change after it needs them."""
        grows = self.rules.growth
        due = self.progress.expects_change(self.schedule, self.sparsity)
        ended = self.progress.is_past(self.schedule)
        always = grows is not None and grows.needs_momentum and not ended
        for target in self.targets:
            audited = isinstance(target, EdgeTarget) and target.in_audit
            target.record(always or audited or (due and target.reads_passes(self.rules)))

    # -- results -------------------------------------------------------------------------------

    def report(self, regions: object = None, accuracy: float | None = None) -> Report:
        """Return sizes, sparsity, exploration and churn of every weight.

        Parameters
        ----------
        regions
            Label of each site, an array or a DataArray: pattern layers with as many sites are
            counted by region as well. Default: the labels of a budget by ``Regions``.
        accuracy
            Of the model on data of yours, larger = better; the report says it for each weight.
        """
        return measure(self.targets, self.progress, self.budget, regions, accuracy)

    def follow(self, copy: nn.Module) -> None:
        """Let a copy of the model, such as a moving average, take part in every change from now on.

        Parameters
        ----------
        copy
            Module with the same names, or torch's ``AveragedModel`` of one, without `use_buffers`.

        Raises
        ------
        OptionError
            It has other names, or averages numbers of edges, which have no mean.
        """
        copy = options.check_copy(copy, self.targets)
        for target in self.targets:
            target.follow(copy)

    def finalize(self, to: str = "auto", *, batch: int = 32) -> nn.Module:
        """End training: remove hooks, idle neurons and pruned weights, and return the model.

        Linear layers become ``nn.Linear`` or ``SparseLinear``, which is faster, measured now;
        convolutions keep zeros, but not idle channels; layers over patterns lose pruned edges.
        Linear layers with hooks, which a new one would not call, stay of their class.
        :attr:`forms` says what became of each. Layers of other sizes or forms are new ones: build
        the optimizer anew to train on.

        Where several ranks train, all of them must call it, as they agree on the forms: rank 0
        alone would wait for the others until the timeout of their group. Delete
        ``DistributedDataParallel`` and the last loss before, as weights that they hold cannot get
        smaller, and wrap what is returned anew to train on.

        Parameters
        ----------
        to
            ``"auto"``, or for all linear layers ``"condensed"``, ``"dense"``, ``"csr"``, ``"bsr"``
            or ``"2:4"``, which keeps idle neurons; the last three cannot be trained further.
        batch
            Rows of the input that is timed.

        Raises
        ------
        OptionError
            `to` does not suit the weights, or a wrapper holds some that get smaller (nothing has
            been changed then); or this has been called before.
        BackendError, MemoryLimitError
            `to` runs on other devices alone, or a layer does not fit as a dense matrix.

        Examples
        --------
        The model has other layers than it was built with; another process loads it into one that
        was built anew by :func:`scisparse.sparsity.restore`:

        >>> import scisparse, torch
        >>> layers = lambda: torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 1))
        >>> model = Sparsifier(layers(), method="magnitude", sparsity=0.75).finalize("condensed")
        >>> torch.save(model.state_dict(), "sparse.pt")
        >>> again = scisparse.sparsity.restore(layers(), torch.load("sparse.pt"))
        >>> x = torch.randn(4, 8)
        >>> torch.equal(again(x), model(x))
        True
        """
        if self._finalized:
            raise OptionError("finalize() has been called already; the model is final")
        check_form(to, self.model, self.targets)
        check_free(self.targets)
        self.release()
        model, self.forms = finalize_layers(self.model, self.targets, to, batch, self.optimizer)
        self._finalized = True
        return model

    def release(self) -> None:
        """Take all hooks off; the model stays as sparse as it is."""
        end_audits(self.targets, self.rules)
        for target in self.targets:
            target.release()
        let_go(self.targets)
        self._released = True
        if self._gather is not None:
            self._gather.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return topology, progress and random state: all that a later step depends on."""
        return {
            "settings": settings(self),
            "progress": self.progress.state_dict(),
            "allotment": self._allotment.state_dict(),
            "generator": self.rules.generator.get_state(),
            "rewind": self._rewinding.weights,
            "targets": {target.name: target.state_dict() for target in self.targets},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; once this is built, model and optimizer load theirs as well.

        A schedule of another length catches up at the next step, with a warning.

        Raises
        ------
        CheckpointError
            It is of other arguments or weights, or the model had loaded its state too early;
            nothing has been changed then.
        """
        check_state(state, self)
        self._rewinding.check_state(state["rewind"], state["progress"]["steps"])
        self._rewinding.weights = dict(state["rewind"])
        self._allotment.load_state_dict(state["allotment"])
        self.progress.load_state_dict(state["progress"])
        self.rules.generator.set_state(state["generator"])
        for target in self.targets:
            target.load_state_dict(state["targets"][target.name])
        self.progress.catch_up(self.schedule, self.sparsity, self._allotment.now)
        self._record()
