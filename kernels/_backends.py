"""Which implementation of an operator runs: a plain list, the first that can.

Every operator keeps a list of :class:`Implementation`, best first, ending with ``reference``, which
can run everything. ``backend="auto"`` takes the first that can run the call and logs why the others
cannot; a named backend either runs or raises :class:`~scisparse.errors.BackendError` with its
reason. There is no silent fallback.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from scisparse.errors import BackendError, OptionError

__all__ = [
    "DTYPES",
    "Implementation",
    "choose",
    "current_backend",
    "use_backend",
    "why_not_capability",
    "why_not_dtype",
]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_OLDEST = (8, 0)  # compute capability

logger = logging.getLogger("scisparse.kernels")

# A plain variable, not a context variable: autograd may run the backward pass on another thread.
_override = "auto"


@dataclass(frozen=True, eq=False)  # hashed by identity: it is looked up in every call
class Implementation:
    """One way to run an operator.

    Parameters
    ----------
    name
        What users write as ``backend=``.
    can_run
        Takes device, dtype; returns ``None`` when it can run, else the reason why not.
    run
        The function, with the operator's own signature.
    """

    name: str
    can_run: Callable[[torch.device, torch.dtype], str | None]
    run: Callable[..., Any]


def why_not_dtype(dtype: torch.dtype) -> str | None:
    """Return ``None`` for the types that all compiled kernels take, else the reason."""
    if dtype in DTYPES:
        return None
    return f"{dtype} is not one of float64, float32, bfloat16, float16"


def why_not_capability(device: torch.device) -> str | None:
    """Return ``None`` for GPUs that the kernels are made for, else the reason."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= _OLDEST:
        return None
    found, needed = (".".join(map(str, c)) for c in (capability, _OLDEST))
    return f"the device has compute capability {found}; {needed} or newer is needed"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operator called with ``backend="auto"`` inside the block on backend `name`.

    The choice holds for all threads, so that backward passes follow it too.

    Examples
    --------
    >>> from scisparse.kernels import use_backend
    >>> with use_backend("reference"):
    ...     pass
    """
    global _override
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def current_backend() -> str:
    """Name that ``backend="auto"`` stands for now: ``"auto"`` outside :func:`use_backend`."""
    return _override


def choose(
    op: str,
    implementations: Sequence[Implementation],
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Implementation:
    """Return the implementation of `op` that runs a call on `device` with `dtype`.

    Raises
    ------
    OptionError
        No implementation is called `backend`.
    BackendError
        The named backend cannot run this call.
    """
    name = _override if backend == "auto" else backend
    if name == "auto":
        return _first_able(op, tuple(implementations), device, dtype)
    for implementation in implementations:
        if implementation.name == name:
            reason = implementation.can_run(device, dtype)
            if reason is not None:
                raise BackendError(
                    f"{op}: backend {name!r} cannot run on {device.type} with {dtype}: {reason}; "
                    'use backend="auto"'
                )
            return implementation
    known = ", ".join(repr(i.name) for i in implementations)
    raise OptionError(f"{op}: backend {name!r} is unknown; choose 'auto', {known}")


@functools.cache
def _first_able(
    op: str,
    implementations: tuple[Implementation, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Implementation:
    """First that can run; cached, so that the reasons are logged once per device and dtype."""
    for implementation in implementations:
        reason = implementation.can_run(device, dtype)
        if reason is None:
            logger.debug("%s on %s %s: %s", op, device, dtype, implementation.name)
            return implementation
        logger.info("%s on %s %s: not %s: %s", op, device, dtype, implementation.name, reason)
    raise BackendError(f"{op}: no backend can run on {device} with {dtype}")
