"""Names of tensors and of models, and the bytes that no setting changes."""

from dataclasses import replace

import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.tuning.candidates import Fits
from vq_plugin.tuning.identity import Identity, Tried, digest
from vq_plugin.tuning.result import LayerCandidate, LayerLadder


def test_digests_tell_tensors_apart() -> None:
    zeros = torch.zeros(4)
    different = [
        [("a", zeros)],
        [("b", zeros)],
        [("a", torch.ones(4))],
        [("a", zeros.reshape(2, 2))],
        [("a", zeros.to(torch.bfloat16))],
        [("a", torch.zeros(8, dtype=torch.bfloat16))],
        [("a", torch.zeros(4, dtype=torch.int32))],
        [("a", torch.zeros(()))],
        [("a", torch.zeros(0))],
        [("a", torch.zeros(4, dtype=torch.bool))],
        [("a", zeros), ("b", zeros)],
        [],
    ]
    assert len({digest(tensors) for tensors in different}) == len(different)
    table = torch.arange(6.0).reshape(2, 3)
    assert digest([("a", table.T)]) == digest([("a", table.T.contiguous())])
    assert digest([("a", nn.Parameter(zeros))]) == digest([("a", zeros)])


def identity() -> Identity:
    torch.manual_seed(0)
    schemes = (vq.KM(k=2), vq.KM(k=4))
    ladder = LayerLadder(
        "0", (8, 8), 256, tuple(LayerCandidate(s, 1, 0.1, 0.1) for s in (*schemes, None))
    )
    weight = torch.randn(8, 8)
    weights = {("0", scheme): vq.quantize_weight(weight, scheme) for scheme in schemes}
    return Identity("start", Fits((ladder,), weights), (1, 2), None)


def test_whatever_leads_to_another_model_gives_it_another_name() -> None:
    names = identity()
    other_fit = Fits(
        names.fits.layers,
        {key: vq.quantize_weight(torch.randn(8, 8), key[1]) for key in names.fits.weights},
    )
    keys = [
        names.key(Tried((0,))),
        names.key(Tried((1,))),
        names.key(Tried((2,))),
        names.key(Tried((0,), trained=True)),
        replace(names, training=(1, 3)).key(Tried((0,), trained=True)),
        replace(names, start="other").key(Tried((0,))),
        replace(names, rest="float16").key(Tried((0,))),
        replace(names, fits=other_fit).key(Tried((0,))),
    ]
    assert len(set(keys)) == len(keys)
    # How training would go is nothing to a model without it.
    assert replace(names, training=()).key(Tried((0,))) == keys[0]
    assert identity().key(Tried((0,))) == keys[0]
