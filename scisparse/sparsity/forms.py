"""Linear layers whose pruned weights are stored as torch's sparse tensors are; not to be trained.

Modules hold plain tensors and make the sparse tensor when they are called: so they are moved, cast,
copied, saved and run in inference mode as any other module is.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from scisparse.errors import BackendError, OptionError

__all__ = [
    "CompressedLinear",
    "SemiStructuredLinear",
    "StoredLinear",
    "check_2_of_4",
    "check_packs",
    "computed_dtype",
]

_MKL = (torch.float32, torch.float64)  # what torch multiplies on CPUs


class StoredLinear(nn.Module):
    """Linear layer with a fixed sparse weight.

    Parameters
    ----------
    in_features, out_features
        N and M.
    values
        What is stored of the weight; frozen.
    bias
        ``[M]`` or ``None``; may be trained.

    Shapes
    ------
    Input ``[..., N]``, output ``[..., M]``.
    """

    bias: nn.Parameter | None

    def __init__(
        self, in_features: int, out_features: int, values: Tensor, bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.values = nn.Parameter(values, requires_grad=False)
        self.bias = bias

    def sparse(self, dtype: torch.dtype) -> Tensor:
        """Return the weight ``[M, N]`` as a sparse tensor."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., M]`` for ``[..., N]``."""
        device, dtype = x.device.type, computed_dtype(self.values, x.device.type)
        if not torch.is_autocast_enabled(device) and x.dtype != dtype:
            raise OptionError(f"`x` is {x.dtype} and the weight {dtype}; convert one of them")
        with torch.autocast(device, enabled=False):
            computed = dtype if device != "cpu" or dtype in _MKL else torch.float32
            rows = x.reshape(-1, self.in_features).to(computed)
            y: Tensor = _Product.apply(rows, self.sparse(computed)).to(dtype)
            y = y if self.bias is None else y + self.bias.to(dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def get_extra_state(self) -> Tensor:
        """Inputs, which what is stored does not tell."""
        return torch.tensor(self.in_features)

    def set_extra_state(self, state: Any) -> None:
        """Raise unless saved values are of as many inputs."""
        if int(state) != self.in_features:
            raise OptionError(
                f"the saved layer has {int(state)} inputs, this one {self.in_features}; build it "
                "by scisparse.sparsity.restore"
            )

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, stored={self.values.numel()}"
        )


class CompressedLinear(StoredLinear):
    """Linear layer whose weight is compressed by rows (CSR), or by rows of blocks (BSR).

    Parameters
    ----------
    in_features
        N.
    row_ptr, col
        int64 ``[rows of blocks + 1]`` and ``[blocks]``.
    values
        ``[E]``, or ``[blocks, b, b]``.
    bias
        ``[M]`` or ``None``.

    Examples
    --------
    >>> import torch
    >>> weight = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])
    >>> layer = CompressedLinear.of(weight, None, block=1)
    >>> layer(torch.ones(3)), layer.weight.layout
    (tensor([2., 4.]), torch.sparse_csr)
    """

    row_ptr: Tensor
    col: Tensor

    def __init__(
        self,
        in_features: int,
        row_ptr: Tensor,
        col: Tensor,
        values: Tensor,
        bias: nn.Parameter | None,
    ) -> None:
        height = values.shape[1] if values.dim() == 3 else 1
        super().__init__(in_features, height * (row_ptr.numel() - 1), values, bias)
        self.register_buffer("row_ptr", row_ptr)
        self.register_buffer("col", col)

    @classmethod
    def of(cls, weight: Tensor, bias: nn.Parameter | None, *, block: int) -> CompressedLinear:
        """Store what is not 0 of a weight ``[M, N]``, in square blocks; 1 for numbers (CSR)."""
        with _no_notice():
            weight = weight.detach()
            sparse = weight.to_sparse_csr() if block == 1 else weight.to_sparse_bsr((block, block))
            row_ptr, col = sparse.crow_indices().clone(), sparse.col_indices().clone()
        return cls(weight.shape[1], row_ptr, col, sparse.values().clone(), bias)

    @property
    def weight(self) -> Tensor:
        """The weight as torch's sparse tensor."""
        return self.sparse(self.values.dtype)

    def sparse(self, dtype: torch.dtype) -> Tensor:
        """Return the weight ``[M, N]`` as a sparse tensor."""
        layout = torch.sparse_csr if self.values.dim() == 1 else torch.sparse_bsr
        with _no_notice():
            return torch.sparse_compressed_tensor(
                *(self.row_ptr, self.col, self.values.to(dtype)),
                size=(self.out_features, self.in_features),
                layout=layout,
                check_invariants=False,
            )


class SemiStructuredLinear(StoredLinear):
    """Linear layer that stores 2 of 4 consecutive weights, for sparse tensor cores.

    Parameters
    ----------
    values
        ``[M, N / 2]``.
    place
        Place of each in its run of 4, uint8 ``[M, N / 2]``.
    bias
        ``[M]`` or ``None``.
    """

    place: Tensor

    def __init__(self, values: Tensor, place: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(2 * values.shape[1], values.shape[0], values, bias)
        self.register_buffer("place", place)
        self._packed: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, bias: nn.Parameter | None) -> SemiStructuredLinear:
        """Store a weight ``[M, N]`` with at most 2 of 4 consecutive numbers that are not 0."""
        runs = weight.detach().reshape(weight.shape[0], -1, 4)
        place = (runs != 0).to(torch.uint8).topk(2, dim=-1).indices.sort(dim=-1).values
        values = runs.gather(-1, place).flatten(1)
        return cls(values, place.to(torch.uint8).flatten(1), bias)

    @property
    def weight(self) -> Tensor:
        """The weight as a dense tensor, ``[M, N]``."""
        runs = self.values.new_zeros(self.out_features, self.in_features // 4, 4)
        place = self.place.long().view(self.out_features, -1, 2)
        return runs.scatter_(-1, place, self.values.view(place.shape)).flatten(1)

    @torch.no_grad()
    def sparse(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as sparse tensor cores read it; packed once for a type and device.

        Raises
        ------
        BackendError
            On another device, or of a type and sizes that torch does not pack.
        """
        packed = self._packed
        if packed is None or packed.dtype != dtype or packed.device != self.values.device:
            if not self.values.is_cuda:
                raise BackendError(
                    "2:4 sparse weights run on NVIDIA GPUs alone; move the model there, or "
                    "finalize to 'condensed'"
                )
            size = (self.out_features, self.in_features)
            check_packs("the weight", size, dtype, error=BackendError)
            with torch.inference_mode(False):  # calls outside of inference mode follow
                packed = torch.sparse.to_sparse_semi_structured(self.weight.to(dtype))
            self._packed = packed
        return packed

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._packed = None
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **options)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}


def computed_dtype(weight: Tensor, device: str) -> torch.dtype:
    """Return the type in which a layer with this weight computes: that of autocast where it is on.

    Parameters
    ----------
    weight
        The weight.
    device
        Type of the device of the input.
    """
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


@contextlib.contextmanager
def _no_notice() -> Iterator[None]:
    """Without what torch says of sparse tensors: beta state, and checks that are off on purpose."""
    with warnings.catch_warnings():
        for notice in ("Sparse (CSR|BSR) tensor support", "Sparse invariant checks are implicitly"):
            warnings.filterwarnings("ignore", message=notice)
        yield


class _Product(torch.autograd.Function):
    """Rows times the transposed weight; torch has no gradient for blocks, nor for 2:4."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return torch.nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.weight.to_dense(), None


def check_2_of_4(name: str, mask: Tensor) -> None:
    """Raise unless at most 2 of 4 consecutive inputs are active, booleans ``[M, N]``.

    Raises
    ------
    OptionError
        Torch would leave out the others without a word.
    """
    if mask.shape[1] % 4:
        raise OptionError(
            f"{name} has {mask.shape[1]} inputs, which 4 must divide for to='2:4'; take "
            "to='condensed'"
        )
    most = int(mask.reshape(mask.shape[0], -1, 4).sum(-1).max()) if mask.numel() else 0
    if most > 2:
        raise OptionError(
            f"{name} keeps {most} of 4 consecutive inputs, and to='2:4' has room for 2; train with "
            "structure='2:4', or take to='condensed'"
        )


def check_packs(
    name: str,
    size: tuple[int, int],
    dtype: torch.dtype,
    *,
    error: type[OptionError | BackendError] = OptionError,
) -> None:
    """Raise `error` unless torch packs a 2:4 weight of this size ``(M, N)`` and type.

    The limits are those of the class that ``torch.sparse.to_sparse_semi_structured`` takes.
    """
    kind: Any = torch.sparse.SparseSemiStructuredTensorCUSPARSELT
    if torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS:
        kind = torch.sparse.SparseSemiStructuredTensorCUTLASS
    limits = kind._DTYPE_SHAPE_CONSTRAINTS
    if dtype not in limits:
        raise error(
            f"{name} is {dtype}, and torch multiplies 2:4 weights in 16 bits; convert the model to "
            "bfloat16, run it under torch.autocast, or take to='condensed'"
        )
    rows, columns = limits[dtype].sparse_min_rows, limits[dtype].sparse_min_cols
    if not all(size) or size[0] % rows or size[1] % columns:
        raise error(
            f"{name} has {size[0]} outputs and {size[1]} inputs in {dtype}, of which torch's 2:4 "
            f"weights need multiples of {rows} and {columns}; take to='condensed'"
        )
