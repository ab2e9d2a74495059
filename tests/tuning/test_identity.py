"""Names of tensors and of models, and the bytes that no setting changes."""

from dataclasses import replace

import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.tuning.candidates import Fits
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.identity import Identity, Tried, digest
from vq_plugin.tuning.layers import Layer


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


def fits(seed: int) -> Fits:
    torch.manual_seed(seed)
    layer = Layer("0", torch.randn(8, 8), (vq.KM(k=2), vq.KM(k=4), None), 256, 256)
    found = Fits((layer,))
    assert found.fit([(0,), (1,)], Deadline())
    return found


def identity() -> Identity:
    return Identity("start", fits(0), (1, 2), None)


def test_whatever_leads_to_another_model_gives_it_another_name() -> None:
    names = identity()
    keys = [
        names.key(Tried((0,))),
        names.key(Tried((1,))),
        names.key(Tried((2,))),
        names.key(Tried((0,), trained=True)),
        replace(names, training=(1, 3)).key(Tried((0,), trained=True)),
        replace(names, start="other").key(Tried((0,))),
        replace(names, rest="float16").key(Tried((0,))),
        Identity("start", fits(1), (1, 2), None).key(Tried((0,))),
    ]
    assert len(set(keys)) == len(keys)
    # How training would go is nothing to a model without it.
    assert replace(names, training=()).key(Tried((0,))) == keys[0]
    assert identity().key(Tried((0,))) == keys[0]
