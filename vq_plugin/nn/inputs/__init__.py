"""Which inputs meet a weight while its module runs, as rows of the matrix product.

A function ``(module, arguments, parameter)`` yields pieces of float32,
``(groups, samples, inputs)``: ``inputs`` numbers meet every row of the weight, and the rows of a
weight are split evenly among ``groups``. ``arguments`` are those of the module's ``forward``, by
name, and ``parameter`` is the name of the weight.
"""

from vq_plugin.nn.inputs.attention import attended, projected
from vq_plugin.nn.inputs.convolution import channels, convolved, transposed_convolved
from vq_plugin.nn.inputs.matrix import Arguments, first_argument, multiplied, paired
from vq_plugin.nn.inputs.recurrent import cell_hidden, layer_hidden, layer_input

__all__ = [
    "Arguments",
    "attended",
    "cell_hidden",
    "channels",
    "convolved",
    "first_argument",
    "layer_hidden",
    "layer_input",
    "multiplied",
    "paired",
    "projected",
    "transposed_convolved",
]
