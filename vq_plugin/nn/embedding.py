"""``CodebookEmbedding``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq_plugin.codebook import decode_rows
from vq_plugin.fields import field_bits, pack_fields, unpack_fields
from vq_plugin.nn.layer import CodebookLayer


class CodebookEmbedding(CodebookLayer):
    """``nn.Embedding`` whose weight is codes into codebooks.

    ``max_norm`` is refused: it rewrites the weight during the forward pass, which codes cannot.
    The row of ``padding_idx`` is exactly zero where the float layer's is, and never trains.

    Example:
        >>> import vq_plugin as vq
        >>> layer = CodebookEmbedding.from_float(nn.Embedding(100, 32), vq.PQ(k=16, dim=4))
        >>> layer(torch.tensor([[3, 14]])).shape
        torch.Size([1, 2, 32])
    """

    float_type = nn.Embedding

    # Of a code in its byte.
    _bits: int = 8

    # Single rows are asked for, which the layout of the kernels does not have.
    def _packed(self, codes: Tensor) -> Tensor:
        cut = self.geometry
        # Along the outputs, what is asked for is a column of codes.
        self._bits = field_bits(cut.k) if cut.axis == "in" else 8
        return pack_fields(codes, self._bits).clone()

    def _unpacked(self, codes: Tensor) -> Tensor:
        return unpack_fields(codes, self._bits, self.geometry.subspaces)

    def _dequantized(self, codes: Tensor, codebooks: Tensor, scale: Tensor | None) -> Tensor:
        return super()._dequantized(self._unpacked(codes), codebooks, scale)

    def _take_settings(self, source: nn.Module) -> None:
        assert isinstance(source, nn.Embedding)
        if source.max_norm is not None:
            raise ValueError(
                f"an embedding with max_norm={source.max_norm} rewrites its weight as it runs; "
                "set max_norm=None (renormalize the weight once) before compressing it"
            )
        self.num_embeddings, self.embedding_dim = self.weight_shape
        self.padding_idx = self._padding = source.padding_idx
        self._zero_row = self.padding_idx is not None and not bool(
            source.weight[self.padding_idx].any()
        )
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
        codebooks, scale = self._tables()
        self._warn_if_stacked(codebooks)
        # Frequencies are known to torch's own gradient alone.
        if input.is_nested or (self.scale_grad_by_freq and self._trains()):
            return functional.embedding(
                input, self._weight(), self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq
            )
        geometry = self.geometry
        vectors = decode_rows(
            self._codes.to(codebooks.device),
            self._rounded_codebooks(codebooks),
            None if scale is None else self._rounded_scale(scale),
            input,
            shape=self.weight_shape,
            axis=geometry.axis,
            group=geometry.group,
            bits=self._bits,
        )
        return self._padded(vectors, input)

    def _padded(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Vectors of rows, that of the padding as it has to be."""
        if self.padding_idx is None or not (self._zero_row or self._recorded()):
            return vectors
        padding = (rows == self.padding_idx).unsqueeze(-1)
        if self._zero_row:
            return vectors.masked_fill(padding, 0)
        return torch.where(padding, vectors.detach(), vectors)

    def _settings_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
