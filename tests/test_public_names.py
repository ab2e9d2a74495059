"""The names, settings and defaults that users rely on."""

import dataclasses
import inspect
import tomllib
import typing
from pathlib import Path

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin import cli

NAMES = {
    "KM",
    "PQ",
    "PRESETS",
    "RQ",
    "SVD",
    "Basis",
    "Binary",
    "CheckpointError",
    "CodebookWeight",
    "Factored",
    "Geometry",
    "Learning",
    "LossBudget",
    "Preset",
    "Recovery",
    "Scheme",
    "Signs",
    "Summary",
    "Uniform",
    "TuneResult",
    "View",
    "Work",
    "choose_schemes",
    "compensate",
    "compress",
    "count_work",
    "executorch_library",
    "export_aoti",
    "export_coreml",
    "export_executorch",
    "export_onnx",
    "factorize",
    "finetune",
    "fold_batch_norms",
    "learn",
    "load",
    "merge_neurons",
    "onnxruntime_library",
    "open_file",
    "parse_scheme",
    "prune",
    "prune_factors",
    "quantize_weight",
    "reestimate_norms",
    "register_scheme",
    "register_slot",
    "remove_empty_channels",
    "save",
    "scheme_from_dict",
    "set_memory",
    "set_precision",
    "summary",
    "tune",
}


def parameters(function: typing.Callable[..., object]) -> dict[str, object]:
    """Parameters and their defaults; ``...`` where there is none."""
    return {
        name: ... if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
    }


def positional(function: typing.Callable[..., object]) -> list[str]:
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]


def fields(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def test_names() -> None:
    assert set(vq.__all__) == NAMES
    assert all(hasattr(vq, name) for name in NAMES)


def test_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert vq.__version__ == project["project"]["version"]


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (vq.KM, {"k": 16, "group": None, "keep_zeros": False}),
        (vq.PQ, {"k": 16, "dim": 4, "axis": "in", "codebooks": "subspace"}),
        (vq.RQ, {"k": 256, "stages": 2, "dim": None, "axis": "in", "codebooks": "subspace"}),
        (vq.Binary, {}),
        (vq.Signs, {"levels": 4, "block": 4}),
    ],
)
def test_schemes(cls: type[vq.Scheme], settings: dict[str, object]) -> None:
    named = {"layout": "flat"} if cls in (vq.PQ, vq.RQ) else {}
    assert parameters(cls) == {**settings, "codebook_dtype": "float16", "scale": None, **named}
    assert positional(cls) == list(settings)
    scheme = cls()
    assert vq.parse_scheme(str(scheme)) == scheme == vq.scheme_from_dict(scheme.to_dict())
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheme.scale = "row"  # type: ignore[misc]


def test_functions() -> None:
    assert parameters(vq.quantize_weight) == {
        "weight": ...,
        "scheme": ...,
        "importance": None,
        "seed": 0,
        "moments": None,
    }
    assert positional(vq.quantize_weight) == ["weight", "scheme", "importance", "seed"]
    assert parameters(vq.compress) == {
        "model": ...,
        "schemes": ...,
        "calibration": None,
        "seed": 0,
        "fold": False,
    }
    assert parameters(vq.factorize) == {"model": ..., "factors": ..., "calibration": None}
    assert parameters(vq.merge_neurons) == {
        "model": ...,
        "keep": ...,
        "calibration": None,
        "seed": 0,
    }
    assert parameters(vq.remove_empty_channels) == {"model": ...}
    assert parameters(vq.SVD) == {"rank": None, "energy": None, "rate": None, "split": "channel"}
    assert parameters(vq.Basis) == {"d": ..., "shared": False}
    assert parameters(vq.summary) == {"model": ..., "rest": None}
    assert parameters(vq.save) == {"model": ..., "path": ..., "rest": None}
    assert parameters(vq.load) == {"path": ..., "model": ..., "part": ""}
    assert parameters(vq.open_file) == {"path": ...}
    assert parameters(vq.learn) == {
        "model": ...,
        "loader": ...,
        "rate_weight": None,
        "target_rate": None,
        "target_bytes": None,
        "budget": None,
        "evaluate": None,
        "teacher": None,
        "loss": None,
        "layers": ("*",),
        "schemes": None,
        "epochs": 8,
        "lr": 0.002,
        "seed": 0,
        "rest": "float16",
        "checkpoint": None,
        "callback": None,
    }
    assert positional(vq.learn) == ["model", "loader"]
    assert parameters(vq.parse_scheme) == {"text": ...}


def test_tune() -> None:
    assert parameters(vq.tune) == {
        "model": ...,
        "evaluate": ...,
        "budget": None,
        "calibration": None,
        "candidates": None,
        "test": None,
        "max_trials": 25,
        "timeout": None,
        "seed": 0,
        "workers": 1,
        "backend": "loky",
        "start": None,
        "recovery": None,
        "rest": None,
        "host": None,
        "folder": None,
        "export": (),
        "recipe": None,
        "callback": None,
    }
    assert positional(vq.tune) == ["model", "evaluate", "budget", "calibration"]
    assert parameters(vq.Recovery) == {
        "loader": ...,
        "epochs": 1,
        "lr": 0.03,
        "loss": None,
        "max_trials": 4,
    }
    assert parameters(vq.Learning) == {
        "loader": ...,
        "epochs": 8,
        "lr": 0.002,
        "loss": None,
        "max_trials": 3,
        "schemes": None,
    }
    assert parameters(vq.LossBudget) == {
        "relative": None,
        "absolute": None,
        "higher_is_better": True,
        "confidence": None,
        "min_agreement": 0.2,
        "margin": 0.0,
    }
    assert fields(vq.TuneResult) >= {
        "model",
        "schemes",
        "passed",
        "baseline",
        "score",
        "loss",
        "interval",
        "rate",
        "trials",
        "layers",
        "frontier",
        "cut",
        "test_baseline",
        "test_score",
        "test_loss",
        "stopped",
    }


def test_codebook_weight() -> None:
    weight = vq.quantize_weight(torch.randn(8, 8), vq.KM(k=4))
    assert fields(vq.CodebookWeight) >= {"codes", "codebooks", "scale", "scheme", "shape"}
    assert weight.decode().shape == (8, 8)
    assert isinstance(weight.nbytes, int)
    assert isinstance(weight.bits_per_weight, float)


def test_summary() -> None:
    sizes = vq.summary(vq.compress(nn.Linear(8, 8), vq.KM(k=4)))
    assert len(sizes.rows) == 1
    assert isinstance(sizes.nbytes, int)
    assert isinstance(sizes.layer_rate, float)
    assert "layer rate" in str(sizes)


def test_file_errors_are_value_errors() -> None:
    assert issubclass(vq.CheckpointError, ValueError)


def test_torchao() -> None:
    torchao = pytest.importorskip("vq_plugin.torchao")
    names = {"PT2E", "VQQuantizer", "VQWeightOnlyConfig", "check_converted", "fused_float"}
    assert set(torchao.__all__) == names | {"commitment_loss"}
    assert parameters(torchao.commitment_loss) == {"prepared": ..., "beta": 0.001}
    assert parameters(torchao.VQWeightOnlyConfig) == {"scheme": ..., "step": None, "seed": 0}
    assert parameters(torchao.VQQuantizer) == {"schemes": ..., "is_qat": False, "seed": 0}
    assert list(parameters(torchao.check_converted)) == ["converted", "schemes"]


def test_torch_ao() -> None:
    from vq_plugin import torch_ao

    for name in (
        "get_qconfig_mapping",
        "get_backend_config",
        "observe_inputs",
        "check_converted",
    ):
        assert callable(getattr(torch_ao, name))
    assert next(iter(parameters(torch_ao.get_qconfig_mapping))) == "schemes"
    assert parameters(torch_ao.commitment_loss) == {"prepared": ..., "beta": 0.001}


def test_exit_codes() -> None:
    assert (cli.WITHIN_BUDGET, cli.BAD_INPUT, cli.NOT_REACHED) == (0, 2, 3)
