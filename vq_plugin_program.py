"""The program ``vq-plugin``: it speaks before torch is imported, which takes seconds.

It stands beside the package, as whatever is inside imports torch first.
"""

from __future__ import annotations

import sys
import time

# Commands that have lines of progress.
_LONG = {"compress", "export", "layers", "tune"}


def main() -> int:
    """Runs the command line, :func:`vq_plugin.cli.main`."""
    words = set(sys.argv[1:])
    if words & _LONG and not words & {"-q", "--quiet", "-h", "--help"} and sys.stderr is not None:
        print(time.strftime("%H:%M:%S"), "import torch", file=sys.stderr, flush=True)
    try:
        from vq_plugin import cli
    except KeyboardInterrupt:
        print("vq-plugin: interrupted", file=sys.stderr)
        return 130
    return cli.main()
