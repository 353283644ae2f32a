"""`--once` keeps one call of each test; `--bare` leaves out what lacks packages, never our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import conftest
import pytest

ITEMS = [
    "a.py::test_x[1-cpu]",
    "a.py::test_x[2]",
    "a.py::test_z[reference-1]",
    "a.py::test_z[cpu-1]",
    "a.py::test_z[cpu-2]",
    "a.py::test_y",
    "b.py::test_x[2]",
    "b.py::test_x",
]


def config_of(*options: str, left_out: list[Any] | None = None) -> Any:
    def deselected(items: list[Any]) -> None:
        cast(list[Any], left_out).extend(items)

    hook = SimpleNamespace(pytest_deselected=deselected)
    return SimpleNamespace(getoption=lambda name: name in options, hook=hook)


def items() -> list[Any]:
    pairs = (name.split("::") for name in ITEMS)
    return [cast(Any, Item(Path(file), name)) for file, name in pairs]


class Item:
    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        if "z[" in name:
            backend = name.partition("[")[2].partition("-")[0]
            self.callspec = SimpleNamespace(params={"backend": backend})


@pytest.mark.parametrize(("compiled", "kernel"), [(True, 3), (False, 2)])
def test_once_keeps_the_compiled_or_the_first_parameters_of_every_test(
    compiled: bool, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "_has_compiled_kernels", lambda: compiled)
    found, left_out = items(), list[Any]()
    every = list(found)
    conftest.pytest_collection_modifyitems(config_of("once", left_out=left_out), found)
    kept = [0, kernel, 5, 6]
    assert found == [every[number] for number in kept]
    assert left_out == [item for number, item in enumerate(every) if number not in kept]
    found = list(every)
    conftest.pytest_collection_modifyitems(config_of(), found)
    assert found == every


@pytest.mark.parametrize(
    ("line", "ignored"),
    [
        ("import torch", None),
        ("import not_installed.sub", True),
        ("import scisparse.gone", None),
    ],
)
def test_bare_leaves_out_files_that_lack_packages_of_others(
    line: str, ignored: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test_of_{line.split()[1].replace('.', '_')}"
    (tmp_path / f"{name}.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / f"{name}.py"
    if "gone" in line:
        with pytest.raises(ModuleNotFoundError, match="gone"):
            conftest.pytest_ignore_collect(path, config_of("bare"))
    else:
        assert conftest.pytest_ignore_collect(path, config_of("bare")) is ignored
    assert conftest.pytest_ignore_collect(path, config_of()) is None


@pytest.mark.parametrize(
    ("error", "options", "raised"),
    [
        (ModuleNotFoundError(name="not_installed"), ("bare",), pytest.skip.Exception),
        (ModuleNotFoundError(name="not_installed"), (), ModuleNotFoundError),
        (ModuleNotFoundError(name="scisparse.gone"), ("bare",), ModuleNotFoundError),
        (ImportError(name="torch"), ("bare",), ImportError),
        (AssertionError(), ("bare",), AssertionError),
    ],
)
def test_bare_skips_for_missing_packages_alone(
    error: BaseException, options: tuple[str, ...], raised: type[BaseException]
) -> None:
    call = conftest.pytest_runtest_call(cast(Any, SimpleNamespace(config=config_of(*options))))
    assert isinstance(call, Iterator)
    next(call)
    with pytest.raises(raised):
        cast(Any, call).throw(error)
