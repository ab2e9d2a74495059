"""``vq.learn`` with ``rest="int8"``: biases pay for their bits, as numbers that a file keeps."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vq_plugin as vq
from tests.training.learning import Everything, Killed, inputs, network
from tests.training.test_finetune import same
from vq_plugin.coding.numbers import encode_numbers, number_kinds
from vq_plugin.training.latent_biases import LatentBiases


def biases(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() == 1}


def learned(price: float, model: nn.Module | None = None, **more: Any) -> nn.Module:
    own = network() if model is None else model
    return vq.learn(own, inputs(), rate_weight=price, epochs=4, rest="int8", **more)


def test_a_higher_price_leaves_fewer_biases() -> None:
    def kept(price: float) -> int:
        small = learned(price, lr=2e-2)
        return sum(int(each.count_nonzero()) for each in biases(small).values())

    free, dear = kept(0.0), kept(1e-2)
    assert dear < free / 2


def test_a_file_gives_them_back_to_the_bit(tmp_path: Path) -> None:
    small = learned(1e-3)
    vq.save(small, tmp_path / "model.vq", rest="int8")
    assert same(biases(vq.load(tmp_path / "model.vq", network())), biases(small))


def test_every_kind_of_layer_learns_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Everything().train()
    tokens = [torch.randint(20, (8, 5)) for _ in range(6)]
    small = vq.learn(model, tokens, rate_weight=1e-4, epochs=2, lr=1e-2, rest="int8")
    vq.save(small, tmp_path / "model.vq", rest="int8")
    again = vq.load(tmp_path / "model.vq", Everything())
    with torch.no_grad():
        assert torch.allclose(again.eval()(tokens[0]), small.eval()(tokens[0]), atol=1e-5)


def test_frozen_and_half_ones_stay_as_they_are() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    assert torch.equal(learned(1e-2, model)[0].bias, model[0].bias)  # type: ignore[index, arg-type]
    half = network().bfloat16()
    small = vq.learn(half, [x.bfloat16() for x in inputs()], rate_weight=1e-2, rest="int8")
    # A file keeps those of bfloat16 as such, so that zeros would save nothing.
    assert all(bool(each.count_nonzero() > len(each) / 2) for each in biases(small).values())


def test_biases_of_zeros_may_grow() -> None:
    model = network()
    with torch.no_grad():
        model[0].bias.zero_()
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted[0].bias.fill_(1.0)
    small = learned(0.0, model, teacher=shifted)
    assert bool(biases(small)["0.bias"].any())


def test_the_same_bytes_again_and_after_a_kill(tmp_path: Path) -> None:
    def run(loader: Any, **more: Any) -> dict[str, torch.Tensor]:
        small = vq.learn(
            network(), loader, target_bytes=2_500, epochs=4, rest="int8", **more
        )  # fmt: skip
        return dict(small.state_dict())

    whole = run(inputs())
    assert same(whole, run(inputs()))
    with pytest.raises(KeyboardInterrupt):
        run(Killed(inputs()), checkpoint=tmp_path / "run")
    assert same(whole, run(inputs(), checkpoint=tmp_path / "run"))


def test_the_pull_is_what_a_longer_number_costs() -> None:
    draw = torch.Generator().manual_seed(3)
    values = [
        nn.Parameter(torch.randn(400, generator=draw).pow(3)),
        nn.Parameter(torch.randn(100, generator=draw)),
    ]
    latent = LatentBiases(values)
    latent.count()
    numbers = torch.cat([each.flatten() for each in latent.numbers()]).to(torch.int8).numpy()
    kinds = np.bincount(number_kinds(numbers), minlength=15)
    # Bits of the kind of a number of so many digits, of either sign, and of what follows it.
    counts = [kinds[0] + 0.5, *((kinds[1::2] + kinds[2::2]) / 2 + 0.5)]
    bits = [-math.log2(count / (500 + 15 / 2)) for count in counts]
    bits = [bits[0], *(each + more for more, each in enumerate(bits[1:]))]
    longest = np.maximum.accumulate(bits)
    # From the first number of a length to the first of the next, whichever numbers lie between.
    for length in range(7):
        first, last = (1 << length) // 2, 1 << length
        steps = latent.pulls[first:last]
        assert float(steps.sum()) == pytest.approx(longest[length + 1] - longest[length], abs=1e-4)
        assert bool((steps == steps[0]).all())
    # And together they are the bits of a file, but for its table.
    stream = sum(bits[int(n).bit_length()] for n in np.abs(numbers.astype(int)))
    assert encode_numbers(numbers).size == pytest.approx(15 + stream / 8, rel=0.05)
