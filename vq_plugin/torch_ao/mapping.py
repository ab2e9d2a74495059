"""Schemes as the ``QConfigMapping`` of FX."""

from __future__ import annotations

import copy
import re

from torch import nn
from torch.ao.quantization import QConfig, QConfigMapping

from vq_plugin.arguments import brief, check_whole
from vq_plugin.hosting.conversion import Conversion
from vq_plugin.hosting.plan import Plan, Rules
from vq_plugin.schemes import Scheme
from vq_plugin.select import Schemes, as_patterns
from vq_plugin.torch_ao.qconfig import plan_qconfig


def copied(base: QConfigMapping | None) -> QConfigMapping:
    """A mapping to go on from; ``TypeError`` if ``base`` is none."""
    if base is None:
        return QConfigMapping()
    if not isinstance(base, QConfigMapping):
        raise TypeError(
            "base is a QConfigMapping, such as get_default_qconfig_mapping('x86'), got "
            f"{brief(base)}"
        )
    return copy.deepcopy(base)


def get_qconfig_mapping(
    schemes: Schemes, base: QConfigMapping | None = None, *, seed: int = 0
) -> QConfigMapping:
    r"""Tells ``prepare_fx`` which layers become codebook layers.

    Patterns mean what they mean in :func:`vq_plugin.compress`. Whether they match anything shows
    when :func:`check_converted` sees the model.

    Args:
        schemes: One scheme for every layer that can take it, or patterns to schemes (exact
            name > ``"re:…"`` > class > ``"*"``; ``None`` leaves a layer to ``base``).
        base: The mapping for everything that the schemes leave, such as
            ``get_default_qconfig_mapping("x86")``; without it that stays float. Not changed.
        seed: Seed of the fits.

    Returns:
        A mapping for ``prepare_fx``, together with :func:`get_backend_config`. For
        ``prepare_qat_fx`` there is :func:`get_qat_qconfig_mapping`.

    Raises:
        TypeError: If a pattern, a scheme or ``base`` is of the wrong type.
        ValueError: If a regular expression cannot be read, or a class or ``"*"`` is to share the
            model with ``base``.

    Example:
        >>> import vq_plugin as vq
        >>> mapping = get_qconfig_mapping({"classifier.0": vq.PQ(), r"re:features\..*": vq.KM()})
        >>> list(mapping.module_name_qconfigs)
        ['classifier.0']
    """
    seed = check_whole("seed", seed)
    mapping = copied(base)
    regular: dict[str, QConfig] = {}
    floats: list[str] = []
    rules: Rules = ()
    conversion = Conversion()

    def qconfig(*rules: tuple[type[nn.Module], Scheme | None], name: str | None = None) -> QConfig:
        return plan_qconfig(Plan(rules, seed, conversion, name))

    patterns = as_patterns(schemes)
    for pattern, scheme in patterns.items():
        if isinstance(pattern, str) and pattern != "*" and not pattern.startswith("re:"):
            if scheme is None:
                floats.append(re.escape(pattern))
            else:
                mapping.set_module_name(pattern, qconfig((nn.Module, scheme), name=pattern))
    for pattern, scheme in patterns.items():
        if isinstance(pattern, str) and pattern.startswith("re:"):
            expression = _whole_name(pattern, floats)
            if scheme is None:
                floats.append(pattern.removeprefix("re:"))
            else:
                regular[expression] = qconfig((nn.Module, scheme))
        elif isinstance(pattern, type):
            rules += ((pattern, scheme),)
    rules += ((nn.Module, patterns.get("*")),)
    if any(scheme is not None for _, scheme in rules):
        if base is not None:
            kind = next(kind for kind, scheme in rules if scheme is not None)
            shown = "'*'" if kind is nn.Module else kind.__name__
            raise ValueError(
                f"pattern {shown}: beside a base mapping, which decides by class as well, layers "
                "have to be named; vq_plugin.select.select(model, schemes) gives their names"
            )
        regular[_whole_name("re:.*", floats)] = qconfig(*rules)
    if regular and base is None:
        # Where the host prepares for training, expressions do nothing, without a word: a plan
        # without rules leaves layers as they are, and is refused for training.
        mapping.set_global(qconfig())
    # The host takes the first expression that matches.
    mapping.module_name_regex_qconfigs = type(mapping.module_name_regex_qconfigs)(
        {**regular, **mapping.module_name_regex_qconfigs}
    )
    return mapping


def _whole_name(pattern: str, floats: list[str]) -> str:
    """An expression that the host's ``re.match`` takes for whole names, some others aside."""
    skip = rf"(?!(?:{'|'.join(f'(?:{name})' for name in floats)})\Z)" if floats else ""
    expression = rf"{skip}(?:{pattern.removeprefix('re:')})\Z"
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(
            f"pattern {pattern!r} is not a regular expression that torch.ao can use ({error}); "
            "write flags as '(?i:...)'"
        ) from None
    return expression
