"""Random operands of the operators."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass
class Operands:
    input: Tensor
    codes: Tensor
    codebooks: Tensor
    scale: Tensor | None
    bias: Tensor | None
    settings: dict[str, Any]

    @property
    def packs(self) -> bool:
        group = self.settings.get("group")
        return self.codebooks.shape[3] <= 16 and (group is None or group % 16 == 0)


@st.composite
def operands(draw: st.DrawFn) -> Operands:
    scalar = draw(st.booleans())
    k = draw(st.sampled_from([1, 2, 3, 15, 16, 17, 100, 256]))
    dim = 1 if scalar else draw(st.integers(1, 13))
    stages = 1 if scalar else draw(st.integers(1, 3))
    along_out = not scalar and draw(st.booleans())
    group = draw(st.sampled_from([None, 16, 5])) if scalar else None
    inputs, outputs = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    batch = draw(st.lists(st.integers(0, 9), max_size=2))
    rows, length = (inputs, outputs) if along_out else (outputs, inputs)
    subspaces = -(-length // dim)
    books = 1 if scalar or draw(st.booleans()) else subspaces
    groups = -(-rows // group) if group else 1

    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    input, codebooks = normal(*batch, inputs), normal(stages, groups, books, k, dim)
    if draw(st.booleans()):
        input = normal(*batch, 2 * inputs + 1)[..., 1 : 2 * inputs + 1 : 2]
    if draw(st.booleans()):
        codebooks = codebooks.transpose(3, 4).contiguous().transpose(3, 4)
    return Operands(
        input,
        torch.randint(k, (stages, rows, subspaces), generator=generator).to(torch.uint8),
        codebooks,
        normal(rows).abs() + 0.5 if draw(st.booleans()) else None,
        normal(outputs) if draw(st.booleans()) else None,
        {
            "out_features": outputs,
            "along_out": along_out,
            "group": group,
            "codebook_dtype": draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        },
    )
