"""Reading and writing: errors name the file, nothing half-written stays."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from scisparse.errors import DataError
from scisparse.files import open_data, write_data


@pytest.fixture
def dataset() -> xr.Dataset:
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    return xr.Dataset(
        {"t2m": (("lat", "lon"), values, {"units": "K"})},
        coords={"lat": [10.0, 20.0, 30.0], "lon": [0.0, 1.0, 2.0, 3.0]},
    )


@pytest.mark.parametrize("name", ["data.nc", "data.zarr"])
def test_what_is_written_is_read(tmp_path: Path, dataset: xr.Dataset, name: str) -> None:
    write_data(dataset, tmp_path / name)
    assert open_data(tmp_path / name).identical(dataset)
    write_data(dataset + 1, tmp_path / name)
    assert open_data(tmp_path / name).equals(dataset + 1)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.nc: no such file"):
        open_data(tmp_path / "nowhere.nc")


@pytest.mark.parametrize("keep", [0, 40, 2000])
def test_file_cut_short_is_named(tmp_path: Path, dataset: xr.Dataset, keep: int) -> None:
    path = tmp_path / "cut.nc"
    write_data(dataset, path)
    whole = path.read_bytes()
    assert keep < len(whole)
    path.write_bytes(whole[:keep])
    with pytest.raises(DataError, match=r"cut\.nc: cannot be read"):
        open_data(path)


def test_text_file_is_not_netcdf(tmp_path: Path) -> None:
    path = tmp_path / "notes.nc"
    path.write_text("not a netCDF file\n" * 100)
    with pytest.raises(DataError, match=r"notes\.nc: cannot be read"):
        open_data(path)


def test_folder_that_does_not_exist_is_named(tmp_path: Path, dataset: xr.Dataset) -> None:
    with pytest.raises(DataError, match="does not exist; create it first"):
        write_data(dataset, tmp_path / "no" / "data.nc")


@pytest.mark.parametrize("name", ["data.nc", "data.zarr"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, dataset: xr.Dataset, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(dataset, tmp_path / name)

    def fail(self: xr.Dataset, path: Path, **kwargs: object) -> None:
        Path(path).write_text("half")
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    monkeypatch.setattr(xr.Dataset, "to_zarr", fail)
    with pytest.raises(DataError, match=rf"{name}: cannot be written \(disk full\)"):
        write_data(dataset + 1, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert open_data(tmp_path / name).identical(dataset)


def test_a_folder_is_not_overwritten_by_a_file_nor_a_file_by_a_store(
    tmp_path: Path, dataset: xr.Dataset
) -> None:
    (tmp_path / "folder.nc").mkdir()
    (tmp_path / "file.zarr").write_text("something else")
    with pytest.raises(DataError, match=r"folder\.nc: is a folder, not a file; choose another"):
        write_data(dataset, tmp_path / "folder.nc")
    with pytest.raises(DataError, match=r"file\.zarr: is a file, not a Zarr store"):
        write_data(dataset, tmp_path / "file.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.zarr", "folder.nc"]
