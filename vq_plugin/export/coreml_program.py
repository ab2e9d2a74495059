"""Programs of torch as programs of Core ML, with palettes in the place of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

from vq_plugin.coding.bits import pack
from vq_plugin.export.extras import quiet
from vq_plugin.export.palettes import Palette
from vq_plugin.export.plain import PlainModel

# They would move weights off their tables.
_MOVING = {"common::fuse_conv_batchnorm", "common::fuse_conv_scale", "common::fuse_batchnorm_pad"}


def save(
    program: torch.export.ExportedProgram,
    plain: PlainModel,
    palettes: Mapping[str, Palette],
    target: str,
    path: Path,
) -> None:
    """Writes the package of a plain model's program.

    ``ValueError`` if Core ML cannot express it, or has changed a weight before it is stored.
    """
    pipeline = ct.PassPipeline()
    pipeline.remove_passes(_MOVING & set(pipeline.passes))
    settings = {
        "minimum_deployment_target": getattr(ct.target, target),
        "compute_precision": ct.precision.FLOAT16,
        "skip_model_load": True,
    }
    with quiet():
        try:
            built = ct.convert(
                program.run_decompositions({}),
                convert_to="milinternal",
                pass_pipeline=pipeline,
                **settings,
            )
        except (NotImplementedError, ValueError, RuntimeError) as error:
            raise ValueError(f"Core ML cannot express the model: {error}") from error
        # What says where in the source each operation is from, and has to be there.
        built.functions["main"]._essential_scope_sources.clear()
        missing = _replaced(built, plain, palettes, target)
        if missing:
            raise ValueError(
                f"layer {', '.join(missing)}: coremltools has put the weight in another order, or "
                "together with others, so that it is no palette: leave it float"
            )
        del settings["compute_precision"]
        package = ct.convert(
            built, convert_to="mlprogram", pass_pipeline=ct.PassPipeline.EMPTY, **settings
        )
        package.save(str(path))
    (written,) = path.rglob("*.mlmodel")
    # Maps are otherwise in an order that changes from run to run.
    written.write_bytes(package.get_spec().SerializeToString(deterministic=True))


def constants(path: Path) -> list[NDArray[np.float16]]:
    """The palettes of a package on the disk, decoded."""
    with quiet():
        package = ct.models.MLModel(str(path), skip_model_load=True)
        spec = package.get_spec()
        program = load(
            spec,
            specification_version=spec.specificationVersion,
            file_weights_dir=package.weights_dir,
        )
        return [
            each.materialized_val_inference()
            for each in program.functions["main"].operations
            if each.op_type == "constexpr_lut_to_dense"
        ]


def _replaced(
    built: Any, plain: PlainModel, palettes: Mapping[str, Palette], target: str
) -> list[str]:
    """Puts palettes in the places of constants with their values; gives layers that have none."""
    values = {name: plain.model.get_parameter(name).detach().half().numpy() for name in palettes}
    places: set[str] = set()
    block = built.functions["main"]
    for constant in list(block.operations):
        if constant.op_type != "const" or not isinstance(constant.outputs[0].val, np.ndarray):
            continue
        value = constant.outputs[0].val
        names = [name for name, weight in values.items() if _same(value, weight)]
        if not names:
            continue
        chosen = palettes[names[0]]
        with block:
            decoded = _operator(chosen, value.shape, constant, target)
        assert _same(decoded.op.materialized_val_inference(), values[names[0]])
        block.replace_uses_of_var_after_op(
            anchor_op=decoded.op, old_var=constant.outputs[0], new_var=decoded
        )
        block.remove_ops([constant])
        places.update(names)
    return [plain.decoded[name].layer for name in palettes if name not in places]


def _operator(chosen: Palette, shape: tuple[int, ...], constant: Any, target: str) -> Any:
    name = f"{constant.name}_palette"
    if target != "iOS18":
        return Builder.constexpr_lut_to_dense(
            indices=pack(chosen.indices, 1 << chosen.bits),
            lut=chosen.tables.reshape(-1),
            shape=np.array(shape, np.uint32),
            before_op=constant,
            name=name,
        )
    kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{chosen.bits}"))
    axis = {} if chosen.tables.shape[-1] == 1 else {"vector_axis": np.int32(chosen.axis)}
    return Builder.constexpr_lut_to_dense(
        indices=chosen.indices.astype(kind),
        lut=chosen.tables,
        before_op=constant,
        name=name,
        **axis,
    )


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays have the same bits."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.array_equal(one.view(np.uint16), other.view(np.uint16))
    )
