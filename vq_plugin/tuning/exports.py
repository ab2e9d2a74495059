"""The result of a search as files of other runtimes: what they can hold, and what they answer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vq_plugin.arguments import brief
from vq_plugin.calibration import Calibration
from vq_plugin.calibration.model_calls import Call, calls, pieces
from vq_plugin.codebook import CodebookWeight
from vq_plugin.export.coreml import decoded_share
from vq_plugin.export.targets import TARGETS
from vq_plugin.factors import Factored
from vq_plugin.nn.slots import shown
from vq_plugin.replace import assemble
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import Scheme
from vq_plugin.schemes.geometry import torch_code_dtype
from vq_plugin.select import Form, slots_by_name
from vq_plugin.tuning.agreement import Agreement, agreement_of
from vq_plugin.tuning.result import Export

_log = logging.getLogger(__name__)

Space = Mapping[str, tuple[Form | None, ...]]


class ExportError(ValueError):
    """A model cannot be exported to a target; the message says why and what to do."""


def check_export(targets: Sequence[str], calibration: object, folder: object) -> None:
    """``ExportError`` for targets of :func:`check_targets`, or without what they need."""
    if isinstance(targets, str) or not isinstance(targets, Sequence):
        raise ExportError(f"export is a list of targets, such as ['onnx']; got {brief(targets)}")
    check_targets(targets)
    if targets and folder is None:
        raise ExportError("export needs a folder for its files: folder=")
    if targets and calibration is None:
        raise ExportError("export needs calibration data: its first batch is the example")


def check_targets(targets: Sequence[str]) -> None:
    """``ExportError`` for a target that does not exist, is given twice, or lacks a package.

    Example:
        >>> check_targets(["onnx", "onnx"])
        Traceback (most recent call last):
        vq_plugin.tuning.exports.ExportError: target 'onnx' is given twice
    """
    for at, name in enumerate(targets):
        if name not in TARGETS:
            raise ExportError(f"no target {name!r}: there are {', '.join(TARGETS)}")
        if name in targets[:at]:
            raise ExportError(f"target {name!r} is given twice")
        try:
            TARGETS[name].check()
        except (ImportError, RuntimeError) as error:
            raise ExportError(f"{name}: {error}") from error


def expressible(
    model: nn.Module, space: Space, targets: Sequence[str]
) -> dict[str, tuple[Form | None, ...]]:
    """The candidates of every layer that all targets can hold.

    What is left out is a line of the log; ``ExportError`` names a layer that has nothing left, and
    what to use.
    """
    slots = slots_by_name(model, space)
    found = {}
    for layer, schemes in space.items():
        shape = slots[layer].view.shape
        refused = {
            scheme: f"{scheme} in {name}: {reason}"
            for name in targets
            for scheme in schemes
            if scheme and (reason := TARGETS[name].refusal(_scheme_of(scheme), shape))
        }
        found[layer] = tuple(scheme for scheme in schemes if scheme not in refused)
        if not found[layer]:
            reasons = "; ".join(refused.values())
            raise ExportError(f"layer {shown(layer)} has no scheme that can be exported: {reasons}")
        if refused:
            left_out = ", ".join(map(str, refused))
            _log.info("layer %s: exports cannot hold %s", shown(layer), left_out)
    return found


def rehearse(
    targets: Sequence[str], model: nn.Module, space: Space, calibration: Calibration | None
) -> None:
    """Exports a model with made-up codes: what fails, fails before the search.

    ``ExportError`` names the target, and the layer if the target does.
    """
    if not targets:
        return
    assert calibration is not None
    weights: dict[str, CodebookWeight] = {}
    for layer, slot in slots_by_name(model, space).items():
        form = next((form for form in space[layer] if form is not None), None)
        if form is not None:
            # Factors are layers like others, with codes of the same scheme.
            scheme = _scheme_of(form)
            weights[layer] = _made_up(scheme, slot.view.shape, slot.value.dtype, len(weights))
    small = assemble(model, weights)
    sample = calls(small, calibration)
    with tempfile.TemporaryDirectory() as folder:
        for name in targets:
            _log.info("try to export to %s", name)
            _write(name, small, Path(folder), sample)


def export_to(
    targets: Sequence[str], small: nn.Module, folder: Path, calibration: Calibration | None
) -> tuple[Export, ...]:
    """Writes a compressed model for every target, and compares what the files answer.

    Args:
        targets: Names in :data:`vq_plugin.export.targets.TARGETS`.
        small: The model.
        folder: Gets the files.
        calibration: The first batch is the example; files run on at most 256 samples.

    Raises:
        ExportError: If a target cannot express the model.
    """
    if not targets:
        return ()
    assert calibration is not None
    sample, original = calls(small, calibration), Agreement(small, calibration)
    found = []
    for name in targets:
        _log.info("export to %s", name)
        path = _write(name, small, folder, sample)
        files = [each for each in path.rglob("*") if each.is_file()] or [path]
        nbytes = sum(each.stat().st_size for each in files)
        found.append(Export(name, path.name, nbytes, *_checked(name, small, path, original)))
    return tuple(found)


def _checked(
    name: str, small: nn.Module, path: Path, original: Agreement
) -> tuple[float | None, float | None, str]:
    """Agreement, error, and how they were found."""
    target = TARGETS[name]
    if target.load is None:
        count, same = decoded_share(small, path)
        return same / count, None, f"{same} of {count} weights bit for bit; not run: needs macOS"
    running = target.load(path)
    other = OneByOne(running) if target.one_size else running
    pairs = original.outputs(other)
    how = f"{original.samples} samples, {running.runtime}"
    return agreement_of(pairs), _error(pairs), how


class OneByOne(nn.Module):
    """A module that takes one sample, given batches."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The outputs of all samples, one after the other."""
        each = [self.inner(*one[0], **one[1]) for one, *_ in pieces((args, kwargs), 1)]
        return [torch.cat(outputs) for outputs in zip(*each, strict=True)]


def _write(name: str, small: nn.Module, folder: Path, sample: Sequence[Call]) -> Path:
    target = TARGETS[name]
    if not sample:
        raise ExportError("the calibration data is empty: its first batch is the example")
    args, kwargs = next(pieces(sample[0], 1))[0] if target.one_size else sample[0]
    if args and kwargs:
        raise ExportError(
            f"{name}: the model is called with positional and keyword arguments, and an example is "
            "one of them: give calibration batches that are tuples or mappings"
        )
    path = folder / target.file
    try:
        target.write(small, path, kwargs or args)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"{name}: {error}") from error
    return path


def _scheme_of(form: Form) -> Scheme:
    return form.scheme if isinstance(form, Factored) else form


def _made_up(
    scheme: Scheme, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> CodebookWeight:
    """A weight of random codes and centers, which takes no fit."""
    cut, random = scheme.geometry(shape), torch.Generator().manual_seed(seed)
    centers = torch.randn(cut.codebook_shape, generator=random) / cut.length**0.5
    codes = torch.randint(cut.k, cut.code_shape, generator=random)
    return CodebookWeight(
        codes=codes.to(torch_code_dtype(cut.k)),
        codebooks=round_centers(centers, scheme.codebook_dtype),
        scale=torch.ones(cut.rows, dtype=cut.torch_codebook_dtype) if cut.scaled else None,
        scheme=scheme,
        shape=shape,
        dtype=dtype,
    )


def _error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """The largest difference in any pair, over the root mean square of what is expected."""
    each = [
        float((found - expected).abs().max() / expected.square().mean().sqrt())
        for expected, found in pairs
    ]
    return max(each, default=None)
