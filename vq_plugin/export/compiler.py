"""The C++ compiler of this machine, for what is compiled as it is exported or run."""

from __future__ import annotations


def cpp_compiler(user: str) -> str:
    """The compiler's command, that of the variable ``CXX`` where there is one.

    ``RuntimeError`` that names its user if there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            f"{user} compiles C++: install a compiler (for example g++), or name one in the "
            f"variable CXX. torch says: {error}"
        ) from error
