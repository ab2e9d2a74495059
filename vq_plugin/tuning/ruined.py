"""Copies of a model that are ruined for sure, to be shown to a metric."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from vq_plugin.nn import find_slots
from vq_plugin.replace import assemble

# Of earlier calls, bytes of outputs that are kept, so that samples of other batches are mixed too.
_MOST_BYTES = 1 << 27
# Of all samples of a call: one tensor, or whatever each has, in a list.
_Outputs: TypeAlias = Tensor | list[Any]


def shuffled(model: nn.Module, seed: int, *, within: bool = False) -> nn.Module:
    """A copy of a model that gives each sample the output of another.

    No metric tells the outputs from the model's own but by how they belong to the samples: they are
    as large, as sure and as often of each class. A batch is shuffled along its first dimension, or,
    where that has one sample, its last but one, and a list of as many outputs as there are samples,
    as detectors give, as a whole; and it may be an earlier call's whose outputs have the same
    shapes, since data are often sorted. A loss of all samples cannot be shuffled: calls that return
    one raise ``RuntimeError``.

    Args:
        model: The float model; not changed.
        seed: Seed of the shuffles: equal calls in equal order are shuffled alike.
        within: Shuffles outputs of all layers that can be coded instead, for models that give a
            loss, and for evaluations that do not call the model itself.

    Example:
        >>> x = torch.arange(4.0).reshape(4, 1)
        >>> shuffled(nn.Identity(), 1)(x).flatten().sort().values
        tensor([0., 1., 2., 3.])
    """
    copied = assemble(model, {})
    if within:
        layers = dict.fromkeys(slot.module for slot in find_slots(copied).values())
        for number, layer in enumerate(layers):
            hook = _Shuffle(seed + number, most_bytes=0)
            layer.register_forward_hook(hook, with_kwargs=True)
    else:
        copied.register_forward_hook(_refuse_losses)
        copied.register_forward_hook(_Shuffle(seed, _MOST_BYTES), with_kwargs=True)
    return copied


def silenced(model: nn.Module) -> nn.Module:
    """A copy of a model whose outputs are zeros.

    What it changes shows that a metric has to do with the outputs of the model, if not how.

    Example:
        >>> silenced(nn.Identity())(torch.ones(3))
        tensor([0., 0., 0.])
    """
    copied = assemble(model, {})
    copied.register_forward_hook(
        lambda module, args, output: tree_map_only(Tensor, torch.zeros_like, output)
    )
    return copied


def scrambled(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a model whose parameters have signs that are drawn anew.

    For evaluations that run neither the model nor its layers, but compute with their weights.

    Example:
        >>> (scrambled(nn.Linear(2, 2), 0).weight.abs() > 0).all()
        tensor(True)
    """
    copied, generator = assemble(model, {}), torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for value in copied.parameters():
            drawn = torch.randint(2, value.shape, generator=generator, device="cpu")
            value.mul_((2 * drawn - 1).to(value.device, value.dtype))
    return copied


def _refuse_losses(module: nn.Module, args: tuple[object, ...], output: object) -> None:
    """A metric may be the mean of what is of all samples, and no shuffle of the others is seen."""
    if any(isinstance(leaf, Tensor) and leaf.dim() == 0 for leaf in tree_leaves(output)):
        raise RuntimeError("the model returns a loss, which cannot be shuffled")


class _Shuffle:
    """A forward hook. ``most_bytes`` are those of earlier outputs to draw from."""

    def __init__(self, seed: int, most_bytes: int) -> None:
        self.generator = random.Random(seed)
        self.room = most_bytes
        self.kept: dict[tuple[torch.Size, ...], list[list[_Outputs]]] = {}

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> object:
        count = _samples((*args, *kwargs.values()))
        leaves, form = tree_flatten(output, is_leaf=lambda each: _is_of_samples(each, count))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor | list)]
        outputs = [tree_map_only(Tensor, Tensor.detach, leaves[place]) for place in places]
        shapes = tuple(
            each.shape if isinstance(each, Tensor) else torch.Size([len(each)]) for each in outputs
        )
        calls = [*self.kept.get(shapes, []), outputs]
        # What belongs together stays so: outputs of as many samples are shuffled alike.
        drawn = self.generator.getrandbits(63)
        for index, place in enumerate(places):
            generator = torch.Generator("cpu").manual_seed(drawn)
            leaves[place] = _mixed([call[index] for call in calls], generator)
        tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        nbytes = sum(each.numel() * each.element_size() for each in tensors)
        if nbytes <= self.room:
            self.room -= nbytes
            self.kept[shapes] = calls
        return tree_unflatten(leaves, form)


def _samples(inputs: Iterable[object]) -> int:
    """How many samples a model is called with: the length of what it is given first."""
    for each in inputs:
        if isinstance(each, list) or (isinstance(each, Tensor) and each.dim() > 0):
            return len(each)
    return 0


def _is_of_samples(value: object, count: int) -> bool:
    """Whether a list has an output for each sample, and no tensor that has one for all."""
    if not isinstance(value, list) or len(value) != count:
        return False
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return not all(each.dim() > 0 and len(each) == count for each in tensors)


def _mixed(calls: list[_Outputs], generator: torch.Generator) -> _Outputs:
    """Samples of some outputs of one shape, each at another place, as one more such output."""
    last = calls[-1]
    if isinstance(last, Tensor) and last.dim() == 0:
        return last.clone()
    dim = 0
    if isinstance(last, Tensor) and last.shape[0] == 1 and last.dim() > 2:
        dim = last.dim() - 2
    length = last.shape[dim] if isinstance(last, Tensor) else len(last)
    order = torch.randperm(length, generator=generator, device="cpu")
    picks = torch.randint(len(calls), order.shape, generator=generator, device="cpu")
    if not isinstance(last, Tensor):
        pairs = zip(picks.tolist(), order.tolist(), strict=True)
        return [calls[call][place] for call, place in pairs]
    mixed = last.clone()
    for call in sorted(set(picks.tolist())):
        to = (picks == call).nonzero().flatten().to(mixed.device)
        chosen = calls[call]
        assert isinstance(chosen, Tensor)
        mixed.index_copy_(dim, to, chosen.index_select(dim, order.to(mixed.device)[to]))
    return mixed
