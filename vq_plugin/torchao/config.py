"""What ``quantize_`` is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torchao.core.config import ALLOWED_AO_MODULES, AOBaseConfig

from vq_plugin.arguments import brief, check_whole
from vq_plugin.schemes import PRESETS, Scheme, parse_scheme
from vq_plugin.select import parse_form

Step: TypeAlias = Literal["prepare", "convert"]

# Where config_from_dict looks classes up.
ALLOWED_AO_MODULES.add("vq_plugin.torchao")


@dataclass
class VQWeightOnlyConfig(AOBaseConfig):  # type: ignore[misc]
    """Codes into codebooks, for ``torchao.quantization.quantize_`` and ``FqnToConfig``.

    Without a filter, ``quantize_`` takes Linear layers only and skips the rest without a word: give
    it a ``filter_fn`` for convolutions, embeddings, recurrent layers and attention, and hold the
    result against :func:`vq_plugin.torchao.check_converted`.

    Attributes:
        scheme: A scheme or its text, such as ``"pq(k=16,dim=4)"``; held as text, as
            ``config_to_dict`` wants it.
        step: ``None`` fits at once. ``"prepare"`` lets the chosen layers run as they are and gather
            statistics of their inputs in eval mode, or learn with their codebooks in training mode;
            ``"convert"`` puts codes in their places.
        seed: Seed of the fits.

    Raises:
        TypeError: If ``scheme`` or ``seed`` is of the wrong type.
        ValueError: If the text is no scheme, or ``step`` is another word.

    Example:
        >>> import torch
        >>> from torchao.quantization import quantize_
        >>> import vq_plugin as vq
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU())
        >>> quantize_(model, VQWeightOnlyConfig(vq.PQ(k=16, dim=4)))
        >>> type(model[0]).__name__
        'CodebookLinear'
    """

    scheme: Scheme | str
    step: Step | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.scheme, str) and self.scheme not in PRESETS:
            # Also what is none of its schemes: the error below says what to do.
            self.scheme = parse_form(self.scheme)  # type: ignore[assignment]
        if not isinstance(self.scheme, Scheme):
            raise TypeError(
                f"VQWeightOnlyConfig: scheme must be one scheme, such as vq.PQ() or its text, got "
                f"{brief(self.scheme)}; vq.choose_schemes gives those of a preset, and FqnToConfig "
                "takes a config for each name"
            )
        self.scheme = str(self.scheme)
        if self.step not in (None, "prepare", "convert"):
            raise ValueError(
                f"VQWeightOnlyConfig: step must be 'prepare', 'convert' or None, got {self.step!r}"
            )
        self.seed = check_whole("VQWeightOnlyConfig: seed", self.seed)

    @property
    def layer_scheme(self) -> Scheme:
        """The scheme itself."""
        return parse_scheme(str(self.scheme))
