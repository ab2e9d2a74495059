"""Codebook compression of neural networks: k-means, product and residual quantization.

The public names are those of ``__all__``; hosts live in ``vq_plugin.torch_ao`` and
``vq_plugin.inc`` and are imported only when asked for.
"""

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vq_plugin.extension import onnxruntime_library
from vq_plugin.version import __version__ as __version__

# Who wants lines of progress gives the logger a handler.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# Without torch files can still be read, by vq_plugin.reader, and nothing else be imported.
if TYPE_CHECKING or find_spec("torch") is not None:
    from vq_plugin.checkpoint import CheckpointError, load, open_file, save
    from vq_plugin.codebook import CodebookWeight
    from vq_plugin.compress import choose_schemes, compress, set_memory, set_precision
    from vq_plugin.factorize import factorize, merge_neurons, remove_empty_channels
    from vq_plugin.factors import SVD, Basis, Factored
    from vq_plugin.fit.weight import quantize_weight
    from vq_plugin.folding import fold_batch_norms
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
        Signs,
        Uniform,
        parse_scheme,
        register_scheme,
        scheme_from_dict,
    )
    from vq_plugin.summary import Summary, summary
    from vq_plugin.training import (
        compensate,
        finetune,
        learn,
        prune,
        prune_factors,
        reestimate_norms,
    )
    from vq_plugin.work import Work, count_work

if TYPE_CHECKING:
    from vq_plugin.export.aoti import export_aoti
    from vq_plugin.export.coreml import export_coreml
    from vq_plugin.export.executorch import export_executorch
    from vq_plugin.export.executorch_library import executorch_library
    from vq_plugin.export.onnx import export_onnx
    from vq_plugin.tuning import Learning, LossBudget, Recovery, TuneResult, tune


def __getattr__(name: str) -> object:
    if find_spec("torch") is None:
        raise AttributeError(f"vq_plugin.{name} needs torch; without it there is vq_plugin.reader")
    # Searches take as long to import as all else together: when they are first asked for.
    if name in ("Learning", "LossBudget", "Recovery", "TuneResult", "tune"):
        return getattr(import_module("vq_plugin.tuning"), name)
    if name.startswith("export_") and name in __all__:
        return getattr(import_module(f"vq_plugin.export.{name.removeprefix('export_')}"), name)
    if name == "executorch_library":
        return getattr(import_module("vq_plugin.export.executorch_library"), name)
    raise AttributeError(f"module 'vq_plugin' has no attribute {name!r}")


__all__ = [
    "KM",
    "PQ",
    "PRESETS",
    "RQ",
    "SVD",
    "Basis",
    "Binary",
    "CheckpointError",
    "CodebookWeight",
    "Factored",
    "Geometry",
    "Learning",
    "LossBudget",
    "Preset",
    "Recovery",
    "Scheme",
    "Signs",
    "Summary",
    "TuneResult",
    "Uniform",
    "View",
    "Work",
    "choose_schemes",
    "compensate",
    "compress",
    "count_work",
    "executorch_library",
    "export_aoti",
    "export_coreml",
    "export_executorch",
    "export_onnx",
    "factorize",
    "finetune",
    "fold_batch_norms",
    "learn",
    "load",
    "merge_neurons",
    "onnxruntime_library",
    "open_file",
    "parse_scheme",
    "prune",
    "prune_factors",
    "quantize_weight",
    "reestimate_norms",
    "register_scheme",
    "register_slot",
    "remove_empty_channels",
    "save",
    "scheme_from_dict",
    "set_memory",
    "set_precision",
    "summary",
    "tune",
]
