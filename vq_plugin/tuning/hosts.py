"""What the tuner asks of a host, and the hosts that go by a name."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Protocol, TypeAlias

from torch import nn

from vq_plugin.arguments import brief
from vq_plugin.export.example import Example
from vq_plugin.select import Schemes

# Loaded by name: nobody needs a host who does not ask for it, and hosts know nothing of each other.
_HOSTS = {
    "pt2e": "vq_plugin.torchao.hosts:PT2E",
    "torch_ao": "vq_plugin.torch_ao.host:FX",
    "torchao": "vq_plugin.torchao.hosts:Quantize",
}


class Host(Protocol):
    """A way from a float model to one with codebook layers, by the calls of another library."""

    @property
    def name(self) -> str:
        """What messages and journals call it."""

    def fused(self, model: nn.Module, example: Example | None) -> nn.Module:
        """The float model whose weights the host codes: with norms folded, where it folds them."""

    def convert(self, model: nn.Module, schemes: Schemes, example: Example | None) -> nn.Module:
        """What the host makes of a float model, which may change; schemes are by names of slots.

        ``ValueError`` names a weight that the host cannot hold as codes.
        """


#: The name of a host of this package, or a host.
AnyHost: TypeAlias = str | Host


def find_host(host: AnyHost) -> Host:
    """The host of a name; one that is no name is what it is.

    ``ValueError`` for a name that no host has, ``TypeError`` for what is neither, ``ImportError``
    where its library is missing.

    Example:
        >>> find_host("torch_ao").name
        'torch_ao'
    """
    if not isinstance(host, str):
        if not all(hasattr(host, each) for each in ("name", "fused", "convert")):
            raise TypeError(
                f"host is {', '.join(map(repr, sorted(_HOSTS)))}, or has name, fused and convert; "
                f"got {brief(host)}"
            )
        return host
    if host not in _HOSTS:
        raise ValueError(f"host={host!r} is none of {', '.join(map(repr, sorted(_HOSTS)))}")
    found: Host = resolve_name(_HOSTS[host])()
    return found
