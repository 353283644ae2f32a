"""What all tests share: real data, and memory that is never zero by luck."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: without a GPU its kernels run in Python, on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

DATA_VARIABLE = "SCISPARSE_DATA_DIR"
NO_DATA = f"real data are missing: set {DATA_VARIABLE} to their folder"

try:
    import hypothesis
except ImportError:  # kernel and layer tests run without it
    hypothesis = None  # type: ignore[assignment]
else:
    # A deadline fails on a busy machine, and tests hold no time limits.
    hypothesis.settings.register_profile("scisparse", deadline=None)
    hypothesis.settings.load_profile("scisparse")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ways to test an installation rather than numbers."""
    parser.addoption("--once", action="store_true", help="each test with one of its parameters")
    parser.addoption(
        "--bare", action="store_true", help="leave out what needs packages that are not installed"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--bare`, leave out files that import what is not installed."""
    if not config.getoption("bare") or not collection_path.name.startswith("test_"):
        return None
    try:
        importlib.import_module(collection_path.stem)
    except ImportError as error:
        if not _lacks_a_package(error):
            raise
        return True
    except pytest.skip.Exception:  # says so itself, when it is collected
        pass
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """With `--bare`, skip tests of functions that import what is not installed."""
    try:
        return (yield)
    except ImportError as error:
        if item.config.getoption("bare") and _lacks_a_package(error):
            pytest.skip(f"needs more packages: {error}")
        raise


def _lacks_a_package(error: ImportError) -> bool:
    """Whether a package of others is not installed; our own must be there."""
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    package = (cause.name or "scisparse").partition(".")[0]
    return package != "scisparse" and importlib.util.find_spec(package) is None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--once`, leave out all but one of the parameters of each test.

    Those of the compiled kernels where there are such, as they are what an installation may lack,
    else the first.
    """
    if not config.getoption("once"):
        return
    compiled = _has_compiled_kernels()
    chosen: dict[tuple[Path, str], pytest.Item] = {}
    for item in items:
        test = item.path, item.name.partition("[")[0]
        first = chosen.setdefault(test, item)
        if compiled and _runs_compiled(item) and not _runs_compiled(first):
            chosen[test] = item
    kept = set(chosen.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen.values()


def _has_compiled_kernels() -> bool:
    native = importlib.import_module("scisparse.kernels._native")
    return not isinstance(native.load(), str)


def _runs_compiled(item: pytest.Item) -> bool:
    """Whether the backend of a test is the compiled one; as a device, `cpu` says nothing."""
    call = getattr(item, "callspec", None)
    return call is not None and call.params.get("backend") == "cpu"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data; skips, saying so, when there is none."""
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        pytest.skip(NO_DATA)
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"{DATA_VARIABLE} is {named!r}, which is not a folder; correct or unset it")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_idle_checks_in_tritons_interpreter() -> None:
    """Half of its time goes into whether integers overflow, which it then does not look at."""
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
        interpreter = importlib.import_module("triton.runtime.interpreter")
        builder = interpreter.interpreter_builder
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


@pytest.fixture(scope="session", autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    """Make `torch.empty` and its relatives return NaN, so that a result left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests did not run for want of real data."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(NO_DATA in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} tests skipped: {NO_DATA}", yellow=True, bold=True)


@pytest.fixture(scope="session")
def harness() -> Any:
    """The folder `benchmarks`, which is not installed, without its parent on the path."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = module
    spec.loader.exec_module(module)
    for name in ("__main__", "compare", "measure", "memory", "registry", "report"):
        importlib.import_module(f"benchmarks.{name}")
    importlib.import_module("benchmarks.cases.gather_matmul")
    importlib.import_module("benchmarks.cases.linear")
    importlib.import_module("benchmarks.cases.attention_gpu")
    importlib.import_module("benchmarks.cases.products")
    return module
