"""The host's calls, as the page docs/torchao.md shows them."""

import pytest

pytest.importorskip("torchao")

import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from vq_plugin.torchao import VQQuantizer, check_converted

# Torch 2.10 and 2.11 show the quantizer of torchao for x86 no layers in other programs.
STRICT = torch.__version__.startswith(("2.10.", "2.11."))


def exported(model: nn.Module, *example: torch.Tensor, strict: bool = False) -> nn.Module:
    """The program of a model, for batches of any size."""
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in example)
    return torch.export.export(model, example, dynamic_shapes=shapes, strict=strict).module()


@pytest.fixture
def convert():
    """Exports, prepares, calibrates, converts and checks a float model."""

    def run(model, schemes, *example, calibration=(), others=(), **settings):
        quantizer = VQQuantizer(schemes, **settings)
        if others:
            from torchao.quantization.pt2e.quantizer import ComposableQuantizer

            quantizer = ComposableQuantizer([quantizer, *others])
        program = exported(model, *example, strict=STRICT and bool(others))
        prepared = prepare_pt2e(program, quantizer)
        with torch.no_grad():
            for batch in calibration:
                prepared(batch)
        return check_converted(convert_pt2e(prepared), schemes)

    return run


class Words(nn.Module):
    """Embedding, convolution with batch norm, a layer called twice, and a head of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(48, 32, padding_idx=0)
        self.mix = nn.Conv1d(32, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(32)
        self.again = nn.Linear(32, 32)
        self.head = nn.Linear(32, 48, bias=False)
        self.head.weight = self.words.weight
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed = self.norm(self.mix(self.words(tokens).mT)).relu().mean(2)
        return self.head(self.again(self.again(mixed).relu()))

    def folded(self) -> nn.Module:
        """The same model with the batch norm in the convolution."""
        folded = Words().eval()
        folded.load_state_dict(self.state_dict())
        folded.mix = nn.utils.fuse_conv_bn_eval(folded.mix, folded.norm)
        folded.norm = nn.Identity()
        return folded


@pytest.fixture
def words() -> Words:
    torch.manual_seed(0)
    return Words().eval()


@pytest.fixture
def tokens() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(48, (6, 7), generator=generator) for _ in range(4)]
