"""Layers whose edges can move: new pattern, same parameters."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from scisparse.errors import PatternError, ShapeError
from scisparse.layers.buffers import OwnBuffers
from scisparse.pattern import Pattern
from scisparse.pattern.taps import taps_as_in

__all__ = [
    "Rewirable",
    "check_parameters",
    "checked_on_points_of",
    "checked_pattern",
    "is_trained_together",
    "match_edges",
    "move_rows",
    "pack_edges",
    "packed_shape",
    "resize",
    "unpack_edges",
    "unpack_number",
]


class Rewirable(OwnBuffers):
    """Module with own weights on every edge of a pattern, which may be given another pattern.

    Subclasses hold ``pattern`` and ``weight [E, ...]`` in the order of its edges. ``weight`` may
    have spare rows, of zeros, past the last edge.

    Moving averages are of weights on the same edges: have copies rewired with the layer
    (``Sparsifier.follow``). Index buffers are not to be averaged, as
    ``torch.optim.swa_utils.AveragedModel(model, use_buffers=True)`` does: torch rounds the mean of
    equal integers down, to other edges. Its default copies them. ``eval`` and ``train`` of such an
    average, and its ``state_dict``, raise a ``PatternError``.
    """

    pattern: Pattern
    weight: nn.Parameter

    @property
    def edge_weight(self) -> Tensor:
        """Weights of the edges, without spare rows, ``[E, ...]``."""
        edges = self.pattern.num_edges
        return self.weight if self.weight.shape[0] == edges else self.weight[:edges]

    def rewire(self, pattern: Pattern, kept: Tensor | None = None, *, rows: int = 0) -> Tensor:
        """Move the weights to the edges of another pattern over the same sites and sources.

        Edges that both patterns have keep their weights, new ones start at 0. With as many edges
        as before all tensors stay where they are; else ``weight.data`` has another size, which an
        optimizer with state, compiled code and distributed training do not take well.

        Parameters
        ----------
        pattern
            M sites and N sources as before, whose grids stay; E' edges.
        kept
            int64 ``[E']``: old number of each new edge, -1 for a new one. Found by site, source
            and tap where not given.
        rows
            Rows that `weight` has at least, those beyond the edges spare and 0. Training that has
            begun needs as many as before.

        Returns
        -------
        Tensor
            int64: old row of each row of `weight`, -1 for one of zeros.

        Raises
        ------
        PatternError
            Another number of sites or sources, weights that edges share, that torch computes from
            other tensors (parametrized, normed or pruned ones), or that ``fully_shard`` has cut.

        Examples
        --------
        >>> import torch
        >>> from scisparse.layers import SparseLinear
        >>> from scisparse.pattern import Pattern
        >>> layer = SparseLinear(3, 1, pattern=Pattern.from_dense(torch.tensor([[1, 1, 0]]).bool()))
        >>> layer.rewire(Pattern.from_dense(torch.tensor([[0, 1, 1]]).bool())).tolist()
        [1, -1]
        """
        self.check_rewirable()
        check_parameters(self, "weight")
        pattern = checked_on_points_of(pattern, self.pattern)
        pattern = _on_grids_of(pattern, self.pattern)
        if kept is None:
            kept = match_edges(self.pattern, pattern)
        elif kept.shape != (pattern.num_edges,) or kept.dtype != torch.int64:
            raise ShapeError(
                f"`kept` ({kept.dtype} {list(kept.shape)}) must be int64 [{pattern.num_edges}]"
            )
        if kept.numel() < rows:
            kept = torch.cat([kept, kept.new_full((rows - kept.numel(),), -1)])
        moved = move_rows(self.weight.detach(), kept)
        grad = self.weight.grad
        with torch.no_grad():
            if moved.shape == self.weight.shape:
                self.weight.copy_(moved)
            else:
                resize(self.weight, moved)
            self.weight.grad = None if grad is None else move_rows(grad, kept)
        self._exchange(pattern)
        return kept

    def check_rewirable(self) -> None:
        """Raise unless every edge has a weight of its own."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        """Take over the edges of saved weights before the weights."""
        saved = state_dict.get(prefix + "_extra_state")
        if saved is None and prefix + "weight" in state_dict:
            self._warn_of_lost_edges()
        edges = None if saved is None else self._saved_edges(saved)
        if edges is not None:
            pattern = unpack_edges(edges, self.pattern)
            rows = len(state_dict.get(prefix + "weight", ()))
            if pattern.fingerprint != self.pattern.fingerprint:
                if self._loads_all(state_dict, prefix, pattern):
                    self.check_rewirable()
                    self._exchange(pattern)
                else:
                    if prefix + "weight" in state_dict:  # it may be this very weight, which moves
                        state_dict[prefix + "weight"] = state_dict[prefix + "weight"].clone()
                    self.rewire(pattern, rows=rows)
            elif rows != len(self.weight) and self._fits(state_dict.get(prefix + "weight")):
                spares = self.weight.new_zeros(rows - pattern.num_edges, *self.weight.shape[1:])
                resize(self.weight, torch.cat([self.edge_weight.detach(), spares]))
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    def _warn_of_lost_edges(self) -> None:
        """With ``strict=False`` weights load without what says where they were."""
        with contextlib.suppress(PatternError):
            self.check_rewirable()  # else edges never move
            warnings.warn(
                f"the state has weights of a {type(self).__name__} but no `_extra_state`, their "
                "edges; they are taken for those of this layer's edges, and mean nothing on "
                "others: save the whole state_dict(), not parameters alone",
                stacklevel=2,
            )

    def _fits(self, saved: Tensor | None) -> bool:
        """Whether saved weights may be of the edges of this pattern and, perhaps, spare rows."""
        own = "weight" in self._parameters
        return own and saved is not None and len(saved) >= self.pattern.num_edges

    def _loads_all(self, state: Mapping[str, Any], prefix: str, pattern: Pattern) -> bool:
        """Whether all weights of the saved edges come with them and need not be moved.

        Shards of weights (``fully_shard``) could not be, nor weights that are computed from others,
        such as behind gates.
        """
        if "weight" in self._parameters:
            saved = state.get(prefix + "weight")
            whole = saved is not None and saved.shape == self.weight.shape
            return whole and is_traceable_wrapper_subclass(self.weight)
        parts = (f"{prefix}parametrizations.weight.", f"{prefix}weight_")
        same = pattern.num_edges == self.pattern.num_edges
        return same and any(name.startswith(parts) for name in state)

    def _exchange(self, pattern: Pattern) -> None:
        """Belong to the edges of another pattern."""
        self.pattern, self.rewired = pattern, True
        self._write_buffers(self.weight.device)

    def _saved_edges(self, extra_state: Tensor) -> Tensor | None:
        """Edges in a saved extra state, packed, if it has any."""
        return extra_state


def check_parameters(layer: nn.Module, *names: str) -> None:
    """Raise unless these tensors of a layer, where it has them, are its parameters, and whole.

    Raises
    ------
    PatternError
        One is computed from others, so that values written to it are lost, or lies in shards.
    """
    for name in names:
        if name not in layer._parameters and getattr(layer, name) is not None:
            raise PatternError(
                f"`{name}` of {type(layer).__name__} is not a parameter, but computed from others "
                "(a parametrization, weight_norm, spectral_norm or torch.nn.utils.prune); make it "
                f"one before its edges change: torch.nn.utils.parametrize.remove_parametrizations"
                f"(layer, {name!r}), remove_weight_norm, remove_spectral_norm or prune.remove"
            )
        if is_traceable_wrapper_subclass(layer._parameters.get(name)):
            raise PatternError(
                f"`{name}` of {type(layer).__name__} is a {type(getattr(layer, name)).__name__}, "
                "as of fully_shard, whose rows cannot be moved; change edges before the model is "
                "sharded, or load a state of as many weights"
            )


def checked_pattern(pattern: object) -> Pattern:
    """Return `pattern` on the CPU, validated, as the kernels trust its indices.

    Raises
    ------
    PatternError
        It is no :class:`Pattern`, or one whose indices do not fit.
    """
    if isinstance(pattern, Pattern):
        return pattern.to("cpu").validate()
    if isinstance(pattern, Tensor):
        remedy = "make one: Pattern.from_edge_index(...) of an edge list, from_dense(...) of a mask"
    elif isinstance(pattern, list | tuple):
        remedy = (
            "a layer has one: build a layer for each, or let LSHAttention or BlockTopKAttention "
            "choose edges for each batch entry"
        )
    else:
        remedy = "scisparse.patterns builds them"
    raise PatternError(f"`pattern` must be a Pattern, not {type(pattern).__name__}; {remedy}")


def checked_on_points_of(pattern: Pattern, before: Pattern) -> Pattern:
    """`pattern` on the CPU; raises unless it is over the sites and sources of `before`."""
    pattern = checked_pattern(pattern)
    if pattern.shape != before.shape:
        raise PatternError(
            f"`pattern` (sites x sources {pattern.shape}) must have this layer's {before.shape}"
        )
    return pattern


def _on_grids_of(pattern: Pattern, before: Pattern) -> Pattern:
    """Edges of `pattern` between the points of `before`, as saved states hold no grids."""
    site_grid, source_grid = before.site_grid, before.source_grid
    return replace(pattern, window=None, site_grid=site_grid, source_grid=source_grid)


def match_edges(old: Pattern, new: Pattern) -> Tensor:
    """Number in `old` of each edge of `new`, int64 ``[E']``; -1 where `old` has no such edge."""
    old_tap, new_tap = old.tap, taps_as_in(new, old)
    if old_tap is None or new_tap is None:
        known, wanted = _pairs(old), _pairs(new)
    else:
        span = 1 + max(int(t.max()) if t.numel() else 0 for t in (old_tap, new_tap))
        known, wanted = _pairs(old) * span + old_tap, _pairs(new) * span + new_tap
    place = torch.searchsorted(known, wanted).clamp(max=max(0, known.numel() - 1))
    if not known.numel():
        return torch.full_like(wanted, -1)
    return torch.where(known[place] == wanted, place, -1)


def resize(parameter: nn.Parameter, values: Tensor) -> None:
    """Give a parameter values of another size, also while the last loss is still there.

    Raises
    ------
    PatternError
        Ranks train it together: what averages its gradients knows the old size.
    """
    if is_trained_together(parameter):
        raise PatternError(
            f"a weight {list(parameter.shape)} that DistributedDataParallel holds cannot get "
            f"another size, {list(values.shape)}; prune or load before wrapping the model, and "
            "delete the last loss"
        )
    # A node of the last graph adds up gradients of the old size; a change of type lets go of it.
    other = torch.float32 if values.dtype == torch.float16 else torch.float16
    parameter.grad = None
    parameter.data = values.new_empty(0, dtype=other)
    parameter.data = values


def is_trained_together(parameter: nn.Parameter) -> bool:
    """Whether ranks average its gradients by hooks, which cannot do with another size."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and _is_held(parameter)


def _is_held(parameter: nn.Parameter) -> bool:
    """Whether something besides the parameter holds the node that adds up its gradients."""
    if not parameter.requires_grad:
        return False

    def node() -> Any:
        with torch.enable_grad():
            function: Any = parameter.view_as(parameter).grad_fn
        return function.next_functions[0][0]

    node().metadata["held"] = True  # is gone with the node
    return node().metadata.pop("held", False) is True


def _pairs(pattern: Pattern) -> Tensor:
    """A number for site and source of each edge, int64 ``[E]``, rising."""
    return pattern.rows() * pattern.num_sources + pattern.col.long()


def move_rows(values: Tensor, kept: Tensor) -> Tensor:
    """Rows of `values` in another order, ``[len(kept), ...]``; zeros where `kept` is -1."""
    kept = kept.to(values.device)
    if not values.shape[0]:
        return values.new_zeros(kept.numel(), *values.shape[1:])
    moved = values.index_select(0, kept.clamp(min=0))
    moved[kept < 0] = 0
    return moved


def pack_edges(pattern: Pattern, numbers: Mapping[str, float] | None = None) -> Tensor:
    """Edges, their arrays, and some numbers by name, as bytes, uint8."""
    arrays: dict[str, Any] = {
        name: values.numpy()
        for name in ("row_ptr", "col", "tap", "distance", "bearing")
        if (values := getattr(pattern, name)) is not None
    }
    arrays |= numbers or {}
    stream = io.BytesIO()
    np.savez(stream, num_sources=pattern.num_sources, num_taps=pattern.num_taps, **arrays)
    return torch.frombuffer(bytearray(stream.getbuffer()), dtype=torch.uint8)


def unpack_edges(packed: Tensor, like: Pattern) -> Pattern:
    """Pattern with the edges in `packed` and the grids of `like`.

    Raises
    ------
    PatternError
        Sites or sources are not as many as those of `like`.
    """
    arrays = _saved_arrays(packed)
    num_sources, num_taps = int(arrays["num_sources"]), int(arrays["num_taps"])
    names = ("row_ptr", "col", "tap", "distance", "bearing")
    tensors = {name: torch.from_numpy(arrays[name]) for name in names if name in arrays}
    shape = (tensors["row_ptr"].numel() - 1, num_sources)
    if shape != like.shape:
        raise PatternError(
            f"the saved weights belong to a pattern of sites x sources {shape}, this layer's has "
            f"{like.shape}; build the layer with the sizes it was trained with"
        )
    blank: dict[str, Any] = dict.fromkeys(("tap", "distance", "bearing", "window"))
    return replace(
        like, **(blank | tensors), tap_count=num_taps if "tap" in tensors else None
    ).validate()


def packed_shape(packed: Tensor) -> tuple[int, int]:
    """Sites and sources of the edges that :func:`pack_edges` has packed."""
    arrays = _saved_arrays(packed)
    return len(arrays["row_ptr"]) - 1, int(arrays["num_sources"])


def unpack_number(packed: Tensor, name: str) -> float:
    """Give a number that :func:`pack_edges` was given."""
    return float(_saved_arrays(packed)[name])


def _saved_arrays(packed: Tensor) -> dict[str, Any]:
    with np.load(io.BytesIO(packed.cpu().numpy().tobytes()), allow_pickle=False) as saved:
        return {name: saved[name] for name in saved.files}
