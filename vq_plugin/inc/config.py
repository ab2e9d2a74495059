"""INC's config classes: what to do, and to which layers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Self, TypeAlias

from neural_compressor.common.base_config import BaseConfig, ComposableConfig, register_config
from neural_compressor.common.utils import DEFAULT_WHITE_LIST, GLOBAL, LOCAL
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from neural_compressor.torch.utils.constants import LM_HEAD_NAMES
from torch import nn

from vq_plugin.arguments import brief
from vq_plugin.inc.base import CodebookConfig
from vq_plugin.inc.composition import Composition
from vq_plugin.inc.layers import Configs, ModelInfo, checked, model_info
from vq_plugin.inc.partners import check_partner
from vq_plugin.inc.plain import Settings, known, local_from_dict, local_to_dict, plain, unique
from vq_plugin.nn import layer_types
from vq_plugin.schemes import PQ, PRESETS, Scheme
from vq_plugin.select import Pattern, check_pattern_type, parse_form

WhiteList: TypeAlias = str | Sequence[Pattern] | None


@register_config(FRAMEWORK_NAME, "vq")
class VQConfig(CodebookConfig):
    """Codebooks by any scheme, for Linear, Conv1d, Conv2d, Conv3d and Embedding layers.

    INC's own rules hold, made exact: a name is that of one layer, or a regular expression that
    must match the whole name (INC's ``re.match`` takes ``fc1`` for ``fc10`` too). Of several
    rules the most specific decides: name, then regular expression, then type, then all; of several
    of one kind the last.

    Attributes:
        scheme: A scheme or its text; ``None`` leaves the layers in float. A list is for
            ``autotune``, which tries its entries one by one.
        seed: Seed of the fits.

    Example:
        >>> import torch
        >>> import vq_plugin as vq
        >>> from neural_compressor.torch.quantization import quantize
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 10))
        >>> config = VQConfig("pq(k=16,dim=4)").set_local("1", VQConfig(vq.KM(k=16)))
        >>> model = quantize(model, config)
        >>> str(model[0].scheme), str(model[1].scheme)
        ('pq(k=16,dim=4)', 'km(k=16)')
    """

    name = "vq"

    # What the white list stands for, which changes with the settings.
    _listed: VQConfig | None = None

    def __init__(
        self,
        scheme: Scheme | str | Sequence[Scheme | str | None] | None = PQ(),  # noqa: B008 - frozen
        seed: int = 0,
        white_list: WhiteList = DEFAULT_WHITE_LIST,
    ) -> None:
        """Checks everything at once.

        Args:
            scheme: See the class.
            seed: See the class.
            white_list: Names, regular expressions and layer classes that it is for; ``"*"`` is
                all layers.

        Raises:
            TypeError: If a scheme or an entry of the white list is of the wrong type.
            ValueError: If a scheme cannot be read, or the white list is empty.
        """
        self._take({"scheme": scheme}, seed, white_list)

    def _take(self, settings: Mapping[str, Any], seed: int, white_list: WhiteList) -> None:
        super().__init__(list(white_list) if isinstance(white_list, list) else white_list)
        self.__dict__.update(settings, seed=seed)
        self._post_init()

    @classmethod
    def _scheme(cls, settings: Mapping[str, Any]) -> Scheme | None:
        given = scheme = settings["scheme"]
        if isinstance(given, str) and given not in PRESETS:
            scheme = parse_form(given)
        if scheme is None or isinstance(scheme, Scheme):
            return scheme
        raise TypeError(
            f"{cls.__name__}: a scheme is vq.PQ(), a text such as 'pq(k=16,dim=4)', or None to "
            f"leave the layers in float; got {brief(given)}; vq.choose_schemes gives those of a "
            "preset, and vq.factorize makes layers products of smaller ones first"
        )

    def _post_init(self) -> None:
        """What INC calls whenever a setting changes: checks it and hands it on to the layers."""
        # First: INC has unset it, and a refused setting must not be the last that is looked at.
        self._is_initialized = self.white_list is not None
        self._check_settings()
        self._global_config = None
        deviating = self._deviating()
        if self.white_list is None:
            # The config of one layer, which rules no others.
            return
        self._listed = self._with(white_list=None)
        if self.white_list == DEFAULT_WHITE_LIST:
            self._global_config = self._listed
            self._local_config = deviating
        else:
            self._local_config = {**dict.fromkeys(self._keys(), self._listed), **deviating}

    def _keys(self) -> list[Pattern]:
        """The entries of a white list that is not ``"*"``."""
        white_list, where = self.white_list, type(self).__name__
        if isinstance(white_list, str) or not isinstance(white_list, Iterable):
            raise TypeError(
                f"{where}: white_list is a list of layer names and types, or '*' for all layers; "
                f"got {white_list!r}"
            )
        for key in white_list:
            check_pattern_type(key)
        if not white_list:
            raise ValueError(f"{where}: white_list is empty; name layers or leave it out")
        return list(white_list)

    def _with(self, *, white_list: WhiteList, **settings: Any) -> Self:
        return type(self)(
            **{**self._settings(), "seed": self.seed, **settings, "white_list": white_list}
        )

    def set_local(self, operator_name_or_list: Pattern | list[Pattern], config: BaseConfig) -> Self:
        """Sets what some layers get instead.

        Args:
            operator_name_or_list: Name, regular expression, layer class, or a list of them.
            config: Any config of one of these classes or of INC; ``None`` leaves the layers in
                float.

        Returns:
            This config.

        Raises:
            TypeError: If a key or the config is of the wrong type.
            ValueError: If the config has rules of its own, or cannot share a model with codebooks.
        """
        keys = operator_name_or_list
        config = VQConfig(None, white_list=None) if config is None else config
        if not isinstance(config, BaseConfig) or isinstance(config, ComposableConfig):
            raise TypeError(
                f"set_local takes a config such as KMConfig(k=16) or INC's RTNConfig(), or None "
                f"to leave the layers in float; got {brief(config)}"
            )
        check_partner(config)
        if config is self or any(key not in LM_HEAD_NAMES for key in config.local_config):
            raise ValueError(
                "set_local says which layers a config is for: give it one without a white_list "
                "and without local configs"
            )
        if config.local_config:
            # INC has used it, and left rules of its own in it.
            config = copy.copy(config)
            config.local_config = {}
        for key in keys if isinstance(keys, list) else [keys]:
            check_pattern_type(key)
            self._local_config[key] = config
        return self

    def get_model_info(self, model: nn.Module) -> ModelInfo:
        """What INC asks first: the layers, see :func:`vq_plugin.inc.layers.model_info`."""
        return model_info(self, model)

    def to_config_mapping(
        self, config_list: None = None, model_info: ModelInfo | None = None
    ) -> Configs:
        """What INC asks next: their configs, see :func:`vq_plugin.inc.layers.checked`."""
        assert model_info is not None
        return checked(model_info.model, model_info.configs)

    def _get_op_name_op_type_config(self) -> tuple[dict[str, BaseConfig], dict[str, BaseConfig]]:
        """What INC asks for when it composes this config with one of its own on the left."""
        shown = type(self).__name__
        raise ValueError(
            f"'other + {shown}(…)' is INC's own composition, which drops what a config says of all "
            f"layers or of types, and all but the last of one class: write {shown}(…) + other, "
            "with the codebooks on the left"
        )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{type(self).__name__} has no setting {name!r}. If an algorithm of INC asked for it: "
            "codebooks share a model with its weight-only algorithms only (RTN, GPTQ, AWQ, TEQ, "
            "HQQ)"
        )

    def __add__(self, other: BaseConfig) -> Composition:
        """Both: names and types go before 'all layers', the later config before the earlier.

        Raises:
            ValueError: If both are the same, which is how INC reads a dict of two algorithms.
        """
        if self == other:
            raise ValueError(
                "a dict names two algorithms, or a config is added to itself: INC reads the first "
                "one twice and drops the others. Name the other algorithm under 'local', as in "
                "{'vq_pq': {'local': {'fc2': {'rtn': {'bits': 4}}}}}, or write PQConfig(…) + "
                "RTNConfig(…)"
            )
        composed: Composition = Composition([self]) + other
        return composed

    def expand(self) -> list[VQConfig]:
        """The configs that ``autotune`` tries: one for each combination of what is in lists."""
        singles = self._singles()
        local = {key: config.expand() for key, config in self._deviating().items()}
        if len(singles) == 1 and all(len(choices) == 1 for choices in local.values()):
            return [self]
        expanded = []
        for settings, *chosen in product(singles, *local.values()):
            config = self._with(white_list=self.white_list, **settings)
            for key, choice in zip(local, chosen, strict=True):
                config.set_local(key, choice)
            expanded.append(config)
        return expanded

    def _deviating(self) -> dict[Pattern, BaseConfig]:
        """The local configs that the white list has not put there."""
        return {
            key: config for key, config in self.local_config.items() if config is not self._listed
        }

    def get_params_dict(self) -> dict[str, Any]:
        """The settings as plain values, as they are in JSON."""
        settings = {name: plain(value) for name, value in self._settings().items()}
        return {**settings, "seed": self.seed}

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values, which :meth:`from_dict` reads back."""
        result = Settings(self.get_params_dict(), self)
        if self.white_list not in (None, DEFAULT_WHITE_LIST):
            result["white_list"] = plain(self.white_list)
        local = {plain(key): local_to_dict(c, type(self)) for key, c in self._deviating().items()}
        return {GLOBAL: result, LOCAL: local} if local else result

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """A config from plain values.

        Args:
            config_dict: Settings, or ``{"global": settings, "local": {name: settings}}``. Local
                settings may name another algorithm: ``{"fc2": {"rtn": {"bits": 4}}}``; ``None``
                leaves the layers in float.

        Returns:
            The config.

        Raises:
            ValueError: If a setting is unknown or out of range.
        """
        if not isinstance(config_dict, Mapping):
            raise TypeError(f"{cls.__name__}: expected a dict of settings, got {config_dict!r}")
        if GLOBAL not in config_dict and LOCAL not in config_dict:
            return cls(**known(config_dict, cls._generate_params_list(), cls.name))
        sections = known(config_dict, (GLOBAL, LOCAL), cls.name)
        config = cls.from_dict(sections.get(GLOBAL, {}))
        local = sections.get(LOCAL, {})
        if not isinstance(local, Mapping):
            raise TypeError(f"{cls.__name__}: 'local' is a dict of names, got {local!r}")
        for key, settings in local.items():
            config.set_local(key, local_from_dict(settings, cls))
        return config

    def to_json_file(self, filename: str) -> None:
        """Writes the config to a file.

        Raises:
            ValueError: If a key is a class that a file cannot name.
        """
        for key in self.local_config:
            if not isinstance(key, str) and layer_types().get(key.__name__) is not key:
                types = ", ".join(layer_types())
                raise ValueError(f"{filename}: a file can name {types}, but not {key!r}")
        super().to_json_file(filename)

    @classmethod
    def from_json_file(cls, filename: str) -> Self:
        """A config from a file that :meth:`to_json_file` wrote.

        Raises:
            ValueError: If the file is not JSON, has a key twice, or an unknown one; the message
                names the file.
        """
        with open(filename, encoding="utf-8") as file:
            text = file.read()
        try:
            return cls.from_dict(json.loads(text, object_pairs_hook=unique))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{filename}: {error}") from error

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, VQConfig)
            and self.name == other.name
            and self.to_dict() == other.to_dict()
            and (self.global_config is None) == (other.global_config is None)
        )

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def register_supported_configs(cls) -> None:
        """Nothing to register: the slots are in :mod:`vq_plugin.nn.slots`."""

    @classmethod
    def get_config_set_for_tuning(cls) -> BaseConfig:
        """What INC's ``get_all_config_set()`` gets: nothing to try, so that it stays as it was."""
        return _NoTrial(None)


class _NoTrial(VQConfig):
    def expand(self) -> list[VQConfig]:
        return []
