"""The slots that are shipped."""

from __future__ import annotations

from torch import Tensor, nn

from vq_plugin.nn import inputs
from vq_plugin.nn.conv import CodebookConv1d, CodebookConv2d, CodebookConv3d
from vq_plugin.nn.embedding import CodebookEmbedding
from vq_plugin.nn.linear import CodebookLinear
from vq_plugin.nn.slots import register_slot
from vq_plugin.nn.view import View, stacked_matrices, transposed_convolution


def _transposed(module: nn.Module, parameter: Tensor) -> View:
    return transposed_convolution(parameter, _groups(module))


def _groups(module: nn.Module) -> int:
    return int(module.groups)  # type: ignore[arg-type]


register_slot(nn.Linear, "weight", inputs=inputs.multiplied, layer=CodebookLinear)
for _layer in (CodebookConv1d, CodebookConv2d, CodebookConv3d):
    register_slot(
        _layer.float_type,
        "weight",
        inputs=inputs.convolved,
        squares=inputs.channels,
        groups=_groups,
        layer=_layer,
    )
register_slot(nn.Embedding, "weight", looks_up=True, layer=CodebookEmbedding)
register_slot(nn.EmbeddingBag, "weight", looks_up=True)
register_slot(nn.Bilinear, "weight", inputs=inputs.paired)
for _upsampling in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    register_slot(
        _upsampling, "weight", view=_transposed, inputs=inputs.transposed_convolved, groups=_groups
    )
for _recurrent in (nn.LSTM, nn.GRU, nn.RNN):
    register_slot(
        _recurrent, r"re:weight_ih_l\d+(_reverse)?", inputs=inputs.layer_input, recurs=True
    )
    register_slot(
        _recurrent, r"re:weight_hh_l\d+(_reverse)?", inputs=inputs.layer_hidden, recurs=True
    )
# The projection of its hidden state, which it does not show.
register_slot(nn.LSTM, r"re:weight_hr_l\d+(_reverse)?")
for _cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
    register_slot(_cell, "weight_ih", inputs=inputs.multiplied, recurs=True)
    register_slot(_cell, "weight_hh", inputs=inputs.cell_hidden, recurs=True)
register_slot(nn.MultiheadAttention, "in_proj_weight", inputs=inputs.projected, groups=lambda _: 3)
for _projection in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
    register_slot(nn.MultiheadAttention, _projection, inputs=inputs.projected)
register_slot(
    nn.MultiheadAttention, "out_proj.weight", inputs=inputs.attended, layer=CodebookLinear
)
register_slot("transformers.pytorch_utils.Conv1D", "weight", view=(1, 0), inputs=inputs.multiplied)
# Fused experts: (experts, ..., ...).
for _experts in ("gate_up_proj", "down_proj"):
    register_slot(
        "transformers.models.*Experts", _experts, view=lambda _, stack: stacked_matrices(stack)
    )
