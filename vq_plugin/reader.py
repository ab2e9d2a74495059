"""Files without a model: what is coded in them, and the weights that it stands for.

Needs numpy only. Where torch is not installed nothing else of the package can be imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vq_plugin.format.bounds import most_values
from vq_plugin.format.container import Container
from vq_plugin.format.header import FORMAT, CheckpointError, Entry, Stored, join
from vq_plugin.format.weights import (
    array_of,
    from_int8,
    has_coded_scales,
    read_codes,
    read_scales,
)

__all__ = ["CheckpointError", "File", "Layer", "open_file"]

ArrayT = TypeVar("ArrayT")

# Values that are added up at a time: the whole weight, and no more, is in memory once.
_RUN = 1 << 20


class Library(Protocol[ArrayT]):
    """What a file's arrays are made of."""

    def array(self, kind: Stored, data: NDArray[np.uint8], /) -> ArrayT:
        """A tensor of the file, from its bytes."""

    def wrap(self, array: NDArray[Any], /) -> ArrayT:
        """An array of numpy's."""

    def decode(self, layer: Layer[ArrayT], /) -> ArrayT:
        """The weight that codes, codebooks and scale stand for."""


class Layer(Generic[ArrayT]):
    """A coded weight of a file; its arrays are read when they are first asked for.

    Attributes:
        name: Its name, that of its module or ``module.parameter``.
        scheme: The scheme as text, such as ``pq(k=16,dim=4)``.
        shape: Shape of what is coded, ``(out, in, ...)``.
        view: How the parameter of the module differs from it: its own shape, the shape before
            dimensions change places, and their order; ``None`` where it does not.
        axis: ``"in"`` where sub-vectors run along the rows of the weight's 2-D view, ``"out"``
            where they run along its columns, ``"channels"`` where rows have the channels of one
            kernel position after the other.
        group: Rows that share codebooks; ``None`` where all do.
        dtype: Dtype of the weight in the model, such as ``float32``.
    """

    def __init__(
        self, file: Container, name: str, stored: str, entry: Entry, library: Library[ArrayT]
    ) -> None:
        self.name, self.scheme, self.shape = name, entry.scheme, entry.shape
        self.view, self.axis, self.group = entry.view, entry.axis, entry.group
        self.dtype = entry.dtype
        self._file, self._stored, self._entry, self._library = file, stored, entry, library

    def __repr__(self) -> str:
        return f"Layer({self.name!r}, {self.scheme}, {self.shape}, {self.dtype})"

    @cached_property
    def codes(self) -> ArrayT:
        """Integers, ``(stages, rows, subspaces)``.

        Raises:
            CheckpointError: If they are damaged, or far more than a file of its length has.
        """
        with self._bounded():
            return self._library.wrap(read_codes(self._file, self._stored, self._entry))

    @cached_property
    def codebooks(self) -> ArrayT:
        """Centers, ``(stages, groups, books, k, dim)``; int8 ones as float16, which holds them."""
        centers, exponents = self._tensor("codebooks"), self._tensor("exponents")
        assert centers is not None
        if exponents is None:
            return self._library.array(*centers)
        try:
            return self._library.wrap(from_int8(array_of(*centers), array_of(*exponents)))
        except ValueError as error:
            raise CheckpointError(f"{self._file.path}: layer {self.name!r}: {error}") from error

    @cached_property
    def scale(self) -> ArrayT | None:
        """Row scales, ``(rows,)``, or ``None``.

        Raises:
            CheckpointError: As :attr:`codes`, where they are coded.
        """
        if has_coded_scales(self._file, self._stored):
            with self._bounded():
                return self._library.wrap(read_scales(self._file, self._stored, self._entry))
        scale = self._tensor("scale")
        return None if scale is None else self._library.array(*scale)

    def decode(self) -> ArrayT:
        """The parameter: of :attr:`shape`, or in the order of dimensions that its module wants."""
        weight = self._library.decode(self)
        # The padding of an embedding; a tied layer has it not.
        kinds, leaves = self._file.header.tensors, ("", "parametrizations.weight.0.")
        names = (join(self.name, f"{leaf}zero_rows") for leaf in leaves)
        name = next((each for each in names if each in kinds), None)
        if name is None:
            return weight
        kind = kinds[name]
        rows = array_of(kind, self._file.raw(name))
        if rows.dtype.kind != "i" or not ((rows >= 0) & (rows < len(weight))).all():  # type: ignore[arg-type]
            raise CheckpointError(f"{self._file.path}: {name!r} are no rows of the weight")
        weight[rows] = 0  # type: ignore[index]
        return weight

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Decodes no more than a file of its length has, and says whose damage it is."""
        values, size = self._file.values, self._file.size
        if values > most_values(size):
            raise CheckpointError(
                f"{self._file.path}: layer {self.name!r}: {values} weights in a file of {size} "
                "bytes, those of every name and stage; load it into its model if that is meant"
            )
        try:
            yield
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{self._file.path}: layer {self.name!r}: {error}") from error

    def _tensor(self, leaf: str) -> tuple[Stored, NDArray[np.uint8]] | None:
        name = join(self._stored, leaf)
        kind = self._file.header.tensors.get(name)
        return None if kind is None else (kind, self._file.raw(name))


class File(Generic[ArrayT]):
    """An open file.

    Attributes:
        layers: Its coded weights, by name.
        tensors: All else, by the names of the model's ``state_dict``: biases, norms and layers
            that were left as they are. Read, and checked, one by one.
        metadata: ``format``, and ``aliases``: names that are tied to another one.
    """

    def __init__(self, path: str | os.PathLike[str], library: Library[ArrayT]) -> None:
        file = Container(path)
        header = file.header
        self.layers: dict[str, Layer[ArrayT]] = {
            name: Layer(file, name, stored, header.layers[stored], library)
            for name, stored in header.weights()
        }
        self.tensors: Mapping[str, ArrayT] = _Tensors(file, library)
        self.metadata: dict[str, Any] = {"format": FORMAT, "aliases": dict(header.aliases)}

    def __repr__(self) -> str:
        return f"File({len(self.layers)} layers, {len(self.tensors)} other tensors)"


class _Tensors(Mapping[str, ArrayT]):
    def __init__(self, file: Container, library: Library[ArrayT]) -> None:
        self._file, self._library = file, library
        self._stored = dict(file.header.others())

    def __getitem__(self, name: str) -> ArrayT:
        stored = self._stored[name]
        return self._library.array(self._file.header.tensors[stored], self._file.raw(stored))

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class _Numpy:
    """Arrays of numpy: bfloat16, which it lacks, becomes float32."""

    def array(self, kind: Stored, data: NDArray[np.uint8]) -> NDArray[Any]:
        return array_of(kind, data)

    def wrap(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def decode(self, layer: Layer[NDArray[Any]]) -> NDArray[Any]:
        dtype = np.dtype("float32" if layer.dtype == "bfloat16" else layer.dtype)
        codes, codebooks = layer.codes, layer.codebooks.astype(dtype)
        rows, length = layer._entry.matrix
        along_rows, positions = layer.axis != "out", layer._entry.positions
        weight = np.empty((rows, length) if along_rows else (length, rows), dtype)
        # A book for every subspace (of a kernel position), or one for all.
        book = np.arange(codes.shape[2]) % codebooks.shape[2]
        step = max(1, _RUN // (codes.shape[2] * codebooks.shape[4]))
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            group = np.arange(part.start, part.stop)[:, None] // (layer.group or rows)
            matrix = codebooks[0][group, book, codes[0, part]]
            for stage in range(1, len(codes)):
                matrix = matrix + codebooks[stage][group, book, codes[stage, part]]
            pieces = matrix.reshape(len(group), positions, -1)[:, :, : length // positions]
            matrix = pieces.reshape(len(group), length)
            if layer.scale is not None:
                matrix = matrix * layer.scale[part].astype(dtype)[:, None]
            weight[(part,) if along_rows else (slice(None), part)] = (
                matrix if along_rows else matrix.T
            )
        if layer.axis == "channels":
            weight = np.ascontiguousarray(weight.reshape(rows, positions, -1).swapaxes(1, 2))
        if layer.view is None:
            return weight.reshape(layer.shape)
        parameter, split, order = layer.view
        moved = weight.reshape([split[at] for at in order])
        return np.ascontiguousarray(moved.transpose(np.argsort(order))).reshape(parameter)


def open_file(path: str | os.PathLike[str]) -> File[NDArray[Any]]:
    """Opens a file without its model: arrays of numpy.

    Args:
        path: A file that :func:`vq_plugin.save` wrote.

    Returns:
        Its coded weights and other tensors, which are read when they are asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If its header is damaged, or it is of another kind or version.

    Example:
        >>> import tempfile, torch
        >>> import vq_plugin as vq
        >>> small = vq.compress(torch.nn.Sequential(torch.nn.Linear(64, 64)), vq.PQ(k=16, dim=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = vq.save(small, f"{folder}/model.vq")
        ...     layer = open_file(f"{folder}/model.vq").layers["0"]
        ...     weight = layer.decode()
        >>> layer
        Layer('0', pq(k=16,dim=4), (64, 64), float32)
        >>> bool(np.array_equal(weight, small[0].weight.detach().numpy()))
        True
    """
    return File(path, _Numpy())
