"""Weights of modules that have no codebook layer: codes in the place of a parameter."""

from __future__ import annotations

import functools
import threading

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn.coded import CodedWeight
from vq_plugin.nn.read_only import read_only
from vq_plugin.nn.recurrent import OWN_LOOPS, computed_by_codes
from vq_plugin.nn.view import View


class CodedParameter(CodedWeight):
    """A parametrization whose parameter is codes into codebooks; see :func:`hold_coded`.

    The module that it belongs to stays what it is, and finds the decoded parameter under its name.
    It is decoded once and kept, or once in every forward pass of the module: while codebooks train,
    and with ``memory="codes"``.

    Attributes:
        view: Between the parameter and its weight.
    """

    def __init__(
        self, small: CodebookWeight, view: View, *, trains: bool, padding: int | None, zero: bool
    ) -> None:
        """As :class:`CodedWeight`; the row of the padding of a table may be ``zero``."""
        super().__init__(small, trains=trains)
        self.view = view
        self._padding, self._zero_row = padding, zero
        self._owner = ""
        self._held = False
        # What all that read the parameter in one pass get, by thread: passes may overlap.
        self._passes: dict[int, Tensor] = {}

    @property
    def kind(self) -> str:
        """Name of the class of the module, as it was."""
        return self._owner

    def forward(self) -> Tensor:
        """The parameter, of the shape that it had; to be read, but in a pass of its module."""
        if torch.compiler.is_compiling():
            return self.view.restore(self._weight())
        passing = self._passes.get(threading.get_ident())
        return read_only(self._restored()) if passing is None else passing

    def _restored(self) -> Tensor:
        if self.memory == "codes" or self._recorded():
            return self.view.restore(self._weight())
        return self._kept()

    def _kept(self) -> Tensor:
        codes = self._codes

        def restored(codebooks: Tensor, scale: Tensor | None) -> Tensor:
            return self.view.restore(self._dequantized(codes, codebooks, scale))

        return self._decoded.get(codes, self._tables(), restored)

    def right_inverse(self, value: Tensor) -> tuple[()]:
        """Nothing that torch has to keep; ``RuntimeError`` if it is assigned once it is coded."""
        if self._held:
            raise RuntimeError(
                "this parameter is codes into codebooks and cannot be assigned: change the float "
                "model and compress it again, or train the codebooks with vq.finetune"
            )
        del value
        return ()

    def extra_repr(self) -> str:  # noqa: D102 - inherited
        return f"{self.view.parameter_shape}, {self._weight_repr()}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_passes": {}}


def hold_coded(module: nn.Module, parameter: str, coded: CodedParameter) -> None:
    """Puts a coded parameter in the place of an ordinary one of a module, in place.

    The module gets a class of its own, as with every parametrization of torch.
    """
    coded._owner = parametrize.type_before_parametrizations(module).__name__
    parametrize.register_parametrization(module, parameter, coded, unsafe=True)
    coded._held = True
    _decode_once_a_pass(type(module))
    if isinstance(module, nn.EmbeddingBag):
        module.sparse = False  # gradients of codebooks are dense
    if isinstance(module, nn.RNNBase):
        for name in ("_flat_weights", "_flat_weight_refs"):
            vars(module).pop(name, None)


def own_class(module: nn.Module) -> None:
    """Gives a parametrized module a class that it shares with no module it was copied from.

    Torch writes and deletes properties of the class, which a deep copy has in common with its
    original.
    """
    if parametrize.is_parametrized(module):
        cls = type(module)
        names = {n: v for n, v in vars(cls).items() if n not in ("__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, cls.__bases__, names)


def coded_parameters(module: nn.Module) -> dict[str, CodedParameter]:
    """The coded parameters of a module itself, by the names of the parameters."""
    lists = getattr(module, "parametrizations", None)
    if not isinstance(lists, nn.ModuleDict):
        return {}
    firsts = {name: next(iter(each.children())) for name, each in lists.items()}
    return {name: first for name, first in firsts.items() if isinstance(first, CodedParameter)}


def _decode_once_a_pass(cls: type[nn.Module]) -> None:
    """Changes the class of its own that a parametrized module has.

    By no hooks: where there are some, Transformer layers leave their fast path, and fail on batches
    that their encoder has packed for it.
    """
    if "forward" in vars(cls):
        return
    forward = cls.forward
    steps = forward in OWN_LOOPS

    @functools.wraps(forward)
    def one_pass(module: nn.Module, *args: object, **kwargs: object) -> object:
        if torch.compiler.is_compiling():
            return forward(module, *args, **kwargs)
        coded, thread = coded_parameters(module), threading.get_ident()
        if (
            steps
            and not _computed_on(module, coded)
            and (found := computed_by_codes(module, coded, args, kwargs)) is not None
        ):
            return found
        try:
            for each in coded.values():
                each._passes[thread] = each._restored()
            if isinstance(module, nn.RNNBase):
                _lists[id(module), thread] = _weights_of_pass(module, coded, thread)
            return forward(module, *args, **kwargs)
        finally:
            _lists.pop((id(module), thread), None)
            for each in coded.values():
                each._passes.pop(thread, None)

    cls.forward = one_pass
    # Torch leaves it to the state_dict; but workers of a search are sent models.
    cls.__reduce_ex__ = (  # type: ignore[method-assign]
        lambda module, _: (_rebuilt, (cls.__bases__[0], dict(vars(module))))
    )
    if issubclass(cls, nn.RNNBase):
        # Their list of weights would outlive the pass, and be shared by threads.
        for name, compute in (("_flat_weights", _flat_weights), ("_flat_weight_refs", _no_refs)):
            setattr(cls, name, _Computed(compute))
        # What is computed has not; torch would read every weight twice to see it.
        cls._weights_have_changed = lambda _: False  # type: ignore[method-assign]
        # Theirs would look at that list, hence decode, at each new attribute: FSDP sets many.
        if cls.__setattr__ is nn.RNNBase.__setattr__:
            cls.__setattr__ = nn.Module.__setattr__  # type: ignore[assignment]


class _Computed(property):
    """A property that ignores what it is set to."""

    def __set__(self, module: object, value: object) -> None:
        """Nothing: what is computed is up to date."""


# In a pass of a recurrent layer, by its id and the thread: each look at it takes as long as a step.
_lists: dict[tuple[int, int], list[Tensor | None]] = {}


def _flat_weights(module: nn.RNNBase) -> list[Tensor | None]:
    # What is compiled has no threads.
    if not torch.compiler.is_compiling():
        found = _lists.get((id(module), threading.get_ident()))
        if found is not None:
            return found
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _computed_on(module: nn.Module, coded: dict[str, CodedParameter]) -> set[str]:
    """Parameters that further parametrizations of a user compute from coded ones."""
    lists = module._modules["parametrizations"]
    assert lists is not None
    return {name for name in coded if len(lists._modules[name]._modules) > 1}  # type: ignore[union-attr]


def _weights_of_pass(
    module: nn.RNNBase, coded: dict[str, CodedParameter], thread: int
) -> list[Tensor | None]:
    """The list of weights, past torch's look-up of parametrizations, which short passes notice."""
    plain, more = module._parameters, _computed_on(module, coded)
    found: list[Tensor | None] = []
    for name in module._flat_weights_names:
        if name in plain:
            found.append(plain[name])
        elif name in coded and name not in more:
            found.append(coded[name]._passes[thread])
        else:
            found.append(getattr(module, name, None))
    return found


def _no_refs(module: nn.RNNBase) -> list[None]:
    return [None] * len(module._flat_weights_names)


def _rebuilt(cls: type[nn.Module], state: dict[str, object]) -> nn.Module:
    """A module with coded parameters, from its own class and what it holds."""
    module = cls.__new__(cls)
    vars(module).update(state)
    parametrize._inject_new_class(module)
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    for name in lists:
        parametrize._inject_property(module, name)
    _decode_once_a_pass(type(module))
    return module
