"""Sparse exchange of gradients: three processes over gloo, once for all tests that need several.

Entries of what a scenario of `communication_cases.py` saw are lists over the ranks.
"""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from communication_cases import (
    WORLDS,
    batch,
    flat,
    loss_of,
    momentum,
    net,
    parallel,
    start,
    train,
    worker,
)
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from scisparse.errors import CheckpointError, OptionError
from scisparse.sparsity import exchange
from scisparse.sparsity.communication import TopKCompression, Traffic

worlds = pytest.mark.parametrize("world", WORLDS)
Results = Callable[[str, int], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results of a scenario at a world size, rank by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(worker, (folder,), nprocs=max(WORLDS))
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(max(WORLDS))]

    def results(scenario: str, world: int) -> list[dict[str, Any]]:
        return [ranks[rank][f"{scenario} {world}"] for rank in range(world)]

    return results


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process only."""
    start(0, 1, tmp_path / "init")
    yield
    dist.destroy_process_group()


@worlds
def test_density_one_and_warm_up_are_dense(seen: Results, world: int) -> None:
    for result in seen("dense_equal", world):
        plain, one, warm = result["ends"]
        torch.testing.assert_close(one, plain, rtol=0, atol=1e-6)
        torch.testing.assert_close(warm, plain, rtol=0, atol=1e-6)


@worlds
@pytest.mark.parametrize("view", [False, True])
def test_nothing_is_lost(seen: Results, world: int, view: bool) -> None:
    results = seen("nothing_lost", world)
    sent = world * torch.stack(results[0][f"means {view}"]).sum(0)
    left = torch.stack([result[f"rest {view}"] for result in results]).sum(0)
    torch.testing.assert_close(sent + left, results[0]["all"], rtol=1e-5, atol=1e-6)
    assert left.abs().sum() > 0.1 * sent.abs().sum()


@worlds
@pytest.mark.parametrize("view", [False, True])
def test_steps_are_those_of_the_formula(seen: Results, world: int, view: bool) -> None:
    for result in seen("nothing_lost", world):
        first, *others = result["buckets"]
        assert len(first) == 6  # all of them
        assert len(others) == 4 * 4  # and in another order
        torch.testing.assert_close(result[f"means {view}"], result["book means"])
        torch.testing.assert_close(result[f"rest {view}"], result["book rest"])


@worlds
def test_ranks_have_the_same_bits(seen: Results, world: int) -> None:
    ends = [result["end"] for result in seen("resumed", world)]
    means = [torch.stack(result["means False"]) for result in seen("nothing_lost", world)]
    assert all(torch.equal(end, ends[0]) for end in ends)
    assert all(torch.equal(mean, means[0]) for mean in means)


@worlds
def test_resumed_run_has_the_bits_of_an_uninterrupted_one(seen: Results, world: int) -> None:
    for result in seen("resumed", world):
        assert torch.equal(result["again"], result["end"])
        assert not torch.equal(result["without"], result["end"])  # the residual matters
        assert result["reports"][0] == result["reports"][1]


@worlds
def test_bits_do_not_depend_on_messages(seen: Results, world: int) -> None:
    for result in seen("resumed", world):
        assert torch.equal(result["cut"], result["end"])


@worlds
def test_state_of_another_rank_is_refused(seen: Results, world: int) -> None:
    for rank, result in enumerate(seen("resumed", world)):
        assert result["error"] == (
            f"`state` is of rank {rank + 1} of {world}, this is rank {rank} of {world}: "
            "each rank loads what it saved"
        )


def test_one_percent_learns_as_well_as_dense(seen: Results) -> None:
    results = seen("convergence", 2)
    dense, sparse, plain = (
        sum(result[name][0] for result in results) / 2
        for name in (
            "TopKCompression(density=1.0, dense_steps=0)",
            "TopKCompression(density=0.01, dense_steps=0)",
            "Forgetful(density=0.01, dense_steps=0)",
        )
    )
    assert sparse < 1.05 * dense
    assert plain > 2 * dense


def test_bytes_of_one_percent(seen: Results) -> None:
    for result in seen("convergence", 2):
        _, report = result["TopKCompression(density=0.01, dense_steps=0)"]
        kept, all_of_them = 19 + 1 + 2 + 1, 30 * 64 + 64 + 64 * 3 + 3
        assert report == {
            "steps": 300,
            "dense_steps": 0,
            "sent": 300 * kept * 8,
            "received": 300 * kept * 8,
            "dense": 300 * all_of_them * 4,
        }


@worlds
def test_switch_to_dense(seen: Results, world: int) -> None:
    for result in seen("traffic", world):
        assert [result[name]["dense_steps"] for name in ("0.01", "0.6", "warm")] == [0, 3, 2]
        few, dense = result["0.01"]["sent"], result["0.6"]["sent"]
        assert result["0.6"]["dense"] <= dense < 1.1 * result["0.6"]["dense"]  # parts are padded
        assert few < 0.1 * dense
        assert 2 * dense / 3 <= result["warm"]["sent"] <= 2 * dense / 3 + few


@worlds
def test_overflow_reaches_every_rank_and_no_residual(seen: Results, world: int) -> None:
    for result in seen("overflow", world):
        finite, scales, parameters, rests = zip(*result["TopKCompression"], strict=True)
        assert finite == (True, True, False, True)
        assert scales == (4.0, 4.0, 2.0, 2.0)
        assert torch.equal(parameters[2], parameters[1])
        assert torch.equal(rests[2], rests[1])
        assert not torch.equal(rests[3], rests[2])
        assert all(bool(rest.isfinite().all()) for rest in rests)


@worlds
def test_overflow_would_poison_an_unchecked_residual(seen: Results, world: int) -> None:
    poisoned = [result["Unchecked"][3][3] for result in seen("overflow", world)]
    assert not all(bool(rest.isfinite().all()) for rest in poisoned)


@worlds
@pytest.mark.parametrize("density", [0.1, 1.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float64, 1e-13)],
)
def test_other_dtypes(
    seen: Results, world: int, density: float, dtype: torch.dtype, tolerance: float
) -> None:
    totals, locals_, rests = zip(
        *(result[f"{dtype} {density}"] for result in seen("half", world)), strict=True
    )
    assert all(rest.dtype == torch.promote_types(dtype, torch.float32) for rest in rests)
    sent, left, everything = world * totals[0], sum(rests).double(), sum(locals_)
    error = (sent + left - everything).abs().max()
    assert error <= 3 * tolerance * everything.abs().max()
    assert bool(left.any()) == (density < 1)
    assert all(torch.equal(total, totals[0]) for total in totals)


@worlds
def test_residual_of_unused_parameters_waits(seen: Results, world: int) -> None:
    results = seen("unused", world)
    for rank, result in enumerate(results):
        rests, sent = result["rests"], result["sent"]
        assert torch.equal(rests[1], rests[0])
        assert torch.equal(rests[2], rests[1]) == (rank < world - 1)
        assert sent[1] is None
        assert sent[2].count_nonzero() == 16  # of the last rank alone
        assert rests[0].any()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("method", ["rigl", "lottery"])
def test_residuals_move_with_weights(seen: Results, method: str, sparse: bool) -> None:
    for result in seen("sparsified", max(WORLDS)):
        changes = 0
        for rest, learns, rest_after, learns_after in result[f"{method} {sparse}"]:
            changed = not torch.equal(learns, learns_after)
            stays = learns & learns_after & (not changed or method != "lottery")
            assert rest[learns].any()
            assert torch.equal(rest_after, rest * stays)
            changes += changed
        assert changes > 1


@pytest.mark.usefixtures("alone")
def test_one_rank_is_dense_and_sends_nothing() -> None:
    hook = TopKCompression(0.01)
    ddp, plain = parallel(net(), None, hook), net()
    end = train(ddp, range(3), 0, momentum(ddp))
    optimizer = momentum(plain)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(plain, batch(step, 0)).backward()
        optimizer.step()
    assert torch.equal(end, flat(plain.parameters()))
    assert hook.report() == Traffic(steps=3, dense_steps=3, sent=0, received=0, dense=0)


@pytest.mark.usefixtures("alone")
def test_state_that_does_not_fit() -> None:
    hook, other = TopKCompression(0.1), TopKCompression(0.1)
    ddp = parallel(net(), None, hook)
    train(ddp, range(1), 0, momentum(ddp))
    other.load_state_dict(hook.state_dict())
    with pytest.raises(CheckpointError, match=r"'0.bias' with shape \(20,\), the model with \(8,"):
        other.register(DistributedDataParallel(net(7, 8, 10, 3)))
    state = hook.state_dict()
    state["residual"]["2.bias"] = torch.zeros(4)
    with pytest.raises(
        CheckpointError, match=r"'2.bias' with shape \(4,\), the.*build the model that"
    ):
        hook.load_state_dict(state)
    with pytest.raises(CheckpointError, match="must hold 'place', 'counts' and 'residual': give"):
        hook.load_state_dict({"residual": {}})


@pytest.mark.usefixtures("alone")
def test_register_wants_a_parallel_model_once() -> None:
    hook, model = TopKCompression(0.1), net()
    with pytest.raises(OptionError, match=r"`model` \(=Sequential\) must be a Distributed.*wrap"):
        hook.register(model)  # type: ignore[arg-type]
    parallel(model, None, hook)
    with pytest.raises(OptionError, match=r"serves a model already: make another one"):
        parallel(net(), None, hook)


@pytest.mark.usefixtures("alone")
def test_sparse_gradients_are_refused() -> None:
    ddp = parallel(nn.Embedding(5, 3, sparse=True), None, TopKCompression(0.1))
    with pytest.raises(OptionError, match="build its embedding with `sparse=False`"):
        ddp(torch.tensor([1, 2])).sum().backward()


@pytest.mark.usefixtures("alone")
def test_hook_keeps_no_model_and_can_be_pickled() -> None:
    hook, model = TopKCompression(0.1, dense_steps=2), net()
    ddp = parallel(model, None, hook)
    train(ddp, range(2), 0, momentum(ddp))
    twin = pickle.loads(pickle.dumps(hook))
    gone = weakref.ref(model)
    parallel(model, None, twin)  # a copy serves another model
    del ddp, model
    gc.collect()
    assert gone() is None
    assert repr(twin) == "TopKCompression(density=0.1, dense_steps=2)"
    assert twin.report() == hook.report()


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_density_out_of_range(density: float) -> None:
    with pytest.raises(OptionError, match=r"`density` \(=.*\) must be above 0 and at most 1: try"):
        TopKCompression(density)


def test_dense_steps_out_of_range() -> None:
    with pytest.raises(OptionError, match=r"`dense_steps` \(=-1\) must be a whole number: try 0"):
        TopKCompression(0.1, dense_steps=-1)


def test_largest_prefers_what_is_not_finite() -> None:
    values = torch.tensor([5.0, -torch.inf, 1.0, torch.nan, 9.0])
    assert set(exchange.largest(values, 2).tolist()) == {1, 3}
    assert set(exchange.largest(values, 3).tolist()) == {1, 3, 4}


def test_cast_saturates() -> None:
    values = torch.tensor([1.0, 7e4, -7e4, torch.inf])
    assert exchange.cast(values, torch.float16).tolist() == [1.0, 65504.0, -65504.0, torch.inf]
    assert exchange.cast(values, torch.float32) is values
