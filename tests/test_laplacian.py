"""Graph Laplacian and Dirichlet energy: dense truth, derivatives, awkward shapes, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import COMPILED, INSTRUCTION_SETS, TOLERANCE, generator
from torch import Tensor

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.kernels import debug_mode, use_backend
from scisparse.kernels.laplacian import cpu, dirichlet_energy, laplacian, reference

BACKENDS = ["reference", pytest.param("cpu", marks=COMPILED)]
SHAPES = [(40, 1), (33, 7), (50, 16), (17, 67), (1, 3), (0, 4), (5, 0)]


def couplings(rows: int, dtype: torch.dtype, share: float = 0.2) -> tuple[Tensor, ...]:
    """Random symmetric ones, as edges and as a dense matrix; some rows have none."""
    gen = generator(rows)
    dense = torch.rand(rows, rows, generator=gen, dtype=torch.float64)
    dense = dense.masked_fill(dense > share, 0).triu(1)
    dense = dense + dense.T
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), (dense > 0).sum(1).cumsum(0)])
    row, col = dense.nonzero(as_tuple=True)
    return row_ptr, col, dense[row, col].to(dtype), dense


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_dense_matrix(shape: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    row_ptr, col, value, dense = couplings(shape[0], torch.float64)
    x = torch.randn(shape, generator=generator(), dtype=torch.float64).to(dtype)
    matrix = dense.sum(1).diag() - dense
    expected = matrix @ x.double()
    size = (dense.sum(1).diag() + dense) @ x.double().abs()
    y = laplacian(x, row_ptr, col, value, backend=backend)
    assert y.dtype == dtype
    assert ((y.double() - expected).abs() <= 4 * TOLERANCE[dtype] * size).all()
    energy = dirichlet_energy(x, row_ptr, col.int(), value, backend=backend)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert energy.dtype == wide
    tolerance = TOLERANCE[wide]
    torch.testing.assert_close(
        energy.double(), (x.double() * expected).sum(), rtol=10 * tolerance, atol=0
    )


@COMPILED
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [1, 3, 8, 21, 64])
def test_instruction_sets_equal_the_reference(
    width: int, dtype: torch.dtype, isa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_ISA_AUTO", isa)
    row_ptr, col, value, _ = couplings(60, dtype)
    x = torch.randn(60, width, generator=generator(), dtype=dtype)
    tolerance = 20 * TOLERANCE[dtype]
    for op in ("laplacian", "energy_of_rows"):
        actual = getattr(cpu, op)(x, row_ptr, col, value)
        expected = getattr(reference, op)(x, row_ptr, col, value)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_every_order(backend: str) -> None:
    row_ptr, col, value, _ = couplings(7, torch.float64, 0.5)
    x = torch.randn(7, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    for op in (laplacian, dirichlet_energy):

        def run(x: Tensor, op: Any = op) -> Tensor:
            y: Tensor = op(x, row_ptr, col, value, backend=backend)
            return y

        assert torch.autograd.gradcheck(run, x)
        assert torch.autograd.gradgradcheck(lambda x, run=run: run(x).sin(), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_rows_give_exactly_nothing(backend: str) -> None:
    """Differences come before products: weights that are the same everywhere have no roughness."""
    row_ptr, col, value, _ = couplings(30, torch.float32)
    x = torch.randn(1, 19, generator=generator()).expand(30, 19)
    assert not laplacian(x, row_ptr, col, value, backend=backend).any()
    assert dirichlet_energy(x, row_ptr, col, value, backend=backend) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_reaches_what_is_coupled_with_it(backend: str) -> None:
    row_ptr, col, value, dense = couplings(30, torch.float32)
    x = torch.randn(30, 2, generator=generator())
    x[4, 1] = torch.nan
    y = laplacian(x, row_ptr, col, value, backend=backend)
    reached = dense[4] > 0
    reached[4] = reached.any()
    assert torch.equal(y[:, 1].isnan(), reached)
    assert not y[:, 0].isnan().any()
    assert dirichlet_energy(x, row_ptr, col, value, backend=backend).isnan()


@COMPILED
def test_threads_and_chunks_do_not_change_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    row_ptr, col, value, _ = couplings(700, torch.float32, 0.02)
    x = torch.randn(700, 130, generator=generator())
    runs = []
    threads = torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        runs.append(laplacian(x, row_ptr, col, value, backend="cpu"))
    torch.set_num_threads(threads)
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    whole = laplacian(x, row_ptr, col, value, backend="reference")
    monkeypatch.setattr(reference, "_CHUNK_BYTES", 5000)
    assert torch.equal(laplacian(x, row_ptr, col, value, backend="reference"), whole)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # torch's own, in forward mode
@pytest.mark.parametrize("backend", BACKENDS)
def test_transforms_of_torch_func(backend: str) -> None:
    row_ptr, col, value, dense = couplings(9, torch.float64, 0.5)
    xs = torch.randn(3, 9, 4, generator=generator(), dtype=torch.float64)
    matrix = dense.sum(1).diag() - dense

    def energy(x: Tensor) -> Tensor:
        return dirichlet_energy(x, row_ptr, col, value, backend=backend)

    torch.testing.assert_close(
        torch.func.vmap(energy)(xs), torch.stack([energy(x) for x in xs]), rtol=1e-12, atol=0
    )
    far = 1e8 + xs  # differences alone count
    torch.testing.assert_close(
        torch.func.vmap(energy)(far), torch.stack([energy(x) for x in far]), rtol=1e-6, atol=0
    )
    grads = torch.func.vmap(torch.func.grad(energy))(xs)
    torch.testing.assert_close(grads, 2 * matrix @ xs)
    slope = torch.func.jvp(energy, (xs[0],), (xs[1],))[1]
    torch.testing.assert_close(slope, (grads[0] * xs[1]).sum())
    hessian = torch.func.hessian(lambda x: energy(x[:, None]))(xs[0, :, 0])
    torch.testing.assert_close(hessian, 2 * matrix)
    with pytest.raises(ShapeError, match="cannot be mapped"):
        torch.func.vmap(lambda v: laplacian(xs[0], row_ptr, col, v))(value.expand(2, -1))


def test_compiles_as_a_whole_and_is_a_registered_operator() -> None:
    row_ptr, col, value, _ = couplings(20, torch.float32)
    x = torch.randn(20, 5, generator=generator(), requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return dirichlet_energy(x.tanh(), row_ptr, col, value)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), expected)
    for op in (torch.ops.scisparse.laplacian, torch.ops.scisparse.dirichlet_energy):
        torch.library.opcheck(op, (x, row_ptr, col, value, "auto"))


def test_runs_where_a_backend_of_other_operators_is_chosen() -> None:
    row_ptr, col, value, _ = couplings(20, torch.float32)
    x = torch.randn(20, 5, generator=generator())
    with use_backend("triton"):
        y = laplacian(x, row_ptr, col, value)
    assert torch.equal(y, laplacian(x, row_ptr, col, value, backend="reference"))


def test_what_does_not_fit_is_an_error() -> None:
    row_ptr, col, value, _ = couplings(6, torch.float32, 0.5)
    x = torch.randn(6, 2)
    with pytest.raises(ShapeError, match=r"`x` \[5, 2\], `row_ptr` \[7\]"):
        laplacian(x[:5], row_ptr, col, value)
    with pytest.raises(ShapeError, match="must be"):
        dirichlet_energy(x, row_ptr, col, value[1:])
    for given in (col.float(), col.short(), col[:, None]):
        with pytest.raises(ShapeError, match="`col` is"):
            laplacian(x, row_ptr, given, value)
    with pytest.raises(ShapeError, match=r"`row_ptr` is torch\.int32"):
        laplacian(x, row_ptr.int(), col, value)
    with pytest.raises(ShapeError, match="several devices"):
        laplacian(x, row_ptr, col.to("meta"), value)
    with pytest.raises(ShapeError, match="must be floats"):
        laplacian(x.long(), row_ptr, col, value)
    with pytest.raises(PatternError, match="row_ptr"):
        laplacian(x, row_ptr + 1, col, value, backend="reference")
    with pytest.raises(OptionError, match="'triton' is unknown"):
        laplacian(x, row_ptr, col, value, backend="triton")
    with debug_mode(), pytest.raises(PatternError, match="below 6 sources"):
        laplacian(x, row_ptr, col + 1, value)
    if not isinstance(cpu.can_run(x.device, x.dtype), str):
        with pytest.raises(PatternError, match="row_ptr"):
            laplacian(x, row_ptr + 1, col, value, backend="cpu")


@pytest.mark.parametrize(("chunk", "most"), [(2**22, 0), (300, 1)], ids=["whole", "in parts"])
def test_bounds_of_rows_are_read_once_if_at_all(
    chunk: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each look at values is a wait, and impossible inside a CUDA graph."""
    row_ptr, col, value, dense = couplings(40, torch.float64)
    x = torch.randn(40, 3, generator=generator(), dtype=torch.float64)
    expected = dense.sum(1)[:, None] * x - dense @ x
    looks: list[Tensor] = []
    read = Tensor.tolist

    def counted(values: Tensor) -> object:
        looks.append(values)
        return read(values)

    monkeypatch.setattr(reference, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(Tensor, "tolist", counted)
    torch.testing.assert_close(reference.laplacian(x, row_ptr, col, value), expected)
    assert len(looks) == most
