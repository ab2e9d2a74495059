"""Models as a host makes them: where one is named, a budget is decided on those."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vq_plugin.calibration import Calibration
from vq_plugin.calibration.model_calls import calls
from vq_plugin.codebook import CodebookWeight
from vq_plugin.export.example import Example
from vq_plugin.factors import Factored
from vq_plugin.hosting.fit import fitted_before
from vq_plugin.nn import CodedWeight, coded_weights
from vq_plugin.nn.slots import shown
from vq_plugin.replace import assemble
from vq_plugin.schemes import Scheme, torch_code_dtype
from vq_plugin.select import Form, Schemes, slots_by_name
from vq_plugin.tuning.hosts import AnyHost, Host, find_host


@dataclass(frozen=True)
class Shipped:
    """Makes of compressed models what their host ships.

    ``model`` is the float model whose weights the host codes, ``example`` what it traces it with.
    """

    host: Host
    model: nn.Module
    example: Example | None

    @classmethod
    def by(cls, host: AnyHost, model: nn.Module, calibration: Calibration | None) -> Shipped:
        """For a host, or its name; ``ValueError`` if it cannot take the float model."""
        found = find_host(host)
        example = None if calibration is None else _example(model, calibration)
        with _named(found):
            # What is shipped is in eval mode.
            return cls(found, found.fused(assemble(model, {}).eval(), example), example)

    def check(self, space: Mapping[str, tuple[Form | None, ...]]) -> None:
        """Converts without any fit, so that what the host cannot do shows before a search.

        ``ValueError`` names the host and, as far as it does, the layer.
        """
        schemes: dict[str, Scheme] = {}
        for name, forms in space.items():
            for form in forms:
                if form is None:
                    continue
                if isinstance(form, Factored):
                    raise ValueError(
                        f"host={self.host.name!r} codes layers as they are: leave {form} out of "
                        f"the candidates of layer {shown(name)}"
                    )
                schemes.setdefault(name, form)
        slots = slots_by_name(self.model, schemes)
        zeros = {name: _zeros(slots[name].weight, scheme) for name, scheme in schemes.items()}
        with _named(self.host):
            self(assemble(self.model, zeros))

    def __call__(self, small: nn.Module) -> nn.Module:
        """The host's model with the codes and all other values of a compressed one.

        ``ValueError`` names a layer of which the host makes something else.
        """
        weights = {name: each.codebook_weight for name, each in coded_weights(small).items()}
        model, known = assemble(self.model, {}), small.state_dict()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if name in known and isinstance(value, Tensor):
                    value.copy_(known[name])
        schemes: Schemes = {name: weight.scheme for name, weight in weights.items()}
        with fitted_before(weights):
            converted = self.host.convert(model, schemes, self.example)
        _check_same(small, converted)
        return converted

    def evaluate(self, function: Callable[[nn.Module], object]) -> Callable[[nn.Module], object]:
        """A function of the host's model as one of the compressed model; it can be pickled."""
        return partial(_evaluate, function, self)


def _zeros(weight: Tensor, scheme: Scheme) -> CodebookWeight:
    """A weight of zeros, in the form that a scheme gives it."""
    shape = tuple(weight.shape)
    geometry = scheme.geometry(shape)
    return CodebookWeight(
        codes=torch.zeros(geometry.code_shape, dtype=torch_code_dtype(geometry.k)),
        codebooks=torch.zeros(geometry.codebook_shape),
        scale=torch.zeros(geometry.rows) if geometry.scaled else None,
        scheme=scheme,
        shape=shape,
        dtype=weight.dtype,
    )


@contextmanager
def _named(host: Host) -> Iterator[None]:
    """Errors are those of a host."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(f"host={host.name!r} cannot convert the model: {text}") from error


def _evaluate(
    function: Callable[[nn.Module], object], shipped: Shipped, small: nn.Module
) -> object:
    return function(shipped(small))


def _example(model: nn.Module, calibration: Calibration) -> Example | None:
    """What the model is called with at first."""
    args, kwargs = next(iter(calls(model, calibration)), ((), {}))
    if args and kwargs:
        return inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return kwargs or args or None


def _check_same(small: nn.Module, converted: nn.Module) -> None:
    """Codes, codebooks, scales and biases; ``ValueError`` names a layer where one is another."""
    found = coded_weights(converted)
    for name, expected in coded_weights(small).items():
        ours, theirs = _parts(expected), _parts(found.get(name))
        for part, value in ours.items():
            other = theirs.get(part)
            if value is not other and (value is None or other is None or not value.equal(other)):
                raise ValueError(
                    f"layer {name!r} has other {part} than the one that was compressed"
                )


def _parts(coded: CodedWeight | None) -> dict[str, Tensor | None]:
    """The values of a layer, as a file has them."""
    if coded is None:
        return {}
    weight = coded.codebook_weight
    bias = getattr(coded, "bias", None)
    parts = {"codes": weight.codes, "codebooks": weight.codebooks, "scale": weight.scale}
    return {**parts, "bias": bias}
