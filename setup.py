"""The native kernels; everything else about the package is in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "vq_plugin._native",
            sources=sorted(glob("vq_plugin/ops/csrc/*.cpp")),
            depends=sorted(glob("vq_plugin/ops/csrc/*.h")),
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
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
