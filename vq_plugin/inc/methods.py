"""A config class for each method, with the settings of its scheme as INC's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from neural_compressor.common.utils import DEFAULT_WHITE_LIST

from vq_plugin.inc.config import VQConfig
from vq_plugin.inc.keys import WhiteList
from vq_plugin.schemes import KM, PQ, RQ, Scheme


class _MethodConfig(VQConfig):
    """The settings are those of one scheme class, not a scheme."""

    method: ClassVar[type[Scheme]]

    @classmethod
    def _scheme(cls, settings: Mapping[str, Any]) -> Scheme:
        return cls.method(**settings)


class KMConfig(_MethodConfig):
    """K-means on single weights, see :class:`vq_plugin.KM`; every setting may be a list.

    Example:
        >>> KMConfig(k=4).layer_scheme
        KM(k=4)
    """

    name = "vq_km"
    method = KM

    def __init__(
        self,
        k: int | list[int] = 16,
        group: int | list[int | None] | None = None,
        keep_zeros: bool | list[bool] = False,
        codebook_dtype: str | list[str] = "float16",
        scale: str | list[str | None] | None = None,
        seed: int = 0,
        white_list: WhiteList = DEFAULT_WHITE_LIST,
    ) -> None:
        """Settings as in :class:`vq_plugin.KM`, the rest as in :class:`VQConfig`."""
        own = {"k": k, "group": group, "keep_zeros": keep_zeros}
        self._take({**own, "codebook_dtype": codebook_dtype, "scale": scale}, seed, white_list)


class PQConfig(_MethodConfig):
    """Product quantization, see :class:`vq_plugin.PQ`; every setting may be a list.

    Example:
        >>> [str(config.layer_scheme) for config in PQConfig(k=[16, 64], dim=8).expand()]
        ['pq(k=16,dim=8)', 'pq(k=64,dim=8)']
    """

    name = "vq_pq"
    method = PQ

    def __init__(
        self,
        k: int | list[int] = 16,
        dim: int | list[int] = 4,
        axis: str | list[str] = "in",
        codebooks: str | list[str] = "subspace",
        codebook_dtype: str | list[str] = "float16",
        scale: str | list[str | None] | None = None,
        seed: int = 0,
        white_list: WhiteList = DEFAULT_WHITE_LIST,
    ) -> None:
        """Settings as in :class:`vq_plugin.PQ`, the rest as in :class:`VQConfig`."""
        own = {"k": k, "dim": dim, "axis": axis, "codebooks": codebooks}
        self._take({**own, "codebook_dtype": codebook_dtype, "scale": scale}, seed, white_list)


class RQConfig(_MethodConfig):
    """Residual quantization, see :class:`vq_plugin.RQ`; every setting may be a list.

    Example:
        >>> RQConfig(k=64, stages=3, dim=8).layer_scheme
        RQ(k=64, stages=3, dim=8)
    """

    name = "vq_rq"
    method = RQ

    def __init__(
        self,
        k: int | list[int] = 256,
        stages: int | list[int] = 2,
        dim: int | list[int | None] | None = None,
        axis: str | list[str] = "in",
        codebooks: str | list[str] = "subspace",
        codebook_dtype: str | list[str] = "float16",
        scale: str | list[str | None] | None = None,
        seed: int = 0,
        white_list: WhiteList = DEFAULT_WHITE_LIST,
    ) -> None:
        """Settings as in :class:`vq_plugin.RQ`, the rest as in :class:`VQConfig`."""
        own = {"k": k, "stages": stages, "dim": dim, "axis": axis, "codebooks": codebooks}
        self._take({**own, "codebook_dtype": codebook_dtype, "scale": scale}, seed, white_list)
