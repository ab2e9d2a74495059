"""``CodebookLinear``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq_plugin.nn.layer import TENSORS, CodebookLayer
from vq_plugin.ops import compiled_by_codes, recording, tracing


class CodebookLinear(CodebookLayer):
    """``nn.Linear`` whose weight is codes into codebooks.

    Example:
        >>> import vq_plugin as vq
        >>> layer = CodebookLinear.from_float(nn.Linear(64, 32), vq.PQ(k=16, dim=4))
        >>> layer(torch.zeros(1, 64)).shape
        torch.Size([1, 32])
    """

    float_type = nn.Linear

    def _take_settings(self, source: nn.Module) -> None:
        self.out_features, self.in_features = self.weight_shape
        self._sample_length = self.in_features

    def _float_like(self, device: torch.device) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features, self.bias is not None, device=device)

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``: ``(..., in_features)`` to ``(..., out_features)``."""
        if not recording():
            if type(input) in TENSORS:
                return self._computed(input)
            weight = self._weight_unrecorded()
        elif tracing():
            # By the shape, which the operator does not check: batches may be of another size.
            return self._multiply(input.reshape(*input.shape[:-1], self.in_features))
        elif torch.compiler.is_compiling() and compiled_by_codes(input) and self._fits(input):
            return self._multiply(input)
        else:
            weight = self._weight()
        return functional.linear(input, weight, self._optional("bias"))

    def _computed(self, input: Tensor) -> Tensor:
        # The operator takes its size from the input; torch's own has the error for another one.
        if self._kernel_runs(input) and self._fits(input):
            return self._multiply(input)
        parameters = self._parameters
        bias = parameters["bias"] if "bias" in parameters else self._optional("bias")
        return functional.linear(input, self._weight_unrecorded(), bias)

    def _fits(self, input: Tensor) -> bool:
        return input.dim() > 0 and input.size(-1) == self.in_features

    def _settings_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
