"""The same mistake has the same message, whatever function it is made in."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.cli import main
from vq_plugin.torch_ao import observe_inputs

BUDGET = vq.LossBudget(relative=0.5)
Function = Callable[[Any, Any], object]


def model() -> nn.Module:
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8))
    return nn.Sequential(blocks, nn.Linear(8, 4)).eval()


def compensate(model: Any, batches: Any) -> object:
    # A state_dict cannot be compressed to begin with.
    small = vq.compress(model, {"0.0": vq.KM(k=4)})
    return vq.compensate(small, model, batches)


READERS: dict[str, Function] = {
    "compress": lambda model, batches: vq.compress(model, vq.KM(k=4), batches),
    "auto": lambda model, batches: vq.compress(model, "auto", batches),
    "choose_schemes": lambda model, batches: vq.choose_schemes(model, "auto", batches),
    "tune": lambda model, batches: vq.tune(
        model, lambda _: 1.0, BUDGET, batches, candidates=vq.KM(k=4), max_trials=1
    ),
    "compensate": compensate,
    "norms": lambda model, batches: vq.reestimate_norms(
        vq.compress(model, {"1": vq.KM(k=4)}), batches
    ),
}
TRAINERS: dict[str, Function] = {
    "finetune": lambda model, batches: vq.finetune(
        vq.compress(model, vq.KM(k=4)), batches, teacher=model
    ),
    "prune": lambda model, batches: vq.prune(model, batches, 0.5),
}
EVERY = {**READERS, **TRAINERS}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "single", [torch.randn(16, 8), np.ones((16, 8), np.float32), {"input": torch.randn(16, 8)}]
)
def test_a_single_batch_goes_into_a_list(name: str, single: object) -> None:
    with pytest.raises(ValueError, match=r"iterable of batches, got .*: put a single batch into"):
        EVERY[name](model(), single)


@pytest.mark.parametrize("name", EVERY)
def test_a_number_is_no_data(name: str) -> None:
    with pytest.raises(TypeError, match="an iterable of batches, such as a list or a DataLoader"):
        EVERY[name](model(), 512)


@pytest.mark.parametrize("name", EVERY)
def test_numpy_batches_are_to_be_made_tensors(name: str) -> None:
    with pytest.raises(ValueError, match=r"make one of it with torch\.from_numpy"):
        EVERY[name](model(), [np.ones((16, 8), np.float32)] * 3)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("batch", [[[0.5] * 8] * 2, [0.5] * 8, [[[0.5] * 8]]])
def test_numbers_in_lists_are_to_be_made_tensors(name: str, batch: object) -> None:
    with pytest.raises(ValueError, match=r"make one of them with torch\.tensor"):
        READERS[name](model(), [batch])


@pytest.mark.parametrize("name", READERS)
def test_labels_are_to_be_left_out(name: str) -> None:
    with pytest.raises(ValueError, match="so leave the labels out"):
        READERS[name](model(), [(torch.randn(16, 8), torch.zeros(16))])


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("batch", "shown"),
    [
        (torch.randn(16, 7), r"float32 \(16, 7\): "),
        (torch.randn(16, 8).double(), r"float64 \(16, 8\): "),
        ([torch.randn(7)], r"float32 \(7,\): "),
    ],
)
def test_a_batch_of_another_shape_is_told_with_its_number(
    name: str, batch: object, shown: str
) -> None:
    with pytest.raises(ValueError, match=f"batch 1 of calibration, which has {shown}"):
        READERS[name](model(), [torch.randn(16, 8), batch])


@pytest.mark.parametrize("name", READERS)
def test_a_generator_is_as_good_as_a_list(name: str) -> None:
    batches = list(torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0)))

    def found(data: object) -> dict[str, object]:
        result = READERS[name](model(), data)
        if isinstance(result, dict):
            return result
        small = result.model if isinstance(result, vq.TuneResult) else result
        assert isinstance(small, nn.Module)
        return {key: value.tolist() for key, value in small.state_dict().items()}

    expected = found(batches)
    assert expected
    assert found(batch for batch in batches) == expected
    if name != "tune":
        # Its only trial is chosen by the metric alone.
        assert found(batches[:1]) != expected


@pytest.mark.parametrize("name", EVERY)
def test_a_state_dict_is_no_model(name: str) -> None:
    with pytest.raises(TypeError, match="a state_dict has no layers: load it into the model"):
        EVERY[name](model().state_dict(), [torch.randn(16, 8)] * 3)


def small() -> nn.Module:
    return vq.compress(nn.Linear(8, 4), vq.KM(k=4))


X = torch.randn(2, 8)
TAKE_A_MODEL: dict[str, Callable[[Any], object]] = {
    "choose_schemes": lambda m: vq.choose_schemes(m, "auto"),
    "compensate, the first": lambda m: vq.compensate(m, nn.Linear(8, 4), [X]),
    "compensate, the second": lambda m: vq.compensate(small(), m, [X]),
    "compress": lambda m: vq.compress(m, vq.KM(k=4)),
    "count_work": lambda m: vq.count_work(m, [X]),
    "export_aoti": lambda m: vq.export_aoti(m, "m.pt2", (X,)),
    "export_coreml": lambda m: vq.export_coreml(m, "m.mlpackage", (X,)),
    "export_executorch": lambda m: vq.export_executorch(m, "m.pte", (X,)),
    "export_onnx": lambda m: vq.export_onnx(m, "m.onnx", (X,)),
    "factorize": lambda m: vq.factorize(m, vq.SVD(rate=2)),
    "finetune": lambda m: vq.finetune(m, [X], teacher=nn.Linear(8, 4)),
    "finetune, teacher": lambda m: vq.finetune(small(), [X], teacher=m),
    "fold_batch_norms": vq.fold_batch_norms,
    "learn": lambda m: vq.learn(m, [X], rate_weight=0.1),
    "learn, teacher": lambda m: vq.learn(nn.Linear(8, 4), [X], rate_weight=0.1, teacher=m),
    "merge_neurons": lambda m: vq.merge_neurons(m, {"0": 4}),
    "observe_inputs": observe_inputs,
    "prune": lambda m: vq.prune(m, [X], 0.5),
    "prune_factors": lambda m: vq.prune_factors(m, [X]),
    "reestimate_norms": lambda m: vq.reestimate_norms(m, [X]),
    "remove_empty_channels": vq.remove_empty_channels,
    "save": lambda m: vq.save(m, "m.vq"),
    "set_memory": lambda m: vq.set_memory(m, "codes"),
    "set_precision": lambda m: vq.set_precision(m, "fast"),
    "summary": vq.summary,
    "tune": lambda m: vq.tune(m, lambda _: 1.0),
    "tune, start": lambda m: vq.tune(nn.Linear(8, 4), lambda _: 1.0, start=m),
}


@pytest.mark.parametrize("name", TAKE_A_MODEL)
def test_what_is_no_model_is_said_everywhere(name: str) -> None:
    with pytest.raises(TypeError, match=r"is a int, no torch\.nn\.Module"):
        TAKE_A_MODEL[name](5)
    with pytest.raises(TypeError, match=r"no torch\.nn\.Module; a state_dict has no layers"):
        TAKE_A_MODEL[name](nn.Linear(8, 4).state_dict())


def test_no_function_that_takes_a_model_is_forgotten() -> None:
    known = {name.partition(",")[0] for name in TAKE_A_MODEL} | {"load"}
    for name in vq.__all__:
        function = getattr(vq, name)
        if inspect.isfunction(function) and {"model", "small"} & set(
            inspect.signature(function).parameters
        ):
            assert name in known, name


PATTERNS: dict[str, Callable[[str], object]] = {
    "compress": lambda pattern: vq.compress(model(), {pattern: vq.KM(k=4)}),
    "tune": lambda pattern: vq.tune(
        model(), lambda _: 1.0, BUDGET, candidates={pattern: vq.KM(k=4)}
    ),
    "prune": lambda pattern: vq.prune(model(), [torch.randn(16, 8)], 0.5, layers=[pattern]),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_an_expression_has_its_mark(name: str) -> None:
    with pytest.raises(ValueError, match=r"a regular expression is written 're:0\.\*'"):
        PATTERNS[name]("0.*")


MODULE = """\
import numpy as np
import torch
from torch import nn
def model():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
def weights():
    return model().state_dict()
def single():
    return torch.randn(16, 8)
def arrays():
    return [np.ones((16, 8), np.float32)]
def broken():
    return [{}["images"]]
def lazy():
    yield {}["images"]
def evaluate(model):
    return 1.0
def fails(model):
    return {}["labels"]
"""
RECIPE = """\
version: 1
model: {name}:{model}
quantization:
  calibration: {name}:{calibration}
  model_wise: {{scheme: [km(k=4), km(k=16)]}}
evaluation: {{tuning: "{name}:{evaluate}"}}
output: out
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module that can be imported from the current folder alone."""
    name = f"here_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    # The command line adds the current folder.
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    return name


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"model": "weights"}, "load it into the model"),
        ({"calibration": "single"}, "put a single batch into a list"),
        ({"calibration": "arrays"}, "torch.from_numpy"),
        ({"calibration": "broken"}, ".py:13: 'images'"),
        ({"calibration": "lazy"}, ".py:15: 'images'"),
        ({"evaluate": "fails"}, ".py:19: 'labels'"),
    ],
)
@pytest.mark.parametrize("command", ["tune", "compress"])
def test_the_command_line_says_so_too(
    command: str,
    functions: dict[str, str],
    message: str,
    module: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"model": "model", "calibration": "single", "evaluate": "evaluate", **functions}
    if functions.keys() != {"calibration"}:
        names["calibration"] = "arrays" if "model" in functions else "single"
    Path("recipe.yaml").write_text(RECIPE.format(name=module, **names))
    options = [f"{module}:{names['model']}", "--scheme", "km(k=4)", "--output", "m.vq"]
    options += ["--calibration", f"{module}:{names['calibration']}"]
    if "evaluate" in functions:
        options = [*options[:5], "--evaluate", f"{module}:{names['evaluate']}"]
        text = Path("recipe.yaml").read_text()
        Path("recipe.yaml").write_text(text.replace(f"  calibration: {module}:single\n", ""))
    words = ["tune", "recipe.yaml"] if command == "tune" else ["compress", *options]
    assert main([*words, "-q"]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    if command == "tune" and functions.get("calibration") != "single":
        # File and line of the recipe, and the key.
        key = {"model": "model", "calibration": "quantization.calibration"}
        key["evaluate"] = "evaluation.tuning"
        assert shown.startswith("vq-plugin: recipe.yaml:")
        assert f": {key[next(iter(functions))]}: '{module}:" in shown


def test_signatures_of_torch_are_left_out() -> None:
    """Of a convolution they are ten lines."""
    net = nn.Conv2d(1, 4, 3)
    for batch in (np.zeros((2, 1, 8, 8), np.float32), [np.zeros((2, 1, 8, 8), np.float32)]):
        with pytest.raises(ValueError, match=r"torch\.from_numpy") as error:
            vq.compress(net, vq.KM(k=4), [batch])
        assert "\n" not in str(error.value)
