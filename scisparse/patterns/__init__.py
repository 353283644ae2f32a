"""Builders of patterns: grids, distances, meshes, tokens; drawn at random, chosen from data."""

from __future__ import annotations

from scisparse.patterns.chosen import block_topk as block_topk
from scisparse.patterns.chosen import lsh as lsh
from scisparse.patterns.drawn import constant_fan_in as constant_fan_in
from scisparse.patterns.meshes import mesh as mesh
from scisparse.patterns.neighborhoods import neighborhood as neighborhood
from scisparse.patterns.neighbours import nearest as nearest
from scisparse.patterns.neighbours import radius as radius
from scisparse.patterns.sequences import axial as axial
from scisparse.patterns.sequences import bigbird as bigbird
from scisparse.patterns.sequences import blocks as blocks
from scisparse.patterns.sequences import fixed as fixed
from scisparse.patterns.sequences import longformer as longformer
from scisparse.patterns.sequences import sliding_window as sliding_window
from scisparse.patterns.sequences import strided as strided
from scisparse.patterns.shifted import shifted_window as shifted_window
from scisparse.patterns.windows import window as window

__all__ = [
    "axial",
    "bigbird",
    "block_topk",
    "blocks",
    "constant_fan_in",
    "fixed",
    "longformer",
    "lsh",
    "mesh",
    "nearest",
    "neighborhood",
    "radius",
    "shifted_window",
    "sliding_window",
    "strided",
    "window",
]
