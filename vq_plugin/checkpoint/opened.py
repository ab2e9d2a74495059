"""Files without a model, with tensors of torch."""

from __future__ import annotations

import os
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vq_plugin.codebook import decode
from vq_plugin.format.container import Container
from vq_plugin.format.header import Stored
from vq_plugin.nn import View
from vq_plugin.reader import File, Layer
from vq_plugin.schemes import CutAxis


class _Torch:
    """Tensors of torch, in their own dtypes."""

    def array(self, kind: Stored, data: NDArray[np.uint8]) -> Tensor:
        return tensor_of(kind, data)

    def wrap(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array)

    def decode(self, layer: Layer[Tensor]) -> Tensor:
        dtype = getattr(torch, layer.dtype)
        scale = None if layer.scale is None else layer.scale.to(dtype)
        weight = decode(
            layer.codes,
            layer.codebooks.to(dtype),
            scale,
            shape=layer.shape,
            axis=cast(CutAxis, layer.axis),
            group=layer.group,
        )
        return weight if layer.view is None else View(*layer.view, layer.shape).restore(weight)


def open_file(path: str | os.PathLike[str]) -> File[Tensor]:
    """Opens a file without its model: tensors of torch, on the CPU.

    :func:`vq_plugin.reader.open_file` gives arrays of numpy and needs no torch.

    Args:
        path: A file that :func:`vq_plugin.save` wrote.

    Returns:
        Its coded weights and other tensors, which are read when they are asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If its header is damaged, or it is of another kind or version.

    Example:
        >>> import tempfile
        >>> import vq_plugin as vq
        >>> small = vq.compress(torch.nn.Sequential(torch.nn.Linear(64, 32)), vq.KM(k=8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = vq.save(small, f"{folder}/model.vq")
        ...     file = vq.open_file(f"{folder}/model.vq")
        ...     weight, bias = file.layers["0"].decode(), file.tensors["0.bias"]
        >>> bool(torch.equal(weight, small[0].weight)), bool(torch.equal(bias, small[0].bias))
        (True, True)
    """
    return File(path, _Torch())


def torch_layer(file: Container, name: str) -> Layer[Tensor]:
    """A stored weight of a file, with tensors of torch."""
    return Layer(file, name, name, file.header.layers[name], _Torch())


def tensor_of(kind: Stored, data: NDArray[np.uint8]) -> Tensor:
    """A tensor of a file, from its bytes; a rounded one in the dtype that it was."""
    dtype = getattr(torch, kind.dtype)
    # What is empty has no view.
    raw = torch.from_numpy(data).view(dtype) if data.size else torch.empty(0, dtype=dtype)
    tensor = raw.reshape(kind.shape)
    if kind.rounded is None:
        return tensor
    wide = tensor.to(getattr(torch, kind.rounded))
    return wide if kind.exponent is None else wide * 2.0**kind.exponent
