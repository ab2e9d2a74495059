"""Codebook compression of neural networks: k-means, product and residual quantization.

The public names are those of ``__all__``; hosts live in ``vq_plugin.torch_ao`` and
``vq_plugin.inc`` and are imported only when asked for.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

# Without torch files can still be read, by vq_plugin.reader, and nothing else be imported.
if TYPE_CHECKING or find_spec("torch") is not None:
    from vq_plugin.checkpoint import CheckpointError, load, open_file, save
    from vq_plugin.codebook import CodebookWeight
    from vq_plugin.compress import choose_schemes, compress, set_memory, set_precision
    from vq_plugin.fit.weight import quantize_weight
    from vq_plugin.nn import View, register_slot
    from vq_plugin.schemes import (
        KM,
        PQ,
        PRESETS,
        RQ,
        Binary,
        Geometry,
        Preset,
        Scheme,
        Uniform,
        parse_scheme,
        register_scheme,
        scheme_from_dict,
    )
    from vq_plugin.summary import Summary, summary
    from vq_plugin.training import compensate, finetune, learn, prune, reestimate_norms

if TYPE_CHECKING:
    from vq_plugin.tuning import LossBudget, Recovery, TuneResult, tune


def __getattr__(name: str) -> object:
    if find_spec("torch") is None:
        raise AttributeError(f"vq_plugin.{name} needs torch; without it there is vq_plugin.reader")
    # Searches take as long to import as all else together: when they are first asked for.
    if name in ("LossBudget", "Recovery", "TuneResult", "tune"):
        return getattr(import_module("vq_plugin.tuning"), name)
    raise AttributeError(f"module 'vq_plugin' has no attribute {name!r}")


__all__ = [
    "KM",
    "PQ",
    "PRESETS",
    "RQ",
    "Binary",
    "CheckpointError",
    "CodebookWeight",
    "Geometry",
    "LossBudget",
    "Preset",
    "Recovery",
    "Scheme",
    "Summary",
    "TuneResult",
    "Uniform",
    "View",
    "choose_schemes",
    "compensate",
    "compress",
    "finetune",
    "learn",
    "load",
    "open_file",
    "parse_scheme",
    "prune",
    "quantize_weight",
    "reestimate_norms",
    "register_scheme",
    "register_slot",
    "save",
    "scheme_from_dict",
    "set_memory",
    "set_precision",
    "summary",
    "tune",
]

__version__ = "0.1.0"
