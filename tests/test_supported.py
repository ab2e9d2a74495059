"""The page of what is supported: made from the registries, and true."""

import math
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.supported import PAGE, page, shipped, table
from vq_plugin.hosting.plan import plans
from vq_plugin.nn import coded_weights
from vq_plugin.torch_ao.backend import LAYERS

STEPS, BATCH = torch.randn(3, 2, 8), torch.randn(2, 8)
MODULES: dict[type[nn.Module], tuple[nn.Module, tuple[Tensor, ...]]] = {
    nn.Linear: (nn.Linear(8, 40), (BATCH,)),
    nn.Conv1d: (nn.Conv1d(8, 40, 2), (STEPS.permute(1, 2, 0),)),
    nn.Conv2d: (nn.Conv2d(8, 40, 2), (torch.randn(2, 8, 4, 4),)),
    nn.Conv3d: (nn.Conv3d(8, 40, 2), (torch.randn(2, 8, 4, 4, 4),)),
    nn.Embedding: (nn.Embedding(40, 8), (torch.tensor([1, 30]),)),
    nn.EmbeddingBag: (nn.EmbeddingBag(40, 8), (torch.tensor([[1, 30]]),)),
    nn.Bilinear: (nn.Bilinear(8, 8, 10), (BATCH, BATCH)),
    nn.ConvTranspose1d: (nn.ConvTranspose1d(8, 40, 2), (STEPS.permute(1, 2, 0),)),
    nn.ConvTranspose2d: (nn.ConvTranspose2d(8, 40, 2), (torch.randn(2, 8, 4, 4),)),
    nn.ConvTranspose3d: (nn.ConvTranspose3d(8, 40, 2), (torch.randn(2, 8, 4, 4, 4),)),
    nn.LSTM: (nn.LSTM(8, 16, proj_size=8), (STEPS,)),
    nn.GRU: (nn.GRU(8, 16), (STEPS,)),
    nn.RNN: (nn.RNN(8, 16), (STEPS,)),
    nn.LSTMCell: (nn.LSTMCell(8, 16), (BATCH,)),
    nn.GRUCell: (nn.GRUCell(8, 16), (BATCH,)),
    nn.RNNCell: (nn.RNNCell(8, 16), (BATCH,)),
    nn.MultiheadAttention: (nn.MultiheadAttention(8, 2), (STEPS, STEPS, STEPS)),
}


def first(output: object) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0]  # type: ignore[index]
    return output


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert table() in text
    assert page(text) == text, "run python -m integration.supported"


def test_every_layer_of_torch_is_tried_here() -> None:
    assert {owner for owner in shipped() if isinstance(owner, type)} == MODULES.keys()


@pytest.mark.parametrize("owner", MODULES, ids=lambda owner: owner.__name__)
def test_exported_programs_hold_codes(owner: type[nn.Module]) -> None:
    module, inputs = MODULES[owner]
    # A bare layer would lose its name.
    small = vq.compress(nn.ModuleList([module]), vq.KM(k=4)).eval()[0]
    program = torch.export.export(small, inputs, strict=False)
    torch.testing.assert_close(first(program.module()(*inputs)), first(small(*inputs)))
    floats = [value for value in program.state_dict.values() if value.is_floating_point()]
    floats += [value for value in program.constants.values() if value.is_floating_point()]
    smallest = min(math.prod(coded.weight_shape) for coded in coded_weights(small).values())
    assert all(value.numel() < smallest for value in floats)


@pytest.mark.parametrize("owner", MODULES, ids=lambda owner: owner.__name__)
def test_layers_that_the_page_gives_to_torch_ao(owner: type[nn.Module]) -> None:
    model = nn.Sequential(MODULES[owner][0])
    if owner in LAYERS:
        assert list(plans(model, vq.KM(k=4), seed=0)) == ["0"]
    else:
        with pytest.raises(ValueError, match="no codebook layer can replace"):
            plans(model, vq.KM(k=4), seed=0)


@pytest.mark.skipif(find_spec("neural_compressor") is None, reason="INC is not installed")
@pytest.mark.parametrize("owner", MODULES, ids=lambda owner: owner.__name__)
def test_inc_takes_every_layer(owner: type[nn.Module]) -> None:
    from neural_compressor.torch.quantization import quantize

    from vq_plugin.inc import KMConfig

    model = nn.Sequential(MODULES[owner][0])
    wanted = coded_weights(vq.compress(model, vq.KM(k=4)))
    coded = coded_weights(quantize(model, KMConfig(k=4), inplace=False))
    assert coded.keys() == wanted.keys() != set()
