"""Names of models, by what led to them: the same for every run that would make the same model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vq_plugin.checkpoint import Rest
from vq_plugin.codebook import CodebookWeight
from vq_plugin.factorize.coded import FactoredWeight
from vq_plugin.select import Form
from vq_plugin.tuning.allocation import Setting
from vq_plugin.tuning.candidates import Fits


class Tried(NamedTuple):
    """A setting as it was fitted, or trained after that; or a model that was learned.

    A learned model has a ``rate_weight``, the price of a bit, and no setting.
    """

    setting: Setting = ()
    trained: bool = False
    rate_weight: float | None = None

    @classmethod
    def at(cls, rate_weight: float) -> Self:
        """What is learned at a price."""
        return cls(trained=True, rate_weight=rate_weight)


@dataclass(frozen=True)
class Identity:
    """Names what comes of the float model of digest ``start``; no ``training``: no recovery."""

    start: str
    fits: Fits
    training: tuple[object, ...]
    rest: Rest | None
    _digests: dict[tuple[str, Form], str] = field(default_factory=dict, init=False)

    def key(self, tried: Tried) -> str:
        """The name of a model, 16 hexadecimal digits."""
        parts: list[object] = [self.start]
        if tried.rate_weight is None:
            chosen = self.fits.chosen(tried.setting)
            parts.append(
                {
                    name: scheme and self._digest(name, scheme, chosen[name])
                    for name, scheme in self.fits.schemes(tried.setting).items()
                }
            )
        else:
            parts.append(tried.rate_weight)
        if tried.trained:
            parts.append(self.training)
        if self.rest is not None:
            parts.append(self.rest)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _digest(self, name: str, scheme: Form, weight: CodebookWeight | FactoredWeight) -> str:
        if (name, scheme) not in self._digests:
            fitted = (
                [weight] if isinstance(weight, CodebookWeight) else [weight.first, weight.second]
            )
            parts = ("codes", "codebooks", "scale", "bias_shift")
            found = digest((part, getattr(each, part)) for each in fitted for part in parts)
            self._digests[name, scheme] = f"{scheme} {found}"
        return self._digests[name, scheme]


def model_digest(model: nn.Module) -> str:
    """:func:`digest` of the tensors of a model's ``state_dict``."""
    return digest(model.state_dict().items())


def digest(tensors: Iterable[tuple[str, object]]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of tensors, as 16 hexadecimal digits.

    What is no tensor is left out.

    Example:
        >>> digest([("weight", torch.zeros(2))]) == digest([("weight", torch.zeros(2))])
        True
    """
    sha = hashlib.sha256()
    for key, value in tensors:
        if not isinstance(value, Tensor):
            continue
        if is_traceable_wrapper_subclass(value):  # of torchao, which has no bytes of its own
            names, _ = value.__tensor_flatten__()
            sha.update(f"{key} {digest((name, getattr(value, name)) for name in names)};".encode())
            continue
        plain = value.detach().cpu().contiguous()
        sha.update(f"{key} {plain.dtype} {tuple(plain.shape)};".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
