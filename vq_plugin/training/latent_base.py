"""What all weights in training have in common that pay for the bits of their codes."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn import Slot

# Of a code that no weight has, as a count; its length must be known when a weight comes near.
UNSEEN = 0.5


class Paying(nn.Module):
    """What trains behind parameters of a model, and pays for its bits in the file."""

    @abstractmethod
    def groups(self, lr: float) -> list[dict[str, object]]:
        """What an optimizer trains, and how fast."""

    @abstractmethod
    def count(self) -> None:
        """Counts the codes, or numbers, anew: their bits, and how these pull."""

    @abstractmethod
    def write(self, settled: bool) -> None:
        """Gives the model its parameters; codes stay once they are ``settled``."""

    @abstractmethod
    def pull(self, rate_weight: float, settled: bool) -> None:
        """Gives what trains its gradients, from the parameters' and their bits.

        Once codes are ``settled`` only the centers get some.
        """


class Latent(Paying):
    """A float weight behind one that holds what codes stand for.

    What changes in a training is in its ``state_dict``.

    Attributes:
        latent: What is coded, float32.
        bits: Bits of all codes, when last counted.
    """

    latent: nn.Parameter
    bits: Tensor

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        # Not a submodule's: the model has it, and no optimizer.
        self._weight = [weight]
        self.register_buffer("bits", torch.zeros((), dtype=torch.float64))

    @abstractmethod
    def bits_above(self, limit: float) -> float:
        """Bits of all codes after :meth:`clear`."""

    @abstractmethod
    def clear(self, limit: float) -> None:
        """Makes weights zero that are shorter than ``limit`` steps."""

    @abstractmethod
    def kept(self) -> tuple[Tensor, ...]:
        """Copies of what :meth:`clear` changes."""

    @abstractmethod
    def restore(self, kept: tuple[Tensor, ...]) -> None:
        """Undoes :meth:`clear`."""

    @abstractmethod
    def coded(self, slot: Slot) -> CodebookWeight:
        """Codes and centers as they are now, in the dtype that the slot has."""

    def _gradient(self) -> Tensor:
        """That of the weight, which is dropped there."""
        (weight,) = self._weight
        found, weight.grad = weight.grad, None
        grad = torch.zeros_like(weight) if found is None else found.float()
        return grad.to_dense() if grad.is_sparse else grad


def entropy(counts: Tensor) -> Tensor:
    """Bits of codes of these counts."""
    used = counts[counts > 0]
    return -(used * (used / counts.sum()).log2()).sum()
