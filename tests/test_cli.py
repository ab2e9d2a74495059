"""The command line: exit codes, files and what people read."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

import vq_plugin as vq
from vq_plugin import ops
from vq_plugin.checkpoint import read_header
from vq_plugin.cli import main
from vq_plugin.extension import extension
from vq_plugin.ops.native import native
from vq_plugin.workloads import digits

RECIPE = """\
version: 1
model: vq_plugin.workloads.digits:model
quantization:
  calibration: vq_plugin.workloads.digits:calibration
  model_wise:
    scheme: [km(k=2), km(k=16), km(k=64)]
evaluation:
  tuning: vq_plugin.workloads.digits:evaluate
  test: vq_plugin.workloads.digits:test
tuning:
  accuracy_criterion: {criterion}
output: {output}
"""


@pytest.fixture(autouse=True)
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes write below the current folder."""
    monkeypatch.chdir(tmp_path)


def write_recipe(folder: Path, criterion: str = "{relative: 0.01}") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        RECIPE.replace("{criterion}", criterion).replace("{output}", str(folder / "out"))
    )
    return path


def test_tune_within_budget_exits_0_and_writes_model_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(write_recipe(tmp_path))]) == 0
    shown = capsys.readouterr().out
    assert "PASSED" in shown
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["result"]["passed"] is True
    file = tmp_path / "out" / "model.vq"
    assert report["sizes"]["file_nbytes"] == file.stat().st_size
    float_bytes = sum(4 * value.numel() for value in digits.model().state_dict().values())
    assert report["sizes"]["file_rate"] == pytest.approx(
        float_bytes / file.stat().st_size, rel=1e-3
    )
    small = vq.load(file, digits.DigitsCNN().eval())
    assert digits.test(small) == report["result"]["test_score"]
    assert report["result"]["test_loss"] <= 0.01


def test_tune_takes_the_smallest_trial_that_holds(tmp_path: Path) -> None:
    main(["tune", str(write_recipe(tmp_path))])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    held = [trial["nbytes"] for trial in report["result"]["trials"] if trial["held"]]
    assert report["sizes"]["nbytes"] == min(held)


def test_tune_over_budget_exits_3_and_leaves_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path)
    main(["tune", str(path)])
    path.write_text(path.read_text().replace("[km(k=2), km(k=16), km(k=64)]", "km(k=2)"))
    assert main(["tune", str(path)]) == 3
    assert "NOT REACHED" in capsys.readouterr().out
    assert not (tmp_path / "out" / "model.vq").exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["result"]["passed"] is False
    assert report["sizes"]["file_rate"] is None


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path))
    main(["tune", recipe, "--output", str(tmp_path / "a")])
    main(["tune", recipe, "--output", str(tmp_path / "b")])
    assert (tmp_path / "a/model.vq").read_bytes() == (tmp_path / "b/model.vq").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "line", "word"),
    [
        ("digits:model", "digits:modle", 2, "no function 'modle'"),
        ("digits:model", "digit:model", 2, "No module named"),
        ("digits:model", "digits:load", 2, "no torch.nn.Module"),
        (
            "  model_wise",
            "  op_wise: {clasifier.0: {scheme: null}}\n  model_wise",
            5,
            "classifier.0",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_exits_2_with_its_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    line: int,
    word: str,
) -> None:
    path = write_recipe(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    assert main(["tune", str(path)]) == 2
    shown = capsys.readouterr().err
    assert f"{path}:{line}:" in shown
    assert word in shown


def test_compress_rounds_the_rest_on_request(tmp_path: Path) -> None:
    sizes = []
    for rest in ([], ["--rest", "float16"]):
        command = ["compress", "vq_plugin.workloads.digits:model", "--scheme", "km(k=8)", *rest]
        assert main([*command, "--output", str(tmp_path / "m.vq")]) == 0
        sizes.append(read_header(tmp_path / "m.vq")[1])
    assert all(2 * sizes[1][key] == sizes[0][key] for key in sizes[0] if key.endswith("bias"))
    assert any(key.endswith("bias") for key in sizes[0])


def test_inspect_counts_the_exponents_of_int8_codebooks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = vq.compress(torch.nn.Linear(64, 32), vq.PQ(k=16, dim=4, codebook_dtype="int8"))
    vq.save(small, tmp_path / "m.vq")
    assert main(["inspect", str(tmp_path / "m.vq")]) == 0
    assert f" {vq.summary(small).nbytes / 1000:.1f} kB" in capsys.readouterr().out


def test_compress_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.vq"
    model = "vq_plugin.workloads.digits:model"
    layer = ["--layer", "re:features.*", "none"]
    command = ["compress", model, "--scheme", "km(k=8)", *layer, "--output", str(file)]
    assert main([*command, "--evaluate", "vq_plugin.workloads.digits:evaluate"]) == 0
    shown = capsys.readouterr().out
    assert "classifier.0" in shown
    assert "features.0" not in shown
    assert "metric: 0.9" in shown
    expected = vq.compress(digits.model(), {"re:features.*": None, "*": vq.KM(k=8)})
    loaded = vq.load(file, digits.DigitsCNN().eval())
    images = digits.load().test.images[:8]
    assert torch.equal(loaded(images), expected(images))

    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "km(k=8)" in shown
    sizes = read_header(file)[1]
    packed, coded = math.ceil(512 * 256 * 3 / 8), sizes["classifier.0.codes"]
    assert coded < packed
    assert f"{(coded + 8 * 2) / 1000:.1f} kB" in shown
    assert f" {8 * coded / (512 * 256):.2f} " in shown


def test_compress_takes_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, model = tmp_path / "model.vq", "vq_plugin.workloads.digits:model"
    layer = ["--layer", "classifier.0", "small"]
    assert main(["compress", model, "--scheme", "auto", *layer, "--output", str(file)]) == 0
    chosen = vq.choose_schemes(digits.model(), {"classifier.0": "small", "*": "auto"})
    header = read_header(file)[0]
    assert {n: entry.scheme for n, entry in header.layers.items()} == {
        n: str(scheme) for n, scheme in chosen.items()
    }


@pytest.mark.parametrize(
    "command",
    [
        ["compress", "vq_plugin.workloads.digits:model", "--output", "x.vq"],
        ["compress", "no.module:model", "--scheme", "km", "--output", "x.vq"],
        ["compress", "vq_plugin.workloads.digits:model", "--scheme", "km(", "--output", "x.vq"],
        ["inspect", "missing.vq"],
        ["tune", "missing.yaml"],
    ],
)
def test_bad_input_exits_2_with_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "-q"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("vq-plugin: ")
    assert shown.count("\n") == 1


def test_a_damaged_file_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.vq"
    vq.save(vq.compress(torch.nn.Linear(8, 8), vq.KM(k=4)), file)
    file.write_bytes(file.read_bytes()[:-3])
    assert main(["inspect", str(file)]) == 2
    assert "damaged" in capsys.readouterr().err


def doctor(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:15].strip(): line[15:] for line in lines}


def test_doctor_shows_the_kernels_in_use(
    capsys: pytest.CaptureFixture[str], fresh_native: pytest.MonkeyPatch
) -> None:
    fresh_native.delenv("VQ_PLUGIN_ISA", raising=False)
    shown = doctor(capsys)
    assert shown["vq_plugin"] == vq.__version__
    assert shown["torch"].startswith(torch.__version__)
    assert shown["VQ_PLUGIN_ISA"] == "not set"
    if ops.native() is not None:
        assert shown["kernels"] == f"{ops.isa()}, of {', '.join(ops.isas())}"


def test_doctor_of_a_machine_without_kernels_says_how_to_get_them(
    capsys: pytest.CaptureFixture[str], fresh_native: pytest.MonkeyPatch
) -> None:
    fresh_native.delenv("VQ_PLUGIN_ISA", raising=False)
    fresh_native.setitem(sys.modules, "vq_plugin._native", None)
    shown = doctor(capsys)
    assert "C++ compiler" in shown["kernels"]
    assert shown["fast kernels"] == "none"


def test_doctor_says_why_kernels_do_not_load(
    capsys: pytest.CaptureFixture[str], fresh_native: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"{name}: libtorch is older than 2.10")

    fresh_native.delenv("VQ_PLUGIN_ISA", raising=False)
    fresh_native.setitem(sys.modules, "vq_plugin._native", None)
    fresh_native.setattr("vq_plugin.commands.doctor.import_module", refuse)
    assert "libtorch is older than 2.10" in doctor(capsys)["kernels"]


def test_doctor_knows_that_kernels_are_turned_off(
    capsys: pytest.CaptureFixture[str], fresh_native: pytest.MonkeyPatch
) -> None:
    fresh_native.setenv("VQ_PLUGIN_ISA", "none")
    shown = doctor(capsys)
    assert shown["VQ_PLUGIN_ISA"] == "none"
    assert "turns them off" in shown["kernels"]


def test_doctor_exits_2_for_an_instruction_set_that_the_machine_lacks(
    capsys: pytest.CaptureFixture[str], fresh_native: pytest.MonkeyPatch
) -> None:
    if ops.native() is None:
        pytest.skip("without native kernels the variable has no effect")
    native.cache_clear()
    extension.cache_clear()
    fresh_native.setenv("VQ_PLUGIN_ISA", "altivec")
    assert main(["doctor"]) == 2
    shown = capsys.readouterr().err
    assert "VQ_PLUGIN_ISA='altivec'" in shown
    assert "scalar" in shown


def test_export_writes_what_onnx_runtime_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    small = vq.compress(digits.model(), vq.KM(k=16))
    vq.save(small, tmp_path / "m.vq")
    places = ["--model", f"{digits.__name__}:model", "--example", f"{digits.__name__}:calibration"]
    target = tmp_path / "m.onnx"
    command = ["export", str(tmp_path / "m.vq"), "--to", "onnx", *places, "--output", str(target)]
    assert main(command) == 0
    assert str(target) in capsys.readouterr().out
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    images = next(iter(digits.calibration()))
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), small(images), atol=1e-5)
    (tmp_path / "m.vq").write_bytes((tmp_path / "m.vq").read_bytes()[:-9])
    target.unlink()
    assert main(command) == 2
    assert not target.exists()
    assert main([*command, "--opset", "9"]) == 2


@pytest.fixture
def exported(tmp_path: Path) -> list[str]:
    """A command that exports, but for the target and the file."""
    vq.save(vq.compress(digits.model(), vq.PQ(k=16, dim=4)), tmp_path / "m.vq")
    places = ["--model", f"{digits.__name__}:model", "--example", f"{digits.__name__}:calibration"]
    return ["export", str(tmp_path / "m.vq"), *places]


def test_export_writes_native_operators(exported: list[str], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    target = str(tmp_path / "m.onnx")
    assert main([*exported, "--to", "onnx", "--operator", "native", "--output", target]) == 0
    operators = [node.op_type for node in onnx.load(target).graph.node]
    assert operators.count("CodebookLinear") == 2


def test_export_to_runtimes_of_torch(
    exported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main([*exported, "--to", "aoti", "--output", str(tmp_path / "m.zip")]) == 2
    assert "end in .pt2" in capsys.readouterr().err
    monkeypatch.setattr("vq_plugin.export.extras.find_spec", lambda name: None)
    assert main([*exported, "--to", "pte", "--output", str(tmp_path / "m.pte")]) == 2
    assert "pip install 'vq-plugin[executorch]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.vq"]


def test_export_does_not_write_over_what_it_reads(
    exported: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, link = tmp_path / "m.vq", tmp_path / "link"
    link.symlink_to(source)
    before = source.read_bytes()
    for target in (source, link):
        assert main([*exported, "--to", "onnx", "--output", str(target)]) == 2
        assert f"{target} is the file to export" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_export_of_a_truncated_file(
    exported: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (tmp_path / "m.vq").read_bytes()
    (tmp_path / "m.vq").write_bytes(whole[: len(whole) // 2])
    for target in ("onnx", "coreml", "aoti", "pte"):
        assert main([*exported, "--to", target, "--output", str(tmp_path / "out")]) == 2
        assert "m.vq" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.vq"]
