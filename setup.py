"""Builds the C++ kernels; everything else about the package is in ``pyproject.toml``.

The kernels are one shared library with a plain C interface, no Python and no PyTorch headers. It is
compiled with OpenMP but linked without it: its OpenMP symbols resolve in the runtime that
``import torch`` has loaded, so that there is one thread pool. Without a working compiler the
package installs all the same and runs on its reference kernels.
"""

from __future__ import annotations

import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

SOURCES = [
    "kernels/gather_matmul/cpu.cpp",
    "kernels/graph_attention/cpu.cpp",
    "kernels/laplacian/cpu.cpp",
    "kernels/native/avx2.cpp",
    "kernels/native/avx512.cpp",
    "kernels/native/baseline.cpp",
]
# Without -g0, the debug information that Python asks for makes the library 15 times larger.
FLAGS = ["-O3", "-g0", "-std=c++17"]
# The second attempt is for compilers without OpenMP, such as Apple's: one thread, but compiled.
ATTEMPTS = [[*FLAGS, "-fopenmp"], FLAGS]
BUILD_ERRORS = (CCompilerError, ExecError, OSError, PlatformError)


class BuildKernels(build_ext):  # type: ignore[misc] # setuptools has no types
    """Compile the kernels, or say once that they are missing and go on."""

    def build_extensions(self) -> None:
        """Compile each source file in a thread of its own: one takes most of a minute."""
        compile_in_turn = self.compiler.compile

        def compile_at_once(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor() as pool:
                objects = pool.map(lambda source: compile_in_turn([source], **options), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_at_once
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Compile and link `ext` with the first set of flags that works."""
        failures = []
        for flags in ATTEMPTS:
            ext.extra_compile_args = list(flags)
            try:
                super().build_extension(ext)
            except BUILD_ERRORS as error:
                failures.append(str(error))
            else:
                return
        # A library left from an earlier build must not be taken for this one.
        for stale in (self.get_ext_fullpath(ext.name), *Path("kernels").glob("_cpu*.so")):
            Path(stale).unlink(missing_ok=True)
        reason = textwrap.shorten(failures[0], 100, placeholder=" ...")
        self.warn(
            f"the C++ kernels were not compiled ({reason}); scisparse will run on its slower "
            "reference kernels. To use the C++ kernels, install a C++17 compiler and reinstall."
        )

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return none: the library is loaded by ctypes and has no ``PyInit`` function."""
        return []


setup(
    ext_modules=[
        Extension(
            "scisparse.kernels._cpu",
            SOURCES,
            depends=sorted(str(header) for header in Path("kernels").glob("**/*.hpp")),
            language="c++",
            optional=True,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
