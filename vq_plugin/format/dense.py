"""The dense layout: a short header before everything else, and one checksum for all of it.

Where a file is short, names, shapes and a checksum for each tensor are a large part of it, and so
are biases of a byte. See ``docs/format.md``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vq_plugin.coding.numbers import decode_numbers, encode_numbers
from vq_plugin.format.bounds import MOST_EXPANDED, inflate, most_values
from vq_plugin.format.header import Header, Stored
from vq_plugin.format.text import header_json, parse_header

# Of the text, in which json writes no such byte.
_END = b"\0"
# What headers are made of, which the compressor may refer to: part of the format, not to change.
DICTIONARY = (
    b'weight.scale":["float16",[embeddings.position_ids":["int64",[encoder.decoder.transformer.h.'
    b"in_proj_weight.out_proj.self_attn.q_proj.k_proj.v_proj.mlp.attention.self.query.key.value."
    b"output.dense.intermediate.LayerNorm.model.backbone.block.stem.head.downsample.shortcut."
    b'bn1.bn2.bn3.conv3.fc1.fc2.fc3.norm.conv1.conv2.layers.layer1.classifier.features.",split=true'
    b'"view":[[","axis":"channels","axis":"out","group":64,"layout=channels,codebook_dtype=int8,scale='
    b'row,axis=out,codebooks=tensor,group=","dtype":"float16","dtype":"bfloat16"'
    b',"coding":{"along":"previous","bits":16}},"coding":{"along":"stage","bits":4}},"coding":{"along'
    b'":"subspace","bits":16}},"coding":{"along":"row","bits":4}},"coding":null},"coding":{"along":"'
    b'class","bits":12}},"coding":{"along":"layer","bits":8}}},"aliases":{},"factors":{".bias":["'
    b'float32",[.exponents":["int8",[1,1,1],0],"0.bias":["float16",[64],0,"float32"],".weight":["fl'
    b'oat16",[128],0,"float32"],".running_mean":["float16",[256],0,"float32"],".running_var":["float1'
    b'6",[512],0,"float32"],".num_batches_tracked":["int64",[],0],".weight":["int8",[32],0,"float32",-'
    b'6],".bias":["int8",[16],0,"float32",-8],".codes":["uint8",["},"aliases":{},"tensors":{".codebook'
    b's":["float16",[1,1,1,3,1],0],"checksum":{"format":1,"layers":{"0":{"scheme":"rq(k=16,stages=2,dim'
    b'=4)","shape":[":{"scheme":"pq(k=16,dim=4)","shape":[":{"scheme":"km(k=5,keep_zeros=true)","shape"'
    b':[64,64,3,3],"view":null,"axis":"in","group":null,"codes":[1,64,576],"dtype":"float32","coding":'
    b'{"along":"'
)


def is_first(kind: Stored) -> bool:
    """Whether a tensor is compressed with the header: single numbers, such as counts of batches."""
    return not kind.shape


def is_number(kind: Stored) -> bool:
    """Whether a tensor is coded with all others that are whole numbers of a step."""
    return kind.exponent is not None and bool(kind.shape)


def write_dense(
    header: Header, tensors: Mapping[str, tuple[Stored, NDArray[np.uint8]]]
) -> tuple[int, bytes] | None:
    """Bytes of the compressed header, and all bytes; ``None`` where readers would refuse them.

    The tensors are in the order of the header, and their checksums make no difference.
    """
    kinds = {name: kind._replace(checksum=0) for name, (kind, _) in tensors.items()}
    first = b"".join(data.tobytes() for kind, data in tensors.values() if is_first(kind))
    numbers = [data.view(np.int8) for kind, data in tensors.values() if is_number(kind)]
    others = [data for kind, data in tensors.values() if not is_first(kind) and not is_number(kind)]
    coded = encode_numbers(np.concatenate(numbers)) if numbers else np.empty(0, np.uint8)
    body = b"".join([coded.tobytes(), *(data.tobytes() for data in others)])
    ending = _END + first if first else b""
    text = header_json(replace(header, tensors=kinds), (ending, body)).encode() + ending
    deflate = zlib.compressobj(
        9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY
    )
    packed = deflate.compress(text) + deflate.flush()
    names = len(header.layers) + len(header.aliases) + len(header.factors) + len(tensors)
    size = len(packed) + len(body)
    if len(text) > MOST_EXPANDED * len(packed) or names > len(packed):
        return None
    if sum(each.size for each in numbers) > most_values(size):
        return None
    return len(packed), packed + body


class Dense:
    """What a dense file holds.

    Attributes:
        header: Without checksums of its tensors.
    """

    def __init__(self, path: str, data: memoryview, size: int) -> None:
        """``data`` is all that :func:`write_dense` gave, ``size`` the bytes of the short header.

        ``ValueError`` or ``CheckpointError`` where that cannot be.
        """
        raw = inflate(data[:size].tobytes(), -zlib.MAX_WBITS, DICTIONARY)
        text, end, first = raw.partition(_END)
        body = data[size:]
        self.header = parse_header(path, text.decode("ascii"), size, (end + first, body))
        self._known: dict[str, memoryview] = {}
        kinds = self.header.tensors
        if any(kind.checksum for kind in kinds.values()):
            raise ValueError("a dense file has one checksum for all of its tensors")
        own = [name for name, kind in kinds.items() if is_first(kind)]
        end_of_first = self._cut(own, memoryview(first), 0)
        self._numbers = [name for name, kind in kinds.items() if is_number(kind)]
        self._count = sum(kinds[name].nbytes for name in self._numbers)
        others = [n for n, kind in kinds.items() if not is_first(kind) and not is_number(kind)]
        start = len(body) - sum(kinds[name].nbytes for name in others)
        if end_of_first != len(first) or start < 0 or (start and not self._numbers):
            raise ValueError("its tensors do not end where the file does")
        if self._count > most_values(len(data)):
            raise ValueError(f"{self._count} whole numbers in a file of {len(data)} bytes")
        self._coded = body[:start]
        self._cut(others, body, start)

    def raw(self, name: str) -> memoryview:
        """The bytes of a tensor; ``ValueError`` if there are none."""
        if name in self._numbers and name not in self._known:
            coded = np.frombuffer(self._coded, np.uint8)
            self._cut(self._numbers, decode_numbers(coded, self._count).view(np.uint8).data, 0)
        return self._known[name]

    def _cut(self, names: list[str], data: memoryview, start: int) -> int:
        """Takes tensors from bytes, one after the other; where they end."""
        for name in names:
            end = start + self.header.tensors[name].nbytes
            self._known[name] = data[start:end]
            start = end
        return start
