"""Files of other formats: read, they are named for what they are; none is written by name alone."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scisparse.errors import DataError
from scisparse.files import open_data, write_data
from scisparse.formats import check_suffix
from scisparse.verification import evaluate

DATA = xr.Dataset({"t2m": ("x", [1.0, 2.0])}, {"x": [10.0, 20.0]})


def read_error(path: Path) -> str:
    with pytest.raises(DataError) as info:
        open_data(path)
    text = str(info.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("obs.csv", b"time,station,t2m\n2001-01-01,a,280\n", "a table of text (CSV), not netCDF"),
        ("obs.csv", "time;Köln\n".encode("utf-16"), "a table of text (CSV)"),
        ("obs.nc", b"time\tt2m\r\n1\t280.0\r\n", "a table of text (CSV)"),
        ("obs.nc", "time;\xb0C\n".encode("latin-1"), "a table of text (CSV)"),
        ("run.grib2", b"GRIB\0\0\0\2" + bytes(200), "GRIB, not netCDF or Zarr; make netCDF of"),
        ("run", b"GRIB\0\0\0\1" + bytes(200), "GRIB"),
        ("rain.tif", b"II*\0" + bytes(200), "a TIFF image (GeoTIFF)"),
        ("rain.nc", b"MM\0*" + bytes(200), "a TIFF image (GeoTIFF)"),
        ("era5.nc", b"<!DOCTYPE html>\n<html>", "a web page"),
        ("era5.grib", b"<HTML><body>Sign in, please</body>", "a web page"),
        ("a.json", b'{"a": [1, 2]}', "text"),
        ("a.nc", b"version https://git-lfs.github.com/spec/v1\n", "text"),
        ("a.hdf", b"\x0e\x03\x13\x01" + bytes(200), "HDF4"),
        ("a.nc", b"netcdf a {\ndimensions:\n", "netCDF written as text (CDL)"),
        ("a.nc.gz", gzip.compress(bytes(200)), "a compressed file"),
        ("a.nc", gzip.compress(bytes(200)), "a compressed file"),
        ("a.xlsx", b"PK\x03\x04" + bytes(200), "a table of Excel"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(200), "an image"),
    ],
)
def test_a_file_of_another_format_is_named(
    name: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    text = read_error(tmp_path / name)
    assert f"cannot be read: it seems to be {expected}" in text
    assert "cut short" not in text
    assert ".to_netcdf" not in text or f".to_netcdf('{tmp_path / name}')" not in text


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b"\x89HDF\r\n\x1a\n"), ("a.nc", bytes(40)), ("a.nc", b"")]
)
def test_what_is_cut_short_is_not_taken_for_another(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    text = read_error(tmp_path / name)
    assert "seems to be" not in text
    assert ("cut short" if content else "it is empty; copy or download it again") in text


def test_the_recipe_for_a_table_gives_what_can_be_scored(tmp_path: Path) -> None:
    """As the README tells it, on from the remedy."""
    rows = [(f"2001-01-0{day}", place, 50.0 + place, 8.0, 280.0 + day * place)
            for day in (1, 2, 3) for place in (1, 2)]  # fmt: skip
    path = tmp_path / "stations.csv"
    pd.DataFrame(rows, columns=["time", "station", "lat", "lon", "t2m"]).to_csv(path, index=False)
    names = {"pandas": pd}
    exec("table = " + read_error(path).split("table = ")[1], names)
    table = names["table"]
    stations = table.set_index(["time", "station"])[["t2m"]].to_xarray()
    places = table.groupby("station")[["lat", "lon"]].first().to_xarray()
    stations.assign_coords(places).to_netcdf(tmp_path / "stations.nc")
    observed = open_data(tmp_path / "stations.nc")
    assert {"lat", "lon", "time"} < {*observed.coords}
    assert float(evaluate(observed + 1.0, observed)["rmse"]) == pytest.approx(1.0)


def test_variables_in_groups_alone_are_named(tmp_path: Path) -> None:
    path = tmp_path / "granule.nc"
    for group in ("PRODUCT/inner", "METADATA"):
        DATA.to_netcdf(path, group=group, mode="a" if path.exists() else "w")
    text = read_error(path)
    assert "has variables in groups alone, PRODUCT/inner, METADATA" in text
    exec(text.split("first, with ")[1], {"xarray": xr})
    assert open_data(tmp_path / "granule_netcdf.nc").equals(DATA)
    store = tmp_path / "archive.zarr"
    DATA.to_zarr(store, group="forecast", consolidated=False)
    assert read_error(store).endswith(f"forecast; give one of them, such as {store}/forecast")
    assert open_data(store / "forecast").equals(DATA)


def test_hdf5_that_names_no_dims(tmp_path: Path) -> None:
    """The library gives dims of such files names of its own, here written as they are read."""
    path = tmp_path / "bare.h5"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("phony_dim_0", 3)
        file.createVariable("t2m", "f4", ("phony_dim_0",))[:] = np.arange(3)
    assert "is HDF5 that names no dims" in read_error(path)


@pytest.mark.parametrize(
    ("name", "told", "instead"),
    [
        ("scores.csv", "a table of text (CSV)", "scores.nc"),
        ("scores.XLSX", "a table of Excel", "scores.nc"),
        ("c.grib", "GRIB", "c.nc"),
        ("c.tif", "a TIFF image", "c.nc"),
        ("c.nc.gz", "a compressed file", "c.nc"),
        ("c.json", "text", "c.nc"),
        ("c.safetensors", "a model", "c.nc"),
        ("c.png", "an image", "c.nc"),
    ],
)
def test_netcdf_is_not_written_under_the_name_of_another_format(
    name: str, told: str, instead: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="but netCDF or Zarr is written; names end") as info:
        write_data(DATA, tmp_path / name)
    text = str(info.value)
    assert f"{name}: the name is that of {told}" in text
    assert (
        f"in .nc, .nc4, .netcdf, .cdf, .zarr or have no suffix: write {tmp_path / instead}" in text
    )
    assert list(tmp_path.iterdir()) == []
    if ".to_csv" in text:  # as it advises
        write_data(DATA, tmp_path / instead)
        exec(text.split("of it with ")[1], {"xarray": xr})
        assert (tmp_path / "scores.csv").read_text().startswith("x,t2m\n10.0,1.0")


@pytest.mark.parametrize(
    "name", ["a", "a.nc", "a.NC", "a.nc4", "a.netcdf", "a.cdf", "a.2021", "a.h5"]
)
def test_other_names_get_netcdf(name: str, tmp_path: Path) -> None:
    write_data(DATA, tmp_path / name)
    assert open_data(tmp_path / name).equals(DATA)
    assert (tmp_path / name).read_bytes()[:4] == b"\x89HDF"


def test_a_store_is_one_in_capitals_too(tmp_path: Path) -> None:
    write_data(DATA, tmp_path / "A.ZARR")
    assert (tmp_path / "A.ZARR").is_dir()
    assert open_data(tmp_path / "A.ZARR").equals(DATA)


@pytest.mark.parametrize("name", ["m.nc", "m.zarr", "m.csv", "m.grib"])
def test_a_model_is_not_written_under_the_name_of_data(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"but a model is written; .*: write {tmp_path}/m\.safe"):
        check_suffix(tmp_path / name, stores=False)


@pytest.mark.parametrize("name", ["m", "m.safetensors", "m.v2", "m.model"])
def test_a_model_may_have_any_other_name(name: str, tmp_path: Path) -> None:
    check_suffix(tmp_path / name, stores=False)


def test_a_zip_of_anything_is_unpacked_first(tmp_path: Path) -> None:
    path = tmp_path / "data.nc"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inside.nc", "x")
    assert "it seems to be a compressed file, not netCDF or Zarr; unpack it first" in read_error(
        path
    )
