"""What changes of outputs cost: against the divergence, or the squared change, that they are."""

import pytest
import torch
from scipy.special import log_softmax

from vq_plugin.output_harm import classes, decisions_or_values, harm_of_change


@pytest.mark.parametrize(
    "shape", [(256, 10), (64, 10, 4), (32, 10, 3, 4), (256, 1), (64, 4, 1), (256,)], ids=str
)
@pytest.mark.parametrize("size", [0.03, 3.0])
def test_the_harm_of_a_change_in_any_direction(shape: tuple[int, ...], size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    y = size * torch.randn(shape, generator=generator, dtype=torch.float64)
    change = 1e-3
    variance = float((y - y.mean(0)).square().mean())
    found = []
    for _ in range(50):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        moved = y + noise * (change * variance) ** 0.5
        axis = {2: 1, 3: 2, 4: 1}.get(y.dim())
        if axis is not None and y.shape[axis] > 1:
            before, after = (
                torch.from_numpy(log_softmax(each.numpy(), axis=axis)) for each in (y, moved)
            )
            found.append(float((before.exp() * (before - after)).sum(axis).mean()))
        else:
            found.append(float((moved - y).square().mean()) / variance)
    assert harm_of_change(y, change) == pytest.approx(sum(found) / len(found), rel=0.05)


@pytest.mark.parametrize("shape", [(30, 8), (6, 5, 8), (6, 8, 2, 3)], ids=str)
def test_decisions_are_of_the_classes(shape: tuple[int, ...]) -> None:
    """Of one output for each sample, of steps of sequences, of pixels."""
    generator = torch.Generator().manual_seed(0)
    y = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    axis = classes(y)
    assert axis is not None
    assert shape[axis] == 8
    # What all classes gain alike changes nothing.
    change = 0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)
    alike = torch.randn(shape, generator=generator, dtype=torch.float64).mean(axis, keepdim=True)
    y.requires_grad_()
    gradients = [torch.autograd.grad(decisions_or_values(y, generator), y)[0] for _ in range(1000)]
    before, after = (
        torch.from_numpy(log_softmax(each.detach().numpy(), axis=axis)) for each in (y, y + change)
    )
    expected = float((before.exp() * (before - after)).sum(axis).mean())
    found = [float((each * (change + alike)).sum()) ** 2 for each in gradients]
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.15)
