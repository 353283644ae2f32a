"""Two ranks that see different data and draw different numbers keep one topology."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_workers import RANKS, train_together
from torch.multiprocessing.spawn import spawn


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("kind", ["masked", "edges"])
def test_topology_is_the_same_on_all_ranks(tmp_path: Path, kind: str, growth: str) -> None:
    spawn(train_together, (str(tmp_path), kind, growth), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"{kind}-{growth}-{rank}.pt") for rank in range(RANKS))
    assert max(first["churn"]) > 0
    for key in ("topology", "weights"):
        for a, b in zip(first[key], second[key], strict=True):
            assert torch.equal(a, b), key
