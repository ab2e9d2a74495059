"""The native kernels, and the README as it reads elsewhere; all else is in pyproject.toml."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = "vq_plugin/ops/csrc"
HEADERS = sorted(glob(f"{CSRC}/**/*.h", recursive=True))
# For torch, and for ONNX Runtime: the second has neither torch nor Python in it.
NATIVE = sorted(glob(f"{CSRC}/*.cpp"))
ONNXRUNTIME = sorted(glob(f"{CSRC}/onnxruntime/*.cpp"))
KERNELS = [s for s in NATIVE if not s.endswith(("library.cpp", "torch_abi.cpp", "module.cpp"))]


def readme(text: str) -> str:
    """A README without links into the repository, which lead nowhere outside of it."""
    return re.sub(r"!?\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


def extension(name: str, sources: list[str]) -> Extension:
    """A library that is built where there is a compiler."""
    return Extension(
        name,
        sources=sources,
        depends=HEADERS,
        extra_compile_args=[
            *["-std=c++17", "-O3", "-fvisibility=hidden", "-g0"],
            # Without contraction fits give the same bytes on every instruction set.
            "-ffp-contract=off",
            # GCC takes undefined registers in its own intrinsics for uninitialized variables.
            *["-Wno-uninitialized", "-Wno-maybe-uninitialized"],
        ],
        py_limited_api=True,
        optional=True,  # without a compiler the package works in pure torch
    )


class BuildOnce(build_ext):
    """Objects of the kernels, most of the work, are shared by both libraries; made in parallel."""

    def build_extensions(self) -> None:
        """Compiles as many files at a time as there are processors."""
        compile_all = self.compiler.compile

        def compile_in_parallel(sources: list[str], **settings: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: compile_all([source], **settings), sources)
                return [compiled for objects in made for compiled in objects]

        self.compiler.compile = compile_in_parallel
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Leaves out what an extension before this one compiled."""
        if ext.name == "vq_plugin._onnxruntime":
            for source in KERNELS:
                (built,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
                if Path(built).exists():
                    ext.sources.remove(source)
                    ext.extra_objects.append(built)
        super().build_extension(ext)


setup(
    long_description=readme(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    ext_modules=[
        extension("vq_plugin._native", NATIVE),
        extension("vq_plugin._onnxruntime", [*KERNELS, *ONNXRUNTIME]),
    ],
    cmdclass={"build_ext": BuildOnce},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
