"""A config class for each scheme, made of the fields of its dataclass and registered with INC."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from inspect import Parameter, Signature
from typing import Any, ClassVar

from neural_compressor.common.base_config import register_config
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from neural_compressor.torch.utils.utility import algos_mapping, register_algo

from vq_plugin.inc.config import VQConfig
from vq_plugin.schemes import SCHEMES, Scheme

# What every config class takes beside the settings of its scheme.
_COMMON = [Signature.from_callable(VQConfig).parameters[name] for name in ("seed", "white_list")]

_CONFIGS: dict[type[Scheme], type[SchemeConfig]] = {}


class SchemeConfig(VQConfig):
    """Base of the classes that :func:`scheme_config` makes; settings are the fields of a scheme."""

    scheme_class: ClassVar[type[Scheme]]
    __signature__: ClassVar[Signature]

    def __init__(self, *values: Any, **settings: Any) -> None:
        given = self.__signature__.bind(*values, **settings)
        given.apply_defaults()
        settings = given.arguments
        self._take(settings, settings.pop("seed"), settings.pop("white_list"))

    @classmethod
    def _scheme(cls, settings: Mapping[str, Any]) -> Scheme:
        return cls.scheme_class(**settings)

    @classmethod
    def _generate_params_list(cls) -> list[str]:
        """INC's look at the parameters of ``__init__``."""
        return list(cls.__signature__.parameters)

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is found by its scheme: pickle itself goes by names of modules.
        return _empty, (self.scheme_class,), self.__dict__.copy()


def scheme_config(scheme: type[Scheme]) -> type[SchemeConfig]:
    """INC's config class for a scheme, such as ``PQConfig`` for :class:`vq_plugin.PQ`.

    Its name for INC is ``vq_`` and the scheme's. Schemes that are known when this package is
    imported have theirs from the start.

    Args:
        scheme: A class of schemes.

    Returns:
        A class whose parameters are the scheme's fields, each a value or a list of values for
        ``autotune``, and ``seed`` and ``white_list`` as in :class:`VQConfig`. It is the same at
        every call.

    Example:
        >>> import vq_plugin as vq
        >>> PQConfig = scheme_config(vq.PQ)
        >>> PQConfig.name, [str(config.layer_scheme) for config in PQConfig(k=[16, 64]).expand()]
        ('vq_pq', ['pq(k=16,dim=4)', 'pq(k=64,dim=4)'])
    """
    if scheme in _CONFIGS:
        return _CONFIGS[scheme]
    parameters = inspect.signature(scheme).parameters.values()
    # What a scheme takes by name alone stays so; what all have may be given by place here.
    shared = inspect.signature(Scheme).parameters
    named = [p for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.name not in shared]
    fields = [p.replace(kind=Parameter.POSITIONAL_OR_KEYWORD) for p in parameters if p not in named]
    fields.sort(key=lambda field: field.default is not Parameter.empty)

    class Config(SchemeConfig):
        __doc__ = f"Config of ``{scheme.__name__}``. {scheme.__doc__}"
        __qualname__ = f"{scheme.__name__}Config"
        __signature__ = Signature([*fields, *_COMMON, *named])
        name = f"vq_{scheme.method}"
        scheme_class = scheme

    Config.__name__ = Config.__qualname__
    register_config(FRAMEWORK_NAME, Config.name)(Config)
    # An alias: one algorithm is behind all the names.
    register_algo(Config.name)(algos_mapping[VQConfig.name])
    _CONFIGS[scheme] = Config
    return Config


def register_known() -> None:
    """Lets INC know the configs of every scheme that is known by now."""
    for scheme in SCHEMES.values():
        scheme_config(scheme)


def _empty(scheme: type[Scheme]) -> SchemeConfig:
    kind = scheme_config(scheme)
    return kind.__new__(kind)
