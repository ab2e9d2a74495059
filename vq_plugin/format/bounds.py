"""How much a file may stand for, by its length: what is beyond is refused before work is done.

A few bytes of a header can ask for any number of values: equal codes take no bytes, the codes of
pruned layers next to none, and sub-vectors, stages and names multiply them.
"""

from __future__ import annotations

import math
import zlib

from vq_plugin.format.header import Header

# Values for each byte of a file: 0.008 bits for each, where the codes of layers with 99.9 % zeros
# take 0.012; and so many of any file, however short.
_FOR_EACH_BYTE, _ANYWAY = 1 << 10, 1 << 22
# Stages of codes that may take no bytes.
_MOST_STAGES = 16
# A header is so many times as long as it is compressed, at most, and each of its names takes more
# than a byte then: a few bytes cannot fill a machine.
MOST_EXPANDED = 64


def most_values(size: int) -> int:
    """How many values a file of ``size`` bytes may stand for where no model wants them."""
    return _ANYWAY + _FOR_EACH_BYTE * size


def may_be_coded(codes: int, weights: int) -> bool:
    """Whether a reader believes that coded bytes stand for so many codes of so many weights."""
    return codes <= _MOST_STAGES * weights


def check_values(header: Header, size: int) -> int:
    """How many values the weights of a file stand for, under all of their names and in all stages.

    ``ValueError`` for a weight with more than its shape and the file's length allow, and for more
    ties of other tensors than that.
    """
    values: dict[str, int] = {}
    for name, entry in header.layers.items():
        values[name] = math.prod(entry.codes) * header.books(name)[4]
        if values[name] > max(_MOST_STAGES * math.prod(entry.shape), most_values(size)):
            raise ValueError(
                f"layer {name!r}: codes of shape {entry.codes} do not fit a weight of {entry.shape}"
            )
    weights, others = sum(values.values()), 0
    for to in header.aliases.values():
        if to in values:
            weights += values[to]
        else:
            others += math.prod(header.tensors[to].shape)
    if others > most_values(size):
        raise ValueError(f"its ties stand for {others} values in a file of {size} bytes")
    return weights


def inflate(packed: bytes, wbits: int, dictionary: bytes = b"") -> bytes:
    """What zlib made smaller; ``ValueError`` if it is damaged, or beyond ``MOST_EXPANDED``."""
    inflater = zlib.decompressobj(wbits, dictionary)
    try:
        text = inflater.decompress(packed, MOST_EXPANDED * len(packed))
    except zlib.error as error:
        raise ValueError(f"the header is damaged ({error})") from error
    if not inflater.eof or inflater.unused_data:
        raise ValueError("the header is damaged: it does not end where it should")
    return text
