"""What nn.Module does around a forward pass, which layers reach by a shorter way."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

import vq_plugin as vq
from vq_plugin.nn import CodebookLinear

Register = Callable[[nn.Module, Callable[..., None]], RemovableHandle]


@pytest.fixture
def layer() -> CodebookLinear:
    return CodebookLinear.from_float(nn.Linear(8, 4), vq.KM(k=4))


@pytest.mark.parametrize(
    "register",
    [
        nn.Module.register_forward_pre_hook,
        nn.Module.register_forward_hook,
        nn.Module.register_full_backward_pre_hook,
        nn.Module.register_full_backward_hook,
        lambda _, hook: register_module_forward_pre_hook(hook),
        lambda _, hook: register_module_forward_hook(hook),
        lambda _, hook: register_module_full_backward_pre_hook(hook),
        lambda _, hook: register_module_full_backward_hook(hook),
    ],
    ids=[
        *("forward before", "forward", "backward before", "backward"),
        *("every forward before", "every forward", "every backward before", "every backward"),
    ],
)
def test_hooks_see_every_pass_until_they_are_removed(
    layer: CodebookLinear, register: Register
) -> None:
    seen: list[nn.Module] = []

    def hook(module: nn.Module, *_: object) -> None:
        seen.append(module)

    def run() -> None:
        layer(torch.randn(2, 8, requires_grad=True)).sum().backward()

    run()
    handle = register(layer, hook)
    run()
    run()
    handle.remove()
    run()
    assert seen == [layer, layer]


def test_a_forward_set_on_a_layer_is_the_one_that_runs(layer: CodebookLinear) -> None:
    plain = layer.forward
    layer.forward = lambda input: plain(input) + 1  # type: ignore[method-assign]
    x = torch.randn(2, 8)
    assert torch.equal(layer(x), plain(x) + 1)
    del layer.forward
    assert torch.equal(layer(x), plain(x))


def test_a_subclass_runs_its_own_forward(layer: CodebookLinear) -> None:
    class Doubled(CodebookLinear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    class Again(Doubled):
        pass

    doubled = Again.from_float(nn.Linear(8, 4), vq.KM(k=4))
    x = torch.randn(2, 8)
    assert torch.equal(doubled(x), CodebookLinear.forward(doubled, x) * 2)


def test_a_layer_compiled_in_place_runs_compiled(layer: CodebookLinear) -> None:
    x, calls = torch.randn(2, 8), []

    def backend(program: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        calls.append(program)
        return program.forward

    expected = layer(x)
    layer.compile(backend=backend)
    torch.testing.assert_close(layer(x), expected)
    assert len(calls) == 1
