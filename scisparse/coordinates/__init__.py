"""Coordinates of two objects, and whether they mean the same."""

from __future__ import annotations

from scisparse.coordinates.axes import Axis as Axis
from scisparse.coordinates.axes import axes_of as axes_of
from scisparse.coordinates.axes import grid_of as grid_of
from scisparse.coordinates.axes import other_grid as other_grid
from scisparse.coordinates.axes import rounded as rounded
from scisparse.coordinates.axes import snapped as snapped
from scisparse.coordinates.fields import field_names as field_names
from scisparse.coordinates.fields import told_names as told_names
from scisparse.coordinates.near import check_near as check_near
from scisparse.coordinates.numbers import Numbers as Numbers
from scisparse.coordinates.places import check_places as check_places
from scisparse.coordinates.places import check_points as check_points
from scisparse.coordinates.scalars import check_scalars as check_scalars
from scisparse.coordinates.scalars import check_trained as check_trained
from scisparse.coordinates.scalars import described as described
from scisparse.coordinates.scalars import numbers_of as numbers_of
from scisparse.coordinates.valid import START as START
from scisparse.coordinates.valid import START_NAMES as START_NAMES
from scisparse.coordinates.valid import at_single_time as at_single_time
from scisparse.coordinates.valid import compared_times as compared_times
from scisparse.coordinates.valid import is_ahead as is_ahead
from scisparse.coordinates.valid import is_beside_starts as is_beside_starts
from scisparse.coordinates.valid import is_start as is_start
from scisparse.coordinates.valid import later as later
from scisparse.coordinates.valid import lead_of as lead_of
from scisparse.coordinates.valid import single_time as single_time
from scisparse.coordinates.valid import start_beside as start_beside
from scisparse.coordinates.valid import valid_times as valid_times

__all__ = [
    "START",
    "START_NAMES",
    "Axis",
    "Numbers",
    "at_single_time",
    "axes_of",
    "check_near",
    "check_places",
    "check_points",
    "check_scalars",
    "check_trained",
    "compared_times",
    "described",
    "field_names",
    "grid_of",
    "is_ahead",
    "is_beside_starts",
    "is_start",
    "later",
    "lead_of",
    "numbers_of",
    "other_grid",
    "rounded",
    "single_time",
    "snapped",
    "start_beside",
    "told_names",
    "valid_times",
]
