"""Errors that scisparse raises on purpose.

Each is also a built-in ``ValueError``, ``RuntimeError`` or ``ImportError``, so that callers need
not know this module.
A message is one line: the argument, the value given, the rule it breaks and the remedy.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "CheckpointError",
    "DataError",
    "GridError",
    "MemoryLimitError",
    "MissingDependencyError",
    "OptionError",
    "PatternError",
    "ScisparseError",
    "ShapeError",
]


class ScisparseError(Exception):
    """Base of every error that scisparse raises on purpose."""


class ShapeError(ScisparseError, ValueError):
    """A tensor or array has the wrong shape or dtype."""


class PatternError(ScisparseError, ValueError):
    """A pattern is malformed, or does not fit what it is used with."""


class GridError(ScisparseError, ValueError):
    """A grid is malformed, or lacks a property that an operation needs."""


class DataError(ScisparseError, ValueError):
    """Data do not fit: dims, units, times, variables, or no finite values."""


class OptionError(ScisparseError, ValueError):
    """An option has a value that is not allowed."""


class CheckpointError(ScisparseError, ValueError):
    """A saved model cannot be read."""


class BackendError(ScisparseError, RuntimeError):
    """A kernel backend cannot run the request that named it."""


class MemoryLimitError(ScisparseError, RuntimeError):
    """An object would need more memory than there is."""


class MissingDependencyError(ScisparseError, ImportError):
    """An optional package is not installed."""
