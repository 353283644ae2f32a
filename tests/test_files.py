"""Reading and writing: errors name the file, nothing half-written stays."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Literal, get_args

import netCDF4
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


_FAILURES = {
    OSError(errno.ENOSPC, "disk full"): r"\(disk full\); free space or",
    RuntimeError("NetCDF: HDF error"): r"\(NetCDF: HDF error\); free space or",
    NotImplementedError("such\nlines"): r"\(such\); convert or drop what (netCDF|Zarr) cannot hold",
    TypeError(): r"\(TypeError\); convert or drop what (netCDF|Zarr) cannot hold",
}


@pytest.mark.parametrize("name", ["data.nc", "data.zarr"])
@pytest.mark.parametrize("error", list(_FAILURES), ids=lambda error: type(error).__name__)
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path,
    dataset: xr.Dataset,
    name: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_data(dataset, tmp_path / name)

    def fail(self: xr.Dataset, path: Path, **kwargs: object) -> None:
        Path(path).write_text("half")
        raise error

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    monkeypatch.setattr(xr.Dataset, "to_zarr", fail)
    with pytest.raises(DataError, match=rf"{name}: cannot be written {_FAILURES[error]}"):
        write_data(dataset + 1, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert open_data(tmp_path / name).identical(dataset)


def test_a_store_stays_when_the_new_one_cannot_take_its_name(
    tmp_path: Path, dataset: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "data.zarr"
    write_data(dataset, target)
    rename = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if to == target and not self.name.startswith("old"):
            raise OSError(errno.EACCES, "not now")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DataError, match=r"data\.zarr: cannot be written \(not now\)"):
        write_data(dataset + 1, target)
    assert list(tmp_path.iterdir()) == [target]
    assert open_data(target).identical(dataset)


def test_a_full_disk_is_said_by_netcdf_too(tmp_path: Path) -> None:
    """The library tells of it by a RuntimeError."""
    resource = pytest.importorskip("resource")
    noise = xr.Dataset({"a": ("x", np.random.default_rng(0).normal(size=100_000))})
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
        with pytest.raises(DataError, match=r"full\.nc: cannot be written .*; free space"):
            write_data(noise, tmp_path / "full.nc")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float16", "complex128", "object"])
def test_what_netcdf_cannot_hold_is_refused(tmp_path: Path, dtype: str) -> None:
    values = np.array([object()] * 3) if dtype == "object" else np.ones(3, dtype)
    with pytest.raises(DataError, match=rf"a\.nc: .*{dtype}.*; convert or drop what netCDF"):
        write_data(xr.Dataset({"object": ("x", values)}), tmp_path / "a.nc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data.nc", "data.zarr"])
def test_a_stack_of_coordinates_is_refused_with_remedies_that_work(
    tmp_path: Path, dataset: xr.Dataset, name: str
) -> None:
    stack = dataset.stack(cell=("lat", "lon"))
    with pytest.raises(DataError, match=r"'cell' is a stack of \['lat', 'lon'\]") as info:
        write_data(stack, tmp_path / name)
    for remedy in (".unstack('cell')", ".reset_index('cell')"):
        assert remedy in str(info.value)
        plain = eval(f"stack{remedy}", {"stack": stack})
        write_data(plain, tmp_path / name)
        assert open_data(tmp_path / name).equals(plain)


@pytest.mark.parametrize("decode", ["coordinates", "all"])
def test_what_encoding_tells_of_values_is_kept(
    tmp_path: Path, decode: Literal["coordinates", "all"]
) -> None:
    """Grid mapping, units of time bounds and the unlimited dim; not the packing of numbers."""
    time = np.datetime64("2001-01-01", "ns") + np.arange(4) * np.timedelta64(6, "h")
    numbers = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
    source = xr.Dataset(
        {
            "t2m": (("time", "x"), numbers, {"grid_mapping": "crs"}),
            "crs": ((), 0, {"grid_mapping_name": "latitude_longitude"}),
            "time_bnds": (("time", "nv"), np.stack([time, time + np.timedelta64(6, "h")], 1)),
            "x_bnds": (("x", "nv"), np.arange(6.0).reshape(3, 2)),
        },
        {"time": ("time", time, {"bounds": "time_bnds"}), "x": ("x", [0.5, 2.5, 4.5])},
    )
    source["x"].attrs["bounds"] = "x_bnds"
    source["time"].encoding = {"units": "hours since 1900-01-01", "calendar": "gregorian"}
    source["t2m"].encoding = {"dtype": "i2", "scale_factor": 1e-3, "_FillValue": -9999}
    source.to_netcdf(tmp_path / "in.nc", unlimited_dims=["time"])
    with xr.open_dataset(tmp_path / "in.nc", decode_coords=decode) as opened:
        data = opened.load()
    data["t2m"] = data["t2m"].copy(data=numbers)
    write_data(data, tmp_path / "out.nc")
    with netCDF4.Dataset(tmp_path / "out.nc") as out:
        assert out["t2m"].grid_mapping == "crs"
        assert out["t2m"].dtype == np.float32
        assert out["time"].units == "hours since 1900-01-01"
        assert getattr(out["time_bnds"], "units", out["time"].units) == out["time"].units
        filled = {name for name, v in out.variables.items() if "_FillValue" in v.ncattrs()}
        assert filled == {"t2m"}
        assert [dim for dim in out.dimensions if out.dimensions[dim].isunlimited()] == ["time"]
    with xr.open_dataset(tmp_path / "out.nc", decode_coords=decode) as read:
        xr.testing.assert_equal(read, data)


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


Classic = Literal["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"]
_VARIABLES = {
    "fixed": {"a": ("f4", "yx"), "b": ("f8", "x"), "c": ("i1", "y"), "d": ("i2", "")},
    "one in records": {"a": ("i1", "tx"), "b": ("f4", "yx")},
    "several in records": {
        "a": ("i2", "tx"),
        "b": ("f8", "y"),
        "c": ("i1", "tyx"),
        "t": ("f8", "t"),
    },
    "no records yet": {"a": ("i2", "tx"), "b": ("f4", "y"), "c": ("i1", "ty")},
}


@pytest.mark.parametrize("version", get_args(Classic))
@pytest.mark.parametrize("kind", list(_VARIABLES))
def test_a_classic_file_cut_anywhere_is_refused(
    tmp_path: Path, kind: str, version: Classic
) -> None:
    """The library itself reads zeros where such a file ends too early."""
    rng = np.random.default_rng(len(kind))
    sizes = {"t": 0 if kind == "no records yet" else 5, "y": 3, "x": 7}
    path = tmp_path / "classic.nc"
    with netCDF4.Dataset(path, "w", format=version) as file:
        file.setncatts({"title": "odd", "numbers": np.arange(3, dtype="i2")})
        for dim, size in sizes.items():
            file.createDimension(dim, None if dim == "t" else size)
        for name, (dtype, dims) in _VARIABLES[kind].items():
            variable = file.createVariable(name, dtype, tuple(dims))
            variable.long_name = name * 5
            variable[:] = rng.integers(1, 99, [sizes[dim] for dim in dims])
    whole = path.read_bytes()
    expected = open_data(path)
    assert set(expected.variables) == set(_VARIABLES[kind])
    for keep in {len(whole) - 4, *rng.integers(8, len(whole) - 4, 20)}:
        path.write_bytes(whole[:keep])
        with pytest.raises(DataError, match=r"classic\.nc: .*(cut short|damaged).*copy it again"):
            open_data(path)
    # more than the header tells does no harm
    path.write_bytes(whole + bytes(5))
    assert open_data(path).identical(expected)


def test_a_stream_that_does_not_count_its_records_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stream.nc"
    times = xr.Dataset({"a": ("t", np.arange(4.0))})
    times.to_netcdf(path, format="NETCDF3_CLASSIC", unlimited_dims=["t"])
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 4 + whole[8:])
    with pytest.raises(DataError, match=rf"has {len(whole)} bytes but its header tells of"):
        open_data(path)


@pytest.mark.parametrize("inside", ["", "thesis.txt", "folder/zarr.json"])
def test_a_folder_that_is_no_store_is_kept(
    tmp_path: Path, dataset: xr.Dataset, inside: str
) -> None:
    target = tmp_path / "work.zarr"
    target.mkdir()
    if inside:
        (target / inside).parent.mkdir(exist_ok=True)
        (target / inside).write_text("years of work")
    with pytest.raises(DataError, match=r"work\.zarr: is a folder without any of zarr\.json"):
        write_data(dataset, target)
    assert not inside or (target / inside).read_text() == "years of work"


def test_a_store_of_either_format_is_replaced(tmp_path: Path, dataset: xr.Dataset) -> None:
    for version in (2, 3):
        target = tmp_path / f"v{version}.zarr"
        (dataset + 1).to_zarr(target, zarr_format=version, consolidated=version == 2)
        write_data(dataset, target)
        assert open_data(target).identical(dataset)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["data.nc", "data.zarr"])
def test_stores_of_every_version_are_written_again(
    tmp_path: Path, version: Literal[2, 3], name: str
) -> None:
    times = np.arange("2001-01-01", "2001-01-07", dtype="datetime64[D]").astype("datetime64[ns]")
    rng = np.random.default_rng(1)
    values = rng.normal(size=(6, 4)).astype(np.float32)
    values[0, 0] = np.nan
    dataset = xr.Dataset(
        {
            "t2m": (("time", "station"), values, {"units": "K"}),
            "count": (("time", "station"), rng.integers(0, 9, (6, 4))),
            "seen": (("time", "station"), rng.random((6, 4)) < 0.5),
            "started": (("time",), times),
            "time_bnds": (("time", "side"), np.stack([times, times + np.timedelta64(1, "D")], 1)),
        },
        {
            "time": ("time", times, {"bounds": "time_bnds"}),
            "step": np.timedelta64(24, "h").astype("timedelta64[ns]"),
            "station": np.array(["Bern", "Chur", "Genf", "Zug"], dtype=object),
            "height": ("station", [550.0, np.nan, 400.0, 425.0]),
        },
    )
    old = tmp_path / "old.zarr"
    encoding: dict[str, dict[str, object]] = {
        "t2m": {"chunks": (2, 3)},
        "height": {"chunks": (3,), "dtype": "int16", "scale_factor": 0.5, "_FillValue": -1},
    }
    if version == 3:
        encoding["count"] = {"shards": (4, 4), "chunks": (2, 2)}
    dataset.to_zarr(old, zarr_format=version, consolidated=version == 2, encoding=encoding)
    read = open_data(old)
    assert read.equals(dataset)
    for number, data in enumerate((read, read.isel(time=slice(1, None), station=[0, 2, 1]))):
        target = tmp_path / f"{number}_{name}"
        write_data(data, target)
        assert open_data(target).equals(data)


def test_what_zarr_says_in_json_goes_into_netcdf_as_text(
    tmp_path: Path, dataset: xr.Dataset
) -> None:
    said = {"flag": True, "table": {"a": [1, 2]}, "none": None, "mixed": [1, "a"], "empty": []}
    kept = {"text": "K", "words": ["a", "b"], "number": 2.5, "count": 3, "most": float("inf")}
    dataset["t2m"].attrs = said | kept
    dataset.attrs = {"flag": False}
    write_data(dataset, tmp_path / "data.zarr")
    write_data(open_data(tmp_path / "data.zarr"), tmp_path / "data.nc")
    read = open_data(tmp_path / "data.nc")
    texts = {"flag": "true", "table": '{"a": [1, 2]}', "none": "null", "mixed": '[1, "a"]'}
    assert read["t2m"].attrs == texts | {"empty": "[]"} | kept
    assert read.attrs == {"flag": "false"}
    assert dataset["t2m"].attrs == said | kept


def test_a_slash_in_a_name_is_refused_by_name(tmp_path: Path, dataset: xr.Dataset) -> None:
    with pytest.raises(DataError, match=r"data\.nc: netCDF allows no '/' .* 'a/b'; rename it"):
        write_data(dataset.rename(t2m="a/b"), tmp_path / "data.nc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data.nc", "data.zarr"])
def test_coordinates_and_bounds_have_no_fill_value(
    tmp_path: Path, dataset: xr.Dataset, name: str
) -> None:
    dataset["lat"].attrs["bounds"] = "lat_bnds"
    dataset["lat_bnds"] = (("lat", "nv"), np.arange(6.0).reshape(3, 2))
    dataset["height"] = ("lat", [1.0, np.nan, 2.0])
    dataset = dataset.set_coords("height")
    dataset["lon"].encoding["_FillValue"] = -999.0
    write_data(dataset, tmp_path / name)
    options = {"consolidated": False} if name.endswith("zarr") else None
    raw = xr.open_dataset(tmp_path / name, decode_cf=False, backend_kwargs=options)
    filled = {str(key) for key, variable in raw.variables.items() if "_FillValue" in variable.attrs}
    assert filled == {"t2m", "height"}
    assert open_data(tmp_path / name).equals(dataset)
    assert dataset["lon"].encoding["_FillValue"] == -999.0


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, dataset: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="cannot be written; choose a writable folder"):
        write_data(dataset, tmp_path / "data.nc")


@pytest.mark.parametrize(
    ("units", "calendar"), [("months since 1960-01-01", "360"), ("days since then", "standard")]
)
def test_times_that_cannot_be_decoded_are_named(tmp_path: Path, units: str, calendar: str) -> None:
    """The archive of NMME forecasts writes calendar 360."""
    path = tmp_path / "months.nc"
    attrs = {"units": units, "calendar": calendar}
    xr.Dataset(coords={"S": ("S", [376.0, 388.0], attrs)}).to_netcdf(path)
    with pytest.raises(DataError, match=r"months\.nc: its times are not in the CF form") as info:
        open_data(path)
    text = str(info.value)
    assert all(part in text for part in (units, "decode_times=False"))
    assert "cut short" not in text
    with xr.open_dataset(path, decode_times=False) as raw:
        data = raw.load()
    data["S"].attrs = {"units": "months since 1960-01-01", "calendar": "360_day"}
    data.to_netcdf(path)
    assert [str(date)[:10] for date in open_data(path)["S"].values] == ["1991-05-01", "1992-05-01"]


def test_words_are_written_in_a_way_that_every_zarr_library_reads(tmp_path: Path) -> None:
    """Words of one length have no standard, of which Zarr warns: warnings are errors here."""
    names = {"station": ["a", "bcd"], "wmo": ("station", ["10637", "10640"], {"long_name": "id"})}
    data = xr.Dataset({"t2m": ("station", [1.0, 2.0])}, names).assign_coords(expver="0001")
    for name in ("first.zarr", "second.zarr"):
        write_data(data, tmp_path / name)
        again = open_data(tmp_path / name)
        xr.testing.assert_identical(again, data)
        data = again
