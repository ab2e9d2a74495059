"""Makes the table of docs/supported.md anew, from the registries.

python -m integration.supported
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from vq_plugin.nn import (
    CodebookConv1d,
    CodebookConv2d,
    CodebookConv3d,
    CodebookEmbedding,
    CodebookLayer,
    CodebookLinear,
    SlotKind,
    registered_slots,
)
from vq_plugin.torch_ao.backend import LAYERS

PAGE = Path(__file__).parents[1] / "docs" / "supported.md"
BLOCK = re.compile(r"(?<=<!-- layers -->\n).*?(?=<!-- end layers -->)", re.DOTALL)

HEADER = (
    "layer",
    "weights",
    "held by",
    "calibrated by",
    "kernel",
    "torch.ao",
    "INC",
    "torch.export",
    "ONNX",
    "Core ML",
)
# A new codebook layer has to be given its line here.
_KERNELS: dict[type[CodebookLayer] | None, str] = {
    CodebookLinear: "runs on codes",
    CodebookConv1d: "1x1 on codes, else decodes",
    CodebookConv2d: "1x1 on codes, else decodes",
    CodebookConv3d: "1x1 on codes, else decodes",
    CodebookEmbedding: "decodes the rows asked for",
    None: "decodes",
}
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
# Tried by conversion. Of others coremltools 9 knows no such layer, or reorders their weights.
_PALETTES: dict[object, str] = {
    **dict.fromkeys((nn.Linear, nn.Embedding, nn.MultiheadAttention), "palettes"),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "palettes"),
}


def shipped() -> dict[type[nn.Module] | str, list[SlotKind]]:
    """The kinds of slots of torch and transformers, as ``nn/shipped.py`` registers them."""
    return {
        owner: kinds
        for owner, kinds in registered_slots().items()
        if (owner if isinstance(owner, str) else owner.__module__).startswith(
            ("torch.", "transformers.")
        )
    }


def table() -> str:
    """The table as Markdown, one row for each layer and whatever holds its weights."""
    rows = []
    for owner, kinds in shipped().items():
        by_holder: dict[tuple[type[CodebookLayer] | None, str], list[str]] = {}
        for kind in kinds:
            by_holder.setdefault((kind.layer, _calibration(kind)), []).append(kind.parameter)
        rows += [
            (
                _code(owner if isinstance(owner, str) else f"nn.{owner.__name__}"),
                ", ".join(_code(name.removeprefix("re:")) for name in names),
                "a parametrization" if layer is None else _code(layer.__name__),
                calibration,
                # Attention reads the weight of its projection, and does not call it.
                _kernel(owner, names, layer),
                "yes" if owner in LAYERS else "no",
                "yes",
                "codes",
                "codes",
                _PALETTES.get(owner, "no"),
            )
            for (layer, calibration), names in by_holder.items()
        ]
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _kernel(owner: object, names: list[str], layer: type[CodebookLayer] | None) -> str:
    if owner in _RECURRENT and any("_hh_" in name for name in names):
        return "large ones run on codes, else decodes"
    return _KERNELS[layer if layer and layer.float_type is owner else None]


def _calibration(kind: SlotKind) -> str:
    if kind.looks_up:
        return "how often rows are looked up"
    return "its weight alone" if kind.inputs is None else "its inputs"


def _code(text: str) -> str:
    # A bar would end the cell.
    return f"`{text}`".replace("|", r"\|")


def page(text: str) -> str:
    """The page with the table made anew."""
    return BLOCK.sub(lambda _: table(), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
