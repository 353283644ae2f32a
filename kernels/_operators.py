"""How an operator is made known to torch: schema, implementation, shape rule, derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["register"]


def register(
    name: str,
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    save: Callable[..., None],
) -> None:
    """Register the operator ``scisparse::name``.

    Parameters
    ----------
    name, schema
        Name, and ``(arguments) -> results`` as in torch's own declarations.
    run, fake
        The operator, and the same on shapes alone.
    backward, save
        Its derivative, and what it keeps for it, as ``torch.library.register_autograd`` takes them.
    """
    name = f"scisparse::{name}"
    torch.library.define(name, schema)
    torch.library.impl(name, "default")(run)
    torch.library.register_fake(name, fake)
    torch.library.register_autograd(name, backward, setup_context=save)
