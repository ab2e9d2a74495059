"""Other people's codebook compression of whole models, brought to one form.

Sizes are counted in the same way for all: codes at ``ceil(log2 k)`` bits, rounded up to bytes,
and codebooks (and scales) as float16, which peers may keep in float32. A layer that a peer leaves
alone counts with its float32 weights. Peers are evaluated with their centers as they are.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.calibration import Calibration
from vq_plugin.seeded import seeded

BITS_OF_HALF = 16


@dataclass(frozen=True)
class Compressed:
    """A model that computes with compressed weights, and what they take.

    Attributes:
        model: Runs as it is.
        weights: The decoded weight of every layer that was to be compressed.
        nbytes: Bytes of these weights, counted as the module says.
        left: Layers that could not be compressed and stay float32.
    """

    model: nn.Module
    weights: dict[str, Tensor]
    nbytes: int
    left: tuple[str, ...] = ()


def ours(
    model: nn.Module,
    layers: Collection[str],
    scheme: vq.Scheme,
    calibration: Calibration | None = None,
) -> Compressed:
    """``vq_plugin.compress``."""
    small = vq.compress(model, dict.fromkeys(layers, scheme), calibration)
    with torch.no_grad():
        weights = {name: small.get_submodule(name).weight for name in layers}
    return Compressed(small, weights, vq.summary(small).nbytes)


def coremltools(model: nn.Module, layers: Collection[str], n_bits: int, dim: int) -> Compressed:
    """coremltools' ``PostTrainingPalettizer``: one codebook per tensor.

    With ``dim > 1`` sub-vectors run along the outputs; layers whose outputs ``dim`` does not
    divide are left alone by it. So are, here, those of fewer sub-vectors than centers, at which it
    raises an error.
    """
    sizes = {name: model.get_submodule(name).weight.numel() // dim for name in layers}
    large = [name for name, size in sizes.items() if size >= 1 << n_bits]
    with quiet():
        from coremltools.optimize.torch.palettization import (
            PostTrainingPalettizer,
            PostTrainingPalettizerConfig,
        )

        settings = {"n_bits": n_bits, "cluster_dim": dim}
        config = PostTrainingPalettizerConfig.from_dict(
            {"module_name_configs": dict.fromkeys(large, settings)}
        )
        # It draws its first centers from the global generators.
        np.random.seed(0)
        with seeded(0):
            small = PostTrainingPalettizer(model, config).compress()
    return _collect(model, small, layers, k=1 << n_bits, dim=dim)


def coremltools_dkm(
    model: nn.Module,
    layers: Collection[str],
    n_bits: int,
    loader: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
) -> Compressed:
    """coremltools' ``DKMPalettizer`` on single weights, trained on labels (arXiv 2108.12659)."""
    with quiet():
        from coremltools.optimize.torch.palettization import DKMPalettizer, DKMPalettizerConfig

        settings = {"n_bits": n_bits, "weight_threshold": 0}
        config = DKMPalettizerConfig.from_dict(
            {"module_name_configs": dict.fromkeys(layers, settings)}
        )
        np.random.seed(0)
        with seeded(0):
            palettizer = DKMPalettizer(copy.deepcopy(model), config)
            small = palettizer.prepare().train()
            optimizer = torch.optim.Adam(small.parameters(), lr=1e-4)
            for _ in range(epochs):
                for images, labels in loader:
                    loss = functional.cross_entropy(small(images), labels)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    palettizer.step()
            small = palettizer.finalize(small.eval())
    return _collect(model, small, layers, k=1 << n_bits, dim=1)


def torchao_codebook(model: nn.Module, layers: Collection[str], n_bits: int, dim: int
                     ) -> Compressed:  # fmt: skip
    """torchao's ``prototype.quantization.codebook``: a codebook per tensor, a scale per row.

    With ``dim > 1`` sub-vectors run along the inputs.
    """
    with quiet():
        from torchao.prototype.quantization.codebook.codebook_quantized_tensor import (
            CodebookWeightOnlyConfig,
        )
        from torchao.quantization import quantize_

        config = CodebookWeightOnlyConfig(getattr(torch, f"uint{n_bits}"), (1, dim))
        small = copy.deepcopy(model)
        quantize_(small, config, filter_fn=lambda _, name: name in layers)
    scales = {name: small.get_submodule(name).weight.scales.numel() for name in layers}
    return _collect(model, small, layers, k=1 << n_bits, dim=dim, scales=scales)


def torchao_coreml(model: nn.Module, layers: Collection[str], n_bits: int, dim: int = 1
                   ) -> Compressed:  # fmt: skip
    """torchao's ``prototype.quantization.codebook_coreml``: scalar codebook per tensor."""
    assert dim == 1
    with quiet():
        from torchao.prototype.quantization.codebook_coreml import CodebookWeightOnlyConfig
        from torchao.quantization import quantize_

        config = CodebookWeightOnlyConfig(getattr(torch, f"uint{n_bits}"), [-1, -1])
        small = copy.deepcopy(model)
        quantize_(small, config, filter_fn=lambda _, name: name in layers)
    return _collect(model, small, layers, k=1 << n_bits, dim=1)


def _collect(
    model: nn.Module,
    small: nn.Module,
    layers: Collection[str],
    *,
    k: int,
    dim: int,
    scales: dict[str, int] | None = None,
) -> Compressed:
    nbytes, left, weights = 0, [], {}
    for name in layers:
        before, layer = model.get_submodule(name).weight.detach(), small.get_submodule(name)
        weight = layer.weight.detach()
        if hasattr(weight, "dequantize") and type(weight) is not Tensor:
            weight = weight.dequantize().detach()
            # Decoding once is what a deployment would do; the time of decoding is not measured.
            layer.weight = nn.Parameter(weight, requires_grad=False)
        weights[name] = weight
        if torch.equal(weight, before):
            left.append(name)
            nbytes += 4 * weight.numel()
            continue
        values = k * dim + (scales or {}).get(name, 0)
        code_bits = math.ceil(weight.numel() / dim) * (k - 1).bit_length()
        nbytes += math.ceil(code_bits / 8) + values * BITS_OF_HALF // 8
    return Compressed(small, weights, nbytes, tuple(left))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the peers' progress bars, log lines and warnings about versions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
