"""The operator library for ExecuTorch, compiled where it is used: its interface is C++ classes."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from vq_plugin.atomic import write_atomically
from vq_plugin.export.compiler import cpp_compiler
from vq_plugin.export.extras import require
from vq_plugin.extension import onnxruntime_library
from vq_plugin.user_cache import cache_dir

_CSRC = Path(__file__).parents[1] / "ops" / "csrc"
# What ExecuTorch's own CMake package sets for those that build against it.
_DEFINITIONS = ("C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED", "ET_USE_THREADPOOL")
_FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")


def executorch_library() -> str:
    """Where the operator library for ExecuTorch is, which runs layers from their codes.

    For programs of ``vq.export_executorch(..., operator="native")`` in ExecuTorch's Python runtime:
    its operators are there once the library is loaded. The first call compiles it against the
    ExecuTorch that is installed, in some seconds, and keeps it in ``$VQ_PLUGIN_CACHE/executorch``.

    Returns:
        A path, for ``torch.ops.load_library`` or ``ctypes.CDLL``.

    Raises:
        ImportError: If ExecuTorch is not installed, has no libraries to link (1.5 is the first),
            or the package was built without its kernels.
        RuntimeError: If there is no C++ compiler, or it fails, or the folder cannot be made.

    Example:
        >>> import vq_plugin as vq
        >>> torch.ops.load_library(vq.executorch_library())  # doctest: +SKIP
    """
    require("executorch", extra="executorch")
    spec = find_spec("executorch")
    assert spec is not None
    root = Path(next(iter(spec.submodule_search_locations or ())))
    libraries = [root / "lib" / f"lib{name}.so" for name in ("executorch", "executorch_threadpool")]
    missing = [library.name for library in libraries if not library.exists()]
    if missing:
        raise ImportError(
            f"ExecuTorch {version('executorch')} brings no {' and no '.join(missing)} to build "
            "operators with: pip install 'vq-plugin[executorch]'"
        )
    kernels = Path(onnxruntime_library())
    include = root / "include"
    command = [
        *(
            cpp_compiler("The operator library for ExecuTorch"),
            *_FLAGS,
            *(f"-D{name}" for name in _DEFINITIONS),
        ),
        *("-isystem", str(include)),
        *("-isystem", str(include / "executorch/runtime/core/portable_type/c10")),
        *(str(_CSRC / "executorch" / "operators.cpp"), str(kernels), *map(str, libraries)),
        f"-Wl,-rpath,{root / 'lib'}",
    ]
    try:
        library = cache_dir() / "executorch" / f"{_digest(command, kernels)}.so"
        known = library.exists()
        if not known:
            library.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"the operator library for ExecuTorch cannot be kept: {error}; set VQ_PLUGIN_CACHE to "
            "a folder that can be written to"
        ) from error
    if not known:
        write_atomically(library, _compiled(command))
    return str(library)


def _digest(command: list[str], kernels: Path) -> str:
    """Of all that makes the library: another ExecuTorch, compiler or version of ours is another."""
    digest = hashlib.sha256(repr((command, version("executorch"))).encode())
    sources = [*_CSRC.glob("*.h"), *(_CSRC / "executorch").iterdir()]
    for file in (kernels, *sorted(sources)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _compiled(command: list[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "library.so"
        run = subprocess.run(
            [*command, "-o", str(output)], check=False, capture_output=True, text=True
        )
        if run.returncode != 0:
            raise RuntimeError(
                "the operator library for ExecuTorch does not compile: "
                f"{shlex.join(command)}\n{run.stderr}"
            )
        return output.read_bytes()
