"""The example inputs of a model that leaves Python, and which of their sizes may change."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from vq_plugin.arguments import check_flag
from vq_plugin.calibration import unfit_batch
from vq_plugin.calibration.run import every_module_runs

Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def exported(
    model: nn.Module, example: Example, *, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    """The program of a model in eval mode.

    Args:
        model: In eval mode already.
        example: An input; a tuple or list is the positional arguments, a mapping the keyword
            arguments.
        dynamic_batch: Whether the first size of every tensor of the example is the batch, and may
            be another one.

    Raises:
        TypeError: If ``dynamic_batch`` is neither true nor false.
        ValueError: If the example has no tensor or no sample, its tensors are not of one batch, the
            model does not run on it, or cannot take batches of another size.
    """
    check_flag("dynamic_batch", dynamic_batch)
    arguments, keywords = arguments_of(example)
    tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
    if not tensors:
        remedy = unfit_batch(example) or "give inputs that the model can be run on"
        if isinstance(example, Iterable) and not isinstance(example, str | Sized):
            remedy = "an iterator gives batches: take one, with next(...)"
        elif isinstance(example, DataLoader):
            remedy = "a DataLoader gives batches: take one, with next(iter(...))"
        raise ValueError(f"the example has no tensor: {remedy}")
    if empty := [each for each in tensors if each.shape[:1] == (0,)]:
        raise ValueError(f"the example has no sample: a tensor has shape {tuple(empty[0].shape)}")
    shapes: Any = None
    if dynamic_batch:
        sizes = {tuple(each.shape[:1]) for each in tensors}
        if len(sizes) > 1 or () in sizes:
            shown = ", ".join(str(tuple(each.shape)) for each in tensors)
            raise ValueError(
                f"the tensors of the example have no first size in common, which would be the "
                f"batch: {shown}; pass dynamic_batch=False for a program of these sizes"
            )
        if sizes == {(1,)}:
            # One sample might have anything broadcast: programs of it hold for no other number.
            arguments, keywords = tree_map(_doubled, (arguments, keywords))
        batch = torch.export.Dim("batch")

        shapes = tree_map(
            lambda leaf: {0: batch} if isinstance(leaf, Tensor) else None,
            _by_name(model, arguments, keywords),
        )
    # Fused Transformer layers read the weights of others, which would have to be decoded for them.
    with every_module_runs(), torch.no_grad(), warnings.catch_warnings():
        # Of lists that recurrent layers make anew, and of what torch has deprecated in itself.
        warnings.simplefilter("ignore")
        try:
            model(*arguments, **keywords)
        except Exception as error:
            raise ValueError(f"the model does not run on the example: {error}") from error
        try:
            return torch.export.export(
                model, arguments, keywords, dynamic_shapes=shapes, strict=False
            )
        except torch._dynamo.exc.UserError as error:
            if not dynamic_batch:
                raise
            # What follows is of reports and environment variables.
            said = " ".join(str(error).partition("\n\n")[0].split())
            raise ValueError(
                "the model cannot take batches of another size than the example's: pass "
                f"dynamic_batch=False, or change the model. torch.export says: {said}"
            ) from error


def arguments_of(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, list | tuple) else (example,)), {}


def _by_name(
    model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> dict[str, Any]:
    """Arguments by the names that ``forward`` has for them."""
    signature = inspect.signature(model.forward)
    try:
        named = signature.bind(*arguments, **keywords).arguments
    except TypeError as error:
        raise ValueError(f"the model does not run on the example: {error}") from error
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
    return named


def _doubled(leaf: Any) -> Any:
    return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) else leaf
