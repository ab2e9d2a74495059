"""``CodebookEmbedding``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq_plugin.codebook import decode
from vq_plugin.nn.layer import CodebookLayer


class CodebookEmbedding(CodebookLayer):
    """``nn.Embedding`` whose weight is codes into codebooks.

    ``max_norm`` is refused: it rewrites the weight during the forward pass, which codes cannot.

    Example:
        >>> import vq_plugin as vq
        >>> layer = CodebookEmbedding.from_float(nn.Embedding(100, 32), vq.PQ(k=16, dim=4))
        >>> layer(torch.tensor([[3, 14]])).shape
        torch.Size([1, 2, 32])
    """

    float_type = nn.Embedding
    keeps_packed = False

    def _take_settings(self, source: nn.Module) -> None:
        assert isinstance(source, nn.Embedding)
        if source.max_norm is not None:
            raise ValueError(
                f"an embedding with max_norm={source.max_norm} rewrites its weight as it runs; "
                "set max_norm=None (renormalize the weight once) before compressing it"
            )
        self.num_embeddings, self.embedding_dim = self.weight_shape
        self.padding_idx = source.padding_idx
        self.scale_grad_by_freq = source.scale_grad_by_freq

    def _float_like(self, device: torch.device) -> nn.Module:
        return nn.Embedding(
            self.num_embeddings,
            self.embedding_dim,
            padding_idx=self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
            device=device,
        )

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Embedding``: integers ``(...)`` to ``(..., embedding_dim)``."""
        geometry = self.geometry
        if self._trains() or geometry.axis == "out" or geometry.group is not None:
            return functional.embedding(
                input, self.weight, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq
            )
        rows = input.reshape(-1)
        scale = None
        if self.scale is not None:
            scale = self._rounded_scale(self.scale).index_select(0, rows)
        vectors = decode(
            self.codes.index_select(1, rows),
            self._rounded_codebooks(),
            scale,
            shape=(len(rows), self.embedding_dim),
            axis="in",
        )
        return vectors.reshape(*input.shape, self.embedding_dim)

    def _settings_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
