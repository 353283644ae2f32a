"""What does not fit is said before it is allocated."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_cases import Operators, no_taps

from scisparse import memory
from scisparse.errors import MemoryLimitError
from scisparse.layers import LocallyConnected, LocallyConnected2d, LowRankLocallyConnected
from scisparse.patterns import window

CPU = torch.device("cpu")


def test_too_large_is_said_before_allocating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, what is free, and the ties that fit; nothing of the size of the weights was made."""
    pattern = window((20, 30), 3, padding_mode="circular")
    assert pattern.num_edges == 5400
    needed = {"tie=None": 5400 * 8 * 16 * 4, "longitude": 180 * 8 * 16 * 4, "all": 9 * 8 * 16 * 4}
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed["longitude"])
    with (
        Operators() as operators,
        pytest.raises(MemoryLimitError, match="the weights need 2,764,800 bytes") as error,
    ):
        LocallyConnected(pattern, 8, 16, bias=False)
    assert "(2.6 MiB) and 90.0 KiB are free on cpu" in str(error.value)
    assert "these would fit: tie='longitude' (90.0 KiB), tie='all' (4.5 KiB)" in str(error.value)
    assert operators.largest <= 5400 * 8  # indices of edges at most
    assert LocallyConnected(pattern, 8, 16, bias=False, tie="longitude").weight.shape[0] == 180
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed["longitude"] - 1)
    with pytest.raises(MemoryLimitError, match=r"these would fit: tie='all' \(4.5 KiB\)$"):
        LocallyConnected(pattern, 8, 16, bias=False, tie="longitude")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 100)
    with pytest.raises(MemoryLimitError, match=r"; use fewer channels or a coarser grid$"):
        LocallyConnected(pattern, 8, 16, bias=False, tie="all")


def test_groups_and_dtype_count_in_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = window((20, 30), 1)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 0)
    with pytest.raises(MemoryLimitError, match=f"{600 * 4 * 8 * 8 // 4:,} bytes"):
        LocallyConnected(pattern, 4, 8, bias=False, groups=4, dtype=torch.float64)
    with pytest.raises(MemoryLimitError, match=f"{600 * 4 * 8 * 2:,} bytes"):
        LocallyConnected(pattern, 4, 8, bias=False, dtype=torch.bfloat16)


def test_a_pattern_without_other_ties_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10)
    with pytest.raises(MemoryLimitError, match=r"; use fewer channels or a coarser grid$"):
        LocallyConnected(no_taps(), 1, 1)


def test_low_rank_basis_and_mixing_count(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 9 * 2 * 3 * 4 * 4 + 24 * 4 * 4
    pattern = window((4, 6), 3)
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed - 1)
    with pytest.raises(MemoryLimitError, match="the weights need 1,248 bytes"):
        LowRankLocallyConnected(pattern, 2, 3, 4)


def test_meta_device_needs_no_memory() -> None:
    assert memory.available_bytes(torch.device("meta")) is None
    pattern = window((300, 300), 5)
    assert LocallyConnected(pattern, 2**12, 2**12, device="meta").weight.nbytes > 2**43


def test_exactly_what_is_free_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 100)
    memory.check_fits(100, CPU, lambda: pytest.fail("remedies are for what does not fit"))
    with pytest.raises(
        MemoryLimitError, match=r"need 101 bytes \(101 bytes\) and 100 bytes are free"
    ):
        memory.check_fits(101, CPU, dict)


def test_unknown_memory_lets_everything_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    memory.check_fits(2**60, CPU, dict)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="/proc/meminfo is on Linux only")
def test_available_memory_is_what_linux_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_GROUP_OF_SELF", "/none")
    text = Path("/proc/meminfo").read_text()
    expected = int(text.split("MemAvailable:")[1].split()[0]) * 1024
    assert memory.available_bytes(CPU) == pytest.approx(expected, rel=0.5)  # others use it too


def test_without_meminfo_total_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(builtins, "open", refuse)
    expected = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.available_bytes(CPU) == expected
    monkeypatch.setattr(os, "sysconf_names", {})
    assert memory.available_bytes(CPU) is None


_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_V2 = ("", "memory.max", "memory.current", "")


def group(
    folder: Path, files: tuple[str, str, str, str], limit: str, used: int, pages: int
) -> None:
    """Files of a control group that may use `limit`, with `pages` bytes of files in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files[1]).write_text(f"{limit}\n")
    (folder / files[2]).write_text(f"{used}\n")
    stat = f"{files[3]}inactive_file {pages - pages // 3}\n{files[3]}active_file {pages // 3}\n"
    (folder / "memory.stat").write_text(f"anon 123\n{stat}sock 0\n")


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="/proc/meminfo is on Linux only")
@pytest.mark.parametrize(("files", "member"), [(_V2, "0::/"), (_V1, "4:cpu,memory:/")])
def test_limits_of_control_groups_count(
    tmp_path: Path,
    files: tuple[str, str, str, str],
    member: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, mib = tmp_path / files[0], 2**20
    own = tmp_path / "self"
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_GROUP_OF_SELF", str(own))
    unlimited = memory.available_bytes(CPU)
    assert unlimited is not None
    assert unlimited > 100 * mib
    own.write_text(f"7:pids:/other\n{member}job/step\n1:cpuset:/\n")
    most = "max" if files is _V2 else str(2**63 - 4096)
    group(root / "job" / "step", files, most, 5 * mib, 0)
    group(root / "other", files, str(mib), mib, 0)
    assert memory.available_bytes(CPU) == pytest.approx(unlimited, rel=0.5)
    # the group above holds it too; pages of files can be dropped
    group(root / "job", files, str(64 * mib), 40 * mib, 9 * mib)
    assert memory.available_bytes(CPU) == 33 * mib
    group(root / "job" / "step", files, str(32 * mib), 5 * mib, 0)
    assert memory.available_bytes(CPU) == 27 * mib
    # a container sees its own group at the root
    own.write_text(f"{member}of/the/host\n")
    group(root, files, str(16 * mib), 20 * mib, 0)
    assert memory.available_bytes(CPU) == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (5 * 2**20 // 2, "2.5 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**40, "1.0 TiB"),
        (2**53, "8192.0 TiB"),
    ],
)
def test_readable(size: int, text: str) -> None:
    assert memory.readable(size) == text


def test_edges_of_windows_and_biases_of_sites_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with Operators() as operators, pytest.raises(MemoryLimitError, match=r"\(10001, 10001\) at"):
        LocallyConnected2d(1, 1, 10001, input_size=(721, 1440), padding=5000, tie="all")
    assert operators.largest <= 10**6
    pattern = window((20, 30), 1)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 600 * 7 * 4)
    with pytest.raises(MemoryLimitError, match=f"{600 * 7 * 4 + 7 * 4:,} bytes"):
        LocallyConnected(pattern, 1, 7, tie="all", bias="site")
    LocallyConnected(pattern, 1, 7, tie="all", bias="shared")
