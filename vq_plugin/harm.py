"""What a change of one weight does to the outputs of a model: one answer for all who ask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vq_plugin.fit.output.across import floored_root, shrunk
from vq_plugin.fit.output.metric import row_errors
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.output.objective import damped
from vq_plugin.fit.parallel import worker_pool
from vq_plugin.sensitivity import Sensitivity

# What keeps rounding from making a root impossible, as a part of the mean.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Harm:
    """The harm of changes of one weight.

    Attributes:
        rows: What a squared error of each output of the layer counts, float64 ``(out,)``, as
            :meth:`vq_plugin.fit.output.moments.Moments.row_errors` has them.
        noise: What noise of variance 1 in each weight of a row does, float64 ``(out,)``.
        moments: Of the inputs of the layer; ``None`` if nothing is known of them.
        felt: What the outputs of the model feel of the weight; ``None`` if nothing is known.
        root: ``L`` of ``L·Lᵀ``, what is believed of errors of two rows together, float64; ``None``
            if that is nothing.
    """

    rows: Tensor
    noise: Tensor
    moments: Moments | None = None
    felt: Sensitivity | None = None
    root: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, moments: Moments | None, felt: Sensitivity | None) -> Harm:
        """Of a weight, ``(out, ...)``.

        Without ``felt``, relative errors of all rows that are not dead count alike.
        """
        known = moments or Moments(torch.ones((), device="cpu"))
        if felt is not None:
            rows = felt.of_row_errors(known)
        else:
            size = known.row_errors(weight)
            live = size > 0
            rows = live / torch.where(live, size, 1.0) / live.sum().clamp_min(1)
        root = None
        if felt is not None and known.together is not None:
            with worker_pool():
                root = floored_root(shrunk(known.together.cpu().double(), known.doubt), _ROUNDING)
        return cls(rows, rows * known.row_inputs(tuple(weight.shape)), moments, felt, root)

    def __call__(self, change: Tensor) -> float:
        """What ``change``, added to the weight, does.

        The larger of two answers, each of which is blind to something. Gradients see that errors of
        rows go together, as those of calibrated fits do, but they are few: what none of their
        samples shows, others may feel. Errors of rows count everywhere, by second moments of all
        samples, damped as the fit damps them, which leaves errors where these show nothing; and so
        does what errors of two rows do together, as far as it is believed.

        Example:
            >>> felt = Sensitivity(torch.tensor([[[1.0, 0.0]]]), torch.tensor([0]), (1, 2))
            >>> second = torch.eye(2).unsqueeze(0)
            >>> harm = Harm.of(torch.ones(1, 2), Moments(torch.ones(2), second), felt)
            >>> felt.harm(torch.tensor([[0.0, 1.0]])), round(harm(torch.tensor([[0.0, 1.0]])), 2)
            (0.0, 0.5)
        """
        if self.root is None:
            by_rows = float(self.rows @ self._errors(change))
        else:
            with worker_pool():
                mixed = self.root.T @ change.detach().cpu().double().flatten(1)
            by_rows = float(self._errors(mixed.float()).sum())
        return by_rows if self.felt is None else max(by_rows, self.felt.harm(change))

    def of_noise(self, weight: Tensor) -> float:
        """What noise does that is as large as a weight, row by row."""
        size = weight.detach().cpu().double().flatten(1).square().mean(1)
        return float(self.noise @ size)

    def _errors(self, change: Tensor) -> Tensor:
        """Squared errors of outputs, on other inputs than those that the fit has seen."""
        if self.moments is None:
            return Moments(torch.ones((), device="cpu")).row_errors(change)
        if self.moments.second is None:
            return self.moments.row_errors(change)
        return row_errors(damped(self.moments), change)
