"""The coded weights of a model: what a file keeps of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from vq_plugin.format.header import join
from vq_plugin.nn import CodebookLayer, CodedParameter, CodedWeight, View, coded_parameters
from vq_plugin.nn.slots import slot_names

_PARTS = ("codes", "codebooks", "scale", "exponents")


@dataclass(frozen=True)
class SavedWeight:
    """A coded weight of a model.

    Attributes:
        name: Its name in files: that of its slot.
        keys: Where the model's ``state_dict`` has its codes, codebooks and scale.
        holder: What holds it; weights whose holders share codebooks are tied.
    """

    name: str
    keys: frozenset[str]
    holder: CodedWeight

    @property
    def view(self) -> View | None:
        """Between a parameter and the weight, ``None`` where the parameter is the weight."""
        if not isinstance(self.holder, CodedParameter) or self.holder.view.plain:
            return None
        return self.holder.view


def saved_weights(model: nn.Module) -> Iterator[SavedWeight]:
    """The coded weights of a model, tied ones under each of their names."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, CodebookLayer):
            yield _saved(path, path, module)
        for parameter, coded in coded_parameters(module).items():
            # What files call its parts may be what the module calls something of its own.
            held = {*module._parameters, *module._buffers, *module._modules}
            names = slot_names([path], module, parameter)
            name = next(each for each in names if each != path or held.isdisjoint(_PARTS))
            yield _saved(name, join(path, f"parametrizations.{parameter}.0"), coded)


def _saved(name: str, path: str, holder: CodedWeight) -> SavedWeight:
    keys = frozenset(join(path, leaf) for leaf in ("codes", "codebooks", "scale"))
    return SavedWeight(name, keys, holder)
