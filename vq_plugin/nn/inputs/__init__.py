"""Which inputs meet a weight while its module runs, as rows of the matrix product.

A function ``(module, arguments, parameter)`` yields pieces of a float dtype,
``(groups, samples, inputs)``, or :class:`Patches` of that shape: ``inputs`` numbers meet every row
of the weight, and the rows of a weight are split evenly among ``groups``. ``arguments`` are those
of the module's ``forward``, by name, and ``parameter`` is the name of the weight.
:func:`read_calls` finds the inputs in a call of a torch function, whatever module makes it.
"""

from vq_plugin.nn.inputs.attention import attended, projected
from vq_plugin.nn.inputs.calls import Call, read_calls
from vq_plugin.nn.inputs.convolution import channels, convolved, transposed_convolved
from vq_plugin.nn.inputs.matrix import (
    Arguments,
    call_arguments,
    first_argument,
    multiplied,
    paired,
)
from vq_plugin.nn.inputs.patches import Patches
from vq_plugin.nn.inputs.recurrent import cell_hidden, layer_hidden, layer_input

__all__ = [
    "Arguments",
    "Call",
    "Patches",
    "attended",
    "call_arguments",
    "cell_hidden",
    "channels",
    "convolved",
    "first_argument",
    "layer_hidden",
    "layer_input",
    "multiplied",
    "paired",
    "projected",
    "read_calls",
    "transposed_convolved",
]
