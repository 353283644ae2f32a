"""Saved post-processors: bit for bit, whole or not at all, and nothing is executed on loading."""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from postprocess_cases import GLOBAL, METHODS, PLANE, QUICK, ensemble, fitted, points

from scisparse.errors import CheckpointError
from scisparse.postprocess import PostProcessor
from scisparse.postprocess.checkpoint import read_checkpoint, write_checkpoint
from scisparse.postprocess.standard import Standard

FORECAST, OBSERVED = ensemble(8)
MODEL = fitted("emos", FORECAST, OBSERVED)


def assert_same(first: PostProcessor, second: PostProcessor, forecast: Any = FORECAST) -> None:
    for options in ({}, {"members": True}, {"quantiles": [0.1, 0.9]}):
        predicted = (m.predict(forecast, **options).drop_attrs() for m in (first, second))
        xr.testing.assert_identical(*predicted)
    assert repr(first) == repr(second)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """JSON header and rest of a safetensors file."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def join(path: Path, header: dict[str, Any], rest: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


@pytest.mark.filterwarnings("ignore:this method reads the target alone")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_back_bit_for_bit(method: str, tmp_path: Path) -> None:
    wind = FORECAST * 2.0 + np.random.default_rng(1).normal(size=FORECAST.shape)
    data = FORECAST.to_dataset().assign(wind=wind.assign_attrs(units="m s-1"))
    data = data.assign_coords(model=("member", list("aabb")))
    seen = OBSERVED.where(np.random.default_rng(0).random(OBSERVED.shape) > 0.2)
    seen[:, 1, 1] = np.nan
    options: dict[str, Any] = {"groups": "model", "distribution": "censored_normal", "seed": 5}
    model = fitted(method, data, seen, **options)
    model.save(tmp_path / "model.safetensors")
    again = PostProcessor.load(tmp_path / "model.safetensors")
    assert_same(model, again, data)
    assert (again.method, again.target, again.groups, again.seed) == (method, "t2m", "model", 5)
    assert again.options == QUICK
    assert again.distribution == model.distribution
    again.save(tmp_path / "again.safetensors")
    assert parts(tmp_path / "again.safetensors") == parts(tmp_path / "model.safetensors")


@pytest.mark.parametrize("method", ["emos", "local"])
@pytest.mark.parametrize("axes", [GLOBAL, PLANE, None])
def test_every_grid_comes_back(axes: Any, method: str, tmp_path: Path) -> None:
    field, observed = ensemble(8, axes=axes)
    if axes is None:
        field, observed = points(field), points(observed)
    model = fitted(method, field, observed)
    model.save(tmp_path / "model")
    assert_same(model, PostProcessor.load(tmp_path / "model"), field)


def test_a_loaded_model_still_checks_forecasts(tmp_path: Path) -> None:
    MODEL.save(tmp_path / "model")
    again = PostProcessor.load(tmp_path / "model")
    with pytest.raises(ValueError, match="has units 'degC' but 'K' is needed"):
        again.predict(FORECAST.assign_attrs(units="degC"))
    with pytest.raises(ValueError, match="is on LatLonGrid"):
        again.predict(FORECAST.isel(lon=slice(0, 5)))
    noleap = xr.date_range("2001", periods=8, calendar="noleap", use_cftime=True)
    with pytest.raises(ValueError, match="calendar 'noleap' but the model was trained on"):
        again.predict(FORECAST.assign_coords(time=noleap))


def test_a_file_tells_what_it_holds(tmp_path: Path) -> None:
    MODEL.save(tmp_path / "model")
    header, _ = parts(tmp_path / "model")
    assert header["__metadata__"]["format"] == "scisparse.PostProcessor/1"
    spec = json.loads(header["__metadata__"]["spec"])
    assert spec["units"] == {"t2m": "K"}
    assert spec["calendar"] == "standard"
    assert spec["members"] == 4
    assert spec["grid"]["kind"] == "lat_lon"
    assert spec["versions"] == {
        "scisparse": spec["versions"]["scisparse"],
        "torch": str(torch.__version__),
    }
    assert {"standard.mean", "standard.std", "network.layer.weight"} < {*header}


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "dumps"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    MODEL.save(tmp_path / "model")
    again = PostProcessor.load(tmp_path / "model")
    monkeypatch.undo()
    assert_same(MODEL, again)


def test_a_file_replaces_another_and_follows_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("something else")
    path.unlink()
    MODEL.save(str(path))
    MODEL.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(
    step: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    MODEL.save(path)

    def fail(*_: object) -> None:
        raise failure

    other = fitted("emos_local", FORECAST, OBSERVED)
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    kind = CheckpointError if isinstance(failure, OSError) else KeyboardInterrupt
    match = r"model\.safetensors: cannot be written \(No space left on device\); choose a file"
    with pytest.raises(kind, match=match if kind is CheckpointError else None):
        other.save(path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(MODEL, PostProcessor.load(path))


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("missing/model", "file/model", "folder"):
        path = tmp_path / name
        with pytest.raises(CheckpointError, match=f"{path}: cannot be written") as info:
            MODEL.save(path)
        assert "\n" not in str(info.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def load_error(path: Path) -> str:
    with pytest.raises(CheckpointError) as info:
        PostProcessor.load(path)
    text = str(info.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_missing_files(tmp_path: Path) -> None:
    for name in ("model", "missing/model", ""):
        assert load_error(tmp_path / name).endswith(": no such file; save a model there first")


def test_files_cut_short_anywhere(tmp_path: Path) -> None:
    path, whole = tmp_path / "model", tmp_path / "whole"
    fitted("unet_local", FORECAST, OBSERVED).save(whole)
    raw = whole.read_bytes()
    for length in {0, 1, 7, 8, 9, 100, len(raw) // 3, len(raw) // 2, len(raw) - 1}:
        path.write_bytes(raw[:length])
        assert "not a whole safetensors file" in load_error(path)
        assert "may be cut short: copy or save it again" in load_error(path)


@pytest.mark.parametrize(
    "content", [b"CDF\x01" + bytes(200), b"\x89HDF\r\n\x1a\n", b"{}", bytes(64)]
)
def test_files_of_another_kind(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(content)
    assert "not a whole safetensors file" in load_error(path)


def test_other_safetensors_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model"
    for metadata, given in ((None, "None"), ({"format": "pt"}, "'pt'")):
        save_file({"x": torch.zeros(3)}, path, metadata)
        text = load_error(path)
        assert f"format is {given} but 'scisparse.PostProcessor/1' is needed" in text
        assert "save it again with PostProcessor.save" in text


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": "magic"}, "`method` is 'magic'; the choices are"),
        ({"method": "unet_local"}, "does not fit together"),
        ({"grid": None}, "does not fit together"),
        ({"grid": {"kind": "cube"}}, "does not fit together"),
        ({"names": ["t2m", "wind"]}, "does not fit together"),
        ({"options": {"speed": 1}}, "does not fit together"),
        ({"options": {"width": 0}}, "`width` (=0) must be"),
        ({"units": 3}, "does not fit together"),
        ({"cases": None}, "does not fit together"),
        ({"cases": "8"}, "header entry 'cases' (='8') is of another type"),
        ({"cases": True}, "header entry 'cases'"),
        ({"names": "t"}, "header entry 'names'"),
        ({"names": [3]}, "header entry 'names'"),
        ({"units": {"t2m": 3}}, "header entry 'units'"),
        ({"calendar": 360}, "header entry 'calendar'"),
        ({"target": None}, "header entry 'target'"),
        ({"groups": 2}, "header entry 'groups'"),
        ({"numbers": {"level": [850.0, "hPa"]}}, "header entry 'numbers'"),
        ({"numbers": {"level": [[], "hPa"]}}, "header entry 'numbers'"),
        ({"labels": {"wmo": [10637]}}, "header entry 'labels'"),
        ({"labels": {"wmo": ["10637", "10637"]}}, "header entry 'labels'"),
    ],
)
def test_contents_that_do_not_fit_together(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    MODEL.save(path)
    header, rest = parts(path)
    spec = json.loads(header["__metadata__"]["spec"])
    header["__metadata__"]["spec"] = json.dumps(spec | changes)
    join(path, header, rest)
    text = load_error(path)
    assert match in text
    assert "train it again" in text


def test_contents_that_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "model"
    MODEL.save(path)
    header, rest = parts(path)
    spec = json.loads(header["__metadata__"]["spec"])
    for key in spec.keys() - {"versions"}:
        less = {name: value for name, value in spec.items() if name != key}
        header["__metadata__"]["spec"] = json.dumps(less)
        join(path, header, rest)
        assert re.search(
            rf"does not fit together \(KeyError: '{key}'\).*: train it again", load_error(path)
        )
    for text in ("not JSON", "[]", "3"):
        header["__metadata__"]["spec"] = text
        join(path, header, rest)
        assert " it again" in load_error(path)
    del header["__metadata__"]["spec"]
    join(path, header, rest)
    assert "its header is damaged" in load_error(path)


def test_tensors_that_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "model"
    MODEL.save(path)
    tensors, spec = read_checkpoint(path)
    for name in tensors:
        write_checkpoint(path, {k: v for k, v in tensors.items() if k != name}, spec)
        assert "does not fit together" in load_error(path)


def test_tensors_and_spec_come_back(tmp_path: Path) -> None:
    tensors = {
        "empty": torch.empty(0, 3),
        "half": torch.randn(4, 2).half(),
        "whole": torch.arange(5),
        "strided": torch.randn(4, 6).t(),
        "special": torch.tensor([float("nan"), float("inf"), -0.0], dtype=torch.float64),
    }
    spec = {"text": "äß\n", "numbers": [1, 2.5, None], "deep": {"flag": True}}
    write_checkpoint(tmp_path / "file", tensors, spec)
    found, told = read_checkpoint(tmp_path / "file")
    assert told == spec
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name].numpy(), tensor.numpy())


@pytest.mark.parametrize("method", ["emos", "emos_local", "local"])
def test_a_model_of_one_point_comes_back(method: str, tmp_path: Path) -> None:
    field, observed = (data.isel(lat=[1], lon=[2]) for data in (FORECAST, OBSERVED))
    model = fitted(method, field, observed)
    model.save(tmp_path / "model.safetensors")
    assert_same(model, PostProcessor.load(tmp_path / "model.safetensors"), field)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(Standard.__dataclass_fields__))
def test_statistics_that_no_training_leaves(name: str, method: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    fitted(method, FORECAST, OBSERVED).save(path)
    tensors, spec = read_checkpoint(path)
    key = f"standard.{name}"
    value = tensors[key]
    broken = {
        " of ": [value[..., 1:], value[None], value.sum(), value[..., :1]],
        "of shape": [value.float(), value.long()],
        "infinite": [torch.full_like(value, np.nan), -torch.full_like(value, np.inf)],
    }
    for word, values in broken.items():
        for wrong in values:
            write_checkpoint(path, tensors | {key: wrong}, spec)
            text = load_error(path)
            assert text.startswith(f"{path}: its content does not fit together (DataError: {name} ")
            assert word in text
    write_checkpoint(path, tensors, spec)
    assert repr(PostProcessor.load(path))
