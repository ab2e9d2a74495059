"""What other tools make of a whole network: coremltools' palettizer and torch.ao's int8.

coremltools' bytes are counted: codes at their bits without an entropy coder, tables and scales as
float16, and all that it leaves alone as float16 too. torch.ao's are those of the ``state_dict``
that it saves.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from integration.benchmarks.peers import quiet
from integration.workloads.zoo.network import Network
from vq_plugin.seeded import seeded

_METADATA = "_COREML_"
# Inputs from which coremltools' sensitivities come: each takes one backward pass.
_SENSITIVITY = 64


class Measured(NamedTuple):
    """What a tool made of a network, its bytes, and what is to be said of it."""

    small: nn.Module
    nbytes: int
    note: str = ""


def coremltools(
    network: Network, n_bits: int, group: int | None = None, sensitive: bool = False
) -> Measured:
    """coremltools' palettizer on all that it supports: Linear, Embedding, Conv2d.

    Args:
        network: The network.
        n_bits: Bits of a code: 1, 2, 3, 4, 6 or 8.
        group: Output channels that share a table; one table per tensor if ``None``.
        sensitive: Whether k-means is weighted by its sensitivities (`SKMPalettizer`). They are
            squared gradients of a loss; without labels that is the output in a random direction,
            which gives the Fisher information of an output with equal noise everywhere.

    Returns:
        The model and its bytes.

    Raises:
        ValueError: The palettizer supports no layer of the network.
    """
    with quiet():
        from coremltools.optimize.torch.palettization import (
            PostTrainingPalettizer,
            PostTrainingPalettizerConfig,
            SKMPalettizer,
            SKMPalettizerConfig,
        )

        settings: dict[str, Any] = {"n_bits": n_bits}
        if group is not None:
            settings |= {"granularity": "per_grouped_channel", "group_size": group}
        # A table larger than what it stands for raises an error.
        tiny = {
            name: None
            for name, layer in network.model.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding)
            and _smallest(layer, group) < 1 << n_bits
        }
        config = {"global_config": settings, "module_name_configs": tiny}
        np.random.seed(0)
        with seeded(0):
            if sensitive:
                skm = SKMPalettizerConfig.from_dict(
                    {**config, "calibration_nsamples": _SENSITIVITY}
                )
                small = SKMPalettizer(network.model, skm).compress(
                    dataloader=list(_single(network.calibration)), loss_fn=_in_a_random_direction
                )
            else:
                plain = PostTrainingPalettizerConfig.from_dict(config)
                small = PostTrainingPalettizer(network.model, plain).compress()
    return Measured(small, _palettized_bytes(small, n_bits))


def int8_dynamic(network: Network) -> Measured:
    """torch.ao's dynamic int8 of Linear, LSTM and LSTMCell."""
    with quiet():
        from torch.ao.quantization import quantize_dynamic

        kinds = {nn.Linear, nn.LSTM, nn.LSTMCell}
        small = quantize_dynamic(copy.deepcopy(network.model), kinds, dtype=torch.qint8)
    return Measured(small, _saved_bytes(small))


def int8_weight_only(network: Network) -> Measured:
    """torchao's int8 of the weights of Linear, one scale per row."""
    with quiet():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        small = copy.deepcopy(network.model)
        quantize_(small, Int8WeightOnlyConfig())
    return Measured(small, _saved_bytes(small))


def _smallest(layer: nn.Module, group: int | None) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.numel() if group is None else group * weight[0].numel()


def _single(batches: list[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, Mapping):
            for index in range(len(next(iter(batch.values())))):
                yield {key: value[index : index + 1] for key, value in batch.items()}
        else:
            yield from batch.split(1)


def _in_a_random_direction(model: nn.Module, batch: Any) -> Tensor:
    output = model(**batch) if isinstance(batch, Mapping) else model(batch)
    return (output * torch.randn_like(output)).sum()


def _palettized_bytes(model: nn.Module, n_bits: int) -> int:
    total = 0
    for module in model.modules():
        tables = {
            name.split("/")[1]: value
            for name, value in module._buffers.items()
            if name.startswith(_METADATA) and name.endswith("/lut")
        }
        for name, value in module._parameters.items():
            if value is not None:
                codes = (value.numel() * n_bits + 7) // 8
                total += codes + 2 * tables[name].numel() if name in tables else 2 * value.numel()
        for name, value in module._buffers.items():
            if value is None or (name.startswith(_METADATA) and not name.endswith("scale")):
                continue
            total += 2 * value.numel() if value.is_floating_point() else value.nbytes
    if not any(name.endswith("/lut") for name, _ in model.named_buffers()):
        raise ValueError("coremltools supports no layer of the network")
    return total


def _saved_bytes(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()
