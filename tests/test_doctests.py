"""Every example in a docstring, module by module under the module's own import name.

pytest's `--doctest-modules` would import `kernels/` and `layers/` again under their bare names.
"""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
from test_layering import MODULES

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NOT_RUN = {"scisparse.__main__"}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - NOT_RUN))
def test_examples_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=OPTIONS)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(example, out=report.append)
    assert not report, "".join(report)


def test_a_wrong_example_is_seen() -> None:
    report: list[str] = []
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    doctest.DocTestRunner(optionflags=OPTIONS).run(wrong, out=report.append)
    assert "Expected:\n    3\nGot:\n    2" in "".join(report)
