"""What every config of codebooks says of the layers that it is for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from itertools import product
from typing import Any

from neural_compressor.torch.quantization.config import TorchBaseConfig

from vq_plugin.arguments import as_number, check_whole
from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.output.moments import Moments
from vq_plugin.hosting.fit import fit_gathered
from vq_plugin.nn import Slot
from vq_plugin.schemes import Scheme


class CodebookConfig(TorchBaseConfig):  # type: ignore[misc]
    """Base of this package's config classes; settings that are lists are for ``autotune``."""

    seed: int

    # What INC's weight-only algorithms read from the configs of layers that are not theirs:
    # whether to leave the layer alone, and, from the last of the model, how to load layers.
    dtype = "fp32"
    use_layer_wise = False
    use_block_wise = False
    model_path = ""
    quant_lm_head = False

    @classmethod
    @abstractmethod
    def _scheme(cls, settings: Mapping[str, Any]) -> Scheme | None:
        """The scheme of settings without lists."""

    @property
    def layer_scheme(self) -> Scheme | None:
        """The scheme that a layer gets, ``None`` to leave it in float; ValueError for a list."""
        for name, value in self._settings().items():
            if isinstance(value, list):
                raise ValueError(
                    f"{type(self).__name__}: {name}={value!r} is a list, which autotune tries one "
                    "by one; give quantize and prepare a single value"
                )
        return self._scheme(self._settings())

    def fit(self, slot: Slot, moments: Moments | None) -> CodebookWeight:
        """The compressed weight of a slot, for a config with a scheme; errors name the slot."""
        scheme = self.layer_scheme
        assert scheme is not None
        return fit_gathered(slot.name, slot.weight, scheme, moments, self.seed)

    def _settings(self) -> dict[str, Any]:
        """The settings that make the scheme."""
        names = [name for name in self.params_list if name not in ("seed", "white_list")]
        return {name: getattr(self, name) for name in names}

    def _singles(self) -> list[dict[str, Any]]:
        """The settings, or every combination of them where they are lists."""
        settings = self._settings()
        choices = [v if isinstance(v, list) else [v] for v in settings.values()]
        return [dict(zip(settings, values, strict=True)) for values in product(*choices)]

    def _check_settings(self) -> None:
        """Raises for settings that are out of range, by themselves or together."""
        # Set past INC, which calls this at every change.
        self.__dict__["seed"] = check_whole(f"{type(self).__name__}: seed", self.seed)
        for name, value in self._settings().items():
            if isinstance(value, list | tuple):
                if not value:
                    raise ValueError(f"{type(self).__name__}: {name} is an empty list")
                self.__dict__[name] = list(map(as_number, value))
            else:
                self.__dict__[name] = as_number(value)
        for single in self._singles():
            self._scheme(single)
