"""The command ``vq-plugin``, which reads its words before torch is imported.

``import vq_plugin`` imports torch: it registers operators that saved programs need. Help, versions,
mistakes in the words and the first line of progress do not wait for that, so the package is made
here as Python would, and what its ``__init__`` does comes after them.
"""

import sys
from functools import partial
from importlib.util import find_spec, module_from_spec


def main() -> int:
    """Runs the command line with the process's words, and gives its exit code."""
    try:
        return _run()
    except KeyboardInterrupt:
        # It came before there was anything to interrupt.
        if sys.stderr is not None:
            print("vq-plugin: interrupted", file=sys.stderr)
        return 130


def _run() -> int:
    spec = find_spec("vq_plugin")
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules["vq_plugin"] = module_from_spec(spec)
    from vq_plugin.cli import main as command_line

    return command_line(load=partial(spec.loader.exec_module, package))
