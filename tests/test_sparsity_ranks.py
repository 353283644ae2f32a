"""Two ranks that see different data and draw different numbers keep one topology."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_workers import CASES, RANKS, train_together
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from scisparse.sparsity import ranks


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what each rank has of each case."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(train_together, (str(folder),), nprocs=RANKS)
    return folder


@pytest.mark.parametrize(("kind", "growth"), CASES)
def test_topology_is_the_same_on_all_ranks(trained: Path, kind: str, growth: str) -> None:
    first, second = (torch.load(trained / f"{kind}-{growth}-{rank}.pt") for rank in range(RANKS))
    assert kind in ("far", "gates") or max(first["churn"]) > 0
    for key in ("topology", "weights"):
        for a, b in zip(first[key], second[key], strict=True):
            assert torch.equal(a, b), key


def test_what_is_exchanged_stays_as_it_was(trained: Path) -> None:
    found = [torch.load(trained / f"kept-{rank}.pt") for rank in range(RANKS)]
    for one in found:
        for before, after in zip(one["before"], one["after"], strict=True):
            assert torch.equal(before, after)
        assert one["scales"] == pytest.approx([4.0] * 3)
        assert one["alone"] == 1.0


def test_final_forms_are_the_same_on_all_ranks(trained: Path) -> None:
    first, second = (torch.load(trained / f"forms-{rank}.pt") for rank in range(RANKS))
    assert first == second
    assert all(": dense (dense 1 ms" in form for form in first["measured"])
    assert "condensed" in first["full"][0]
    assert first["hooked"] == ["0.weight: condensed", first["measured"][1]]
    assert [shape[0] for shape in first["left"][::4]] == [4, 3]


@pytest.mark.parametrize(
    ("backend", "place", "meeting"),
    [
        ("cuda:gloo", "cpu", "cuda"),  # as NCCL, which does not know the CPU
        ("cuda:gloo", "cuda:1", "cuda:1"),
        ("cpu:gloo", "cuda:1", "cpu"),
        ("gloo", "cpu", "cpu"),
    ],
)
def test_ranks_meet_on_a_device_that_their_group_knows(
    tmp_path: Path, backend: str, place: str, meeting: str
) -> None:
    dist.init_process_group(backend, f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert ranks._meeting(torch.device(place)) == torch.device(meeting)
    finally:
        dist.destroy_process_group()
