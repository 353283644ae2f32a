"""Layers: torch modules that put values on the edges of a pattern."""

from __future__ import annotations

from scisparse.layers.approximation import Approximation as Approximation
from scisparse.layers.approximation import approximation_error as approximation_error
from scisparse.layers.attention import Scores as Scores
from scisparse.layers.attention import SparseAttention as SparseAttention
from scisparse.layers.chosen import BlockTopKAttention as BlockTopKAttention
from scisparse.layers.chosen import LSHAttention as LSHAttention
from scisparse.layers.edges import PatternEdges as PatternEdges
from scisparse.layers.graph import GraphTransformer as GraphTransformer
from scisparse.layers.linear import SparseLinear as SparseLinear
from scisparse.layers.linformer import LinformerAttention as LinformerAttention
from scisparse.layers.local import LocallyConnected as LocallyConnected
from scisparse.layers.lowrank import LowRankLocallyConnected as LowRankLocallyConnected
from scisparse.layers.neighborhood import NeighborhoodAttention1d as NeighborhoodAttention1d
from scisparse.layers.neighborhood import NeighborhoodAttention2d as NeighborhoodAttention2d
from scisparse.layers.neighborhood import NeighborhoodAttention3d as NeighborhoodAttention3d
from scisparse.layers.shifted import ShiftedWindowAttention as ShiftedWindowAttention
from scisparse.layers.windows import LocallyConnected1d as LocallyConnected1d
from scisparse.layers.windows import LocallyConnected2d as LocallyConnected2d
from scisparse.layers.windows import LocallyConnected3d as LocallyConnected3d
from scisparse.layers.windows import LocallyConnectedTranspose1d as LocallyConnectedTranspose1d
from scisparse.layers.windows import LocallyConnectedTranspose2d as LocallyConnectedTranspose2d
from scisparse.layers.windows import LocallyConnectedTranspose3d as LocallyConnectedTranspose3d

__all__ = [
    "Approximation",
    "BlockTopKAttention",
    "GraphTransformer",
    "LSHAttention",
    "LinformerAttention",
    "LocallyConnected",
    "LocallyConnected1d",
    "LocallyConnected2d",
    "LocallyConnected3d",
    "LocallyConnectedTranspose1d",
    "LocallyConnectedTranspose2d",
    "LocallyConnectedTranspose3d",
    "LowRankLocallyConnected",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
    "PatternEdges",
    "Scores",
    "ShiftedWindowAttention",
    "SparseAttention",
    "SparseLinear",
    "approximation_error",
]
