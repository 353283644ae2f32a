"""What stands where a result is written: links, devices and permissions stay as they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xarray as xr

from scisparse.errors import CheckpointError, DataError, ScisparseError
from scisparse.files import check_target, write_data
from scisparse.postprocess.checkpoint import write_checkpoint


def write_netcdf(path: Path) -> None:
    write_data(xr.Dataset({"t2m": ("lat", [1.0])}), path)


def write_model(path: Path) -> None:
    write_checkpoint(path, {"weight": torch.ones(1)}, {})


@pytest.mark.parametrize("write", [write_netcdf, write_model])
def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path, write: Callable[..., None]) -> None:
    file, link = tmp_path / "days" / "today", tmp_path / "latest"
    file.parent.mkdir()
    link.symlink_to(file)
    for _ in range(2):  # there is no such file at first
        file.unlink(missing_ok=True)
        write(link)
        assert link.is_symlink()
        assert file.stat().st_size > 0
    assert sorted(tmp_path.rglob("*")) == [file.parent, file, link]


def test_a_link_to_a_store_stays(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    store, link = tmp_path / "today.zarr", tmp_path / "latest.zarr"
    write_netcdf(store)
    link.symlink_to(store)
    write_netcdf(link)
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.zarr", "today.zarr"]


@pytest.mark.parametrize("write", [write_netcdf, write_model])
def test_permissions_of_the_file_before_are_kept(
    tmp_path: Path, write: Callable[..., None]
) -> None:
    file = tmp_path / "private"
    file.touch()
    file.chmod(0o600)
    write(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("write", [write_netcdf, write_model])
def test_a_pipe_or_device_is_never_replaced(tmp_path: Path, write: Callable[..., None]) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(ScisparseError, match=r"is a device or pipe, not a file"):
            write(path)
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_links_that_go_in_circles_are_an_error(tmp_path: Path) -> None:
    first, second = tmp_path / "a.nc", tmp_path / "b.nc"
    first.symlink_to(second)
    second.symlink_to(first)
    with pytest.raises(DataError, match=r"a\.nc: is a link that leads to itself"):
        check_target(first, stores=True)
    with pytest.raises(CheckpointError, match="is a link that leads to itself"):
        write_model(first)
