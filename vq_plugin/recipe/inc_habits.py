"""What users of Intel Neural Compressor's YAML files write, and what it is called here."""

from __future__ import annotations

from collections.abc import Sequence

_TENSORS = (
    "codebooks have no dtype and no granularity: write 'scheme: km(k=16)', or 'scheme: null' to "
    "leave the layers in float"
)
_DATA = "data comes from functions: write 'evaluation: {tuning: module:function}'"
_ACTIVATIONS = "activations stay in float; remove it"
_LIMIT = "write 'relative: 0.01' or 'absolute: 0.01'"
_OTHER_JOB = "recipes compress trained models and do nothing else; remove it"

_REMEDIES: dict[tuple[str, ...], str] = {
    ("model",): "the function returns the trained model, which needs no name and no framework",
    ("device",): "the function under 'model' chooses the device; remove it",
    ("distillation",): _OTHER_JOB,
    ("mixed_precision",): _OTHER_JOB,
    ("graph_optimization",): _OTHER_JOB,
    ("quantization", "recipes"): "there are no int8 switches here; remove it",
    ("quantization", "calibration"): "the function returns a list of unlabelled input batches",
    ("quantization", "model_wise", "weight"): _TENSORS,
    ("quantization", "model_wise", "activation"): _ACTIVATIONS,
    ("quantization", "optype_wise", "*", "weight"): _TENSORS,
    ("quantization", "optype_wise", "*", "activation"): _ACTIVATIONS,
    ("quantization", "op_wise", "*", "weight"): _TENSORS,
    ("quantization", "op_wise", "*", "activation"): _ACTIVATIONS,
    ("evaluation", "accuracy"): _DATA,
    ("evaluation", "performance"): _DATA,
    ("tuning", "strategy"): "there is one strategy, so the key may be left out",
    ("tuning", "objective"): "there is one objective, so the key may be left out",
    ("tuning", "accuracy_criterion", "criterion"): _LIMIT,
    ("tuning", "accuracy_criterion", "tolerable_loss"): _LIMIT,
    ("tuning", "exit_policy", "performance_only"): "every setting is evaluated; remove it",
    ("tuning", "tensorboard"): "remove it; the trials are in report.json",
    ("tuning", "workspace"): "write 'output: FOLDER' at the top level",
}


def remedy(location: Sequence[int | str]) -> str | None:
    """What to write instead of a key or value of Intel Neural Compressor, where that is known.

    Example:
        >>> remedy(["tuning", "workspace"])
        "write 'output: FOLDER' at the top level"
    """
    parts = [str(part) for part in location]
    if len(parts) > 2 and parts[1] in ("op_wise", "optype_wise"):
        parts[2] = "*"
    return _REMEDIES.get(tuple(parts))
