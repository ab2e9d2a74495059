"""What a pass multiplies: the weights of a model, and how often each of them is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from vq_plugin.calibration import run_calibration
from vq_plugin.eval_mode import eval_mode
from vq_plugin.nn import CodebookConv1d, CodebookConv2d, CodebookConv3d, CodebookLinear
from vq_plugin.select import check_model

_COUNTED = (
    nn.Linear, _ConvNd, CodebookConv1d, CodebookConv2d, CodebookConv3d, CodebookLinear,
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Weights of dense layers and convolutions, and what a pass of one sample multiplies by them.

    Attributes:
        weights: How many weights there are; one that layers share counts once.
        nonzero_weights: Those of them that are not zero.
        multiplications: Of a pass; a multiplication and its addition are one.
        nonzero_multiplications: Those by weights that are not zero. Nothing here skips the others:
            this is what the literature counts, not what takes time.
    """

    weights: int
    nonzero_weights: int
    multiplications: int
    nonzero_multiplications: int


def count_work(model: nn.Module, batches: Iterable[Any]) -> Work:
    """Counts the weights and multiplications of a model, float or compressed.

    Args:
        model: The model; it runs in eval mode and stays as it is. Layers that are products count as
            the two that they are, and codes as the weights that they stand for.
        batches: Inputs, as for calibration; of the first batch every size but that of the
            samples matters.

    Returns:
        What Linear and convolutions have, also transposed ones; nothing else counts.

    Raises:
        ValueError: If there is no batch, or the model does not run on it.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> vq.count_work(model, [torch.zeros(2, 1, 8, 8)]).multiplications
        5472
    """
    check_model(model)
    weights: dict[int, tuple[int, int]] = {}
    uses: list[tuple[int, int]] = []

    def count(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # Every weight is used once at each place: of the output, or of what is transposed.
        passed = inputs[0] if inputs and isinstance(module, _ConvTransposeNd) else output
        if not isinstance(passed, Tensor):
            return
        weight = module.weight
        # What layers share, if they do; a weight may be computed anew at each access.
        key = id(getattr(module, "codebooks", module._parameters.get("weight", module)))
        # Tensors of other kinds, such as integers of torchao, count as the values they stand for.
        values = weight if type(weight) in (Tensor, nn.Parameter) else weight.dequantize()
        weights.setdefault(key, (values.numel(), int(values.count_nonzero())))
        uses.append((key, passed.numel() // max(len(weight), 1)))

    first = list(islice(iter(batches), 1))
    if not first:
        raise ValueError("there is no batch to count with: give inputs that the model takes")
    layers = [m for m in model.modules() if isinstance(m, _COUNTED)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with eval_mode(model), torch.no_grad():
            run_calibration(model, first)
    finally:
        for handle in handles:
            handle.remove()
    samples = _samples(first)
    return Work(
        weights=sum(size for size, _ in weights.values()),
        nonzero_weights=sum(nonzero for _, nonzero in weights.values()),
        multiplications=sum(places * weights[key][0] for key, places in uses) // samples,
        nonzero_multiplications=sum(places * weights[key][1] for key, places in uses) // samples,
    )


def _samples(batches: list[Any]) -> int:
    """How many samples a batch has: the first size of its first tensor."""
    tensors = [leaf for leaf in tree_leaves(batches) if isinstance(leaf, Tensor)]
    return len(tensors[0]) if tensors and tensors[0].dim() else 1
