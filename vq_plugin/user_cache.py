"""Where what is worth keeping on a machine lives: trained checkpoints, and costs of kernels."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$VQ_PLUGIN_CACHE``, or ``vq_plugin`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``.

    Raises:
        RuntimeError: If it is in the home of a user who has none.
    """
    own = os.environ.get("VQ_PLUGIN_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vq_plugin"
