"""Learned sparsity: prune and regrow the edges of patterns and the entries of dense layers.

:class:`Sparsifier` is the controller; its parts are values and pure functions in modules of their
own, each of which can be replaced.
"""

from __future__ import annotations

from scisparse.sparsity import activation as activation
from scisparse.sparsity import budgets as budgets
from scisparse.sparsity import communication as communication
from scisparse.sparsity import curvature as curvature
from scisparse.sparsity import gates as gates
from scisparse.sparsity import growth as growth
from scisparse.sparsity import importance as importance
from scisparse.sparsity import link_prediction as link_prediction
from scisparse.sparsity import probes as probes
from scisparse.sparsity import proximal as proximal
from scisparse.sparsity import reconstruction as reconstruction
from scisparse.sparsity import reordering as reordering
from scisparse.sparsity import schedules as schedules
from scisparse.sparsity import scores as scores
from scisparse.sparsity import structures as structures
from scisparse.sparsity.recipe import Recipe as Recipe
from scisparse.sparsity.restoring import restore as restore
from scisparse.sparsity.sparsifier import Sparsifier as Sparsifier

__all__ = [
    "Recipe",
    "Sparsifier",
    "activation",
    "budgets",
    "communication",
    "curvature",
    "gates",
    "growth",
    "importance",
    "link_prediction",
    "probes",
    "proximal",
    "reconstruction",
    "reordering",
    "restore",
    "schedules",
    "scores",
    "structures",
]
