"""What all commands have in common, and those that need no file of their own for tests."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import vq_plugin as vq
from vq_plugin.cli import main
from vq_plugin.tuning.report import json_schema
from vq_plugin.workloads import digits

ROOT = Path(__file__).parents[1]
MODEL = "vq_plugin.workloads.digits:model"
EXPORTED = ("--model", MODEL, "--example", f"{digits.__name__}:calibration", "--output", "x")
COMMANDS = (
    ["tune"], ["compress"], ["layers"], ["inspect"], ["doctor"], ["completion"],
    ["recipe", "check"], ["recipe", "init"], ["recipe", "schema"],
)  # fmt: skip
NAMES = """\
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.mix = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.rnn = nn.GRU(8, 8)
        self.table = nn.Parameter(torch.randn(4, 8))
        self.head = nn.Linear(8, 16)
        self.head.weight = self.embed.weight
def model():
    return Net()
"""


@pytest.fixture(autouse=True)
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stopped(words: list[str]) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(["--version"]) == 0
    assert capsys.readouterr().out == f"vq-plugin {vq.__version__}\n"


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().err
    assert all(f"\n    {words[0]} " in shown for words in COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example_and_the_exit_codes(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    name = " ".join(words)
    example = re.search(r"^example:\n(.*)$", shown, re.MULTILINE)
    assert example is not None
    assert f"vq-plugin {name}" in example[1]
    codes = re.findall(r"^  (\d)  ", shown[shown.index("exit codes:") :], re.MULTILINE)
    assert codes == (["0", "2", "3"] if name == "tune" else ["0", "2"])


def recipe() -> str:
    assert main(["recipe", "init", "--from", "digits", "mine.yaml"]) == 0
    return "mine.yaml"


def test_json_of_tune_is_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe()
    capsys.readouterr()
    assert main(["tune", path, "--json"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert report == json.loads(Path("runs/digits/report.json").read_text())
    assert set(json_schema()["required"]) <= set(report)
    assert re.search(r"^\d\d:\d\d:\d\d trial 1: ", shown.err, re.MULTILINE)


def test_json_of_compress_and_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = ["--evaluate", "vq_plugin.workloads.digits:evaluate"]
    words = ["compress", MODEL, "--scheme", "km(k=8)", "--output", "m.vq", "--json", *evaluate]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    small = vq.load("m.vq", digits.DigitsCNN().eval())
    rows = vq.summary(small).rows
    assert [layer["name"] for layer in found["layers"]] == [row.name for row in rows]
    assert found["file_nbytes"] == Path("m.vq").stat().st_size
    assert found["metric"] == {
        "float": digits.evaluate(digits.model()),
        "compressed": digits.evaluate(small),
    }
    assert main(["inspect", "m.vq", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["nbytes"] == found["file_nbytes"]
    assert [layer["scheme"] for layer in seen["layers"]] == ["km(k=8)"] * len(rows)
    assert sum(layer["nbytes"] for layer in seen["layers"]) <= vq.summary(small).file_nbytes


def test_json_is_alone_where_a_program_captures_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loud_user.py").write_text(
        "from torch import nn\ndef model():\n    print('loud')\n    return nn.Linear(8, 8)\n"
    )
    assert main(["layers", "loud_user:model", "--json"]) == 0
    shown = capsys.readouterr()
    assert [each["name"] for each in json.loads(shown.out)] == [""]
    assert "loud" in shown.err
    print("to standard output again")
    assert capsys.readouterr().out == "to standard output again\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layers", "math"], "expected a function as 'module:function', got 'math'"),
        (["layers", "math.sqrt"], "expected a function as 'module:function', got 'math.sqrt'"),
        (["layers", ":model"], "expected a function as 'module:function', got ':model'"),
        (["layers", "math:"], "expected a function as 'module:function', got 'math:'"),
        (["layers", "a:b:c"], "expected a function as 'module:function', got 'a:b:c'"),
        (["layers", "./own:model"], "got './own:model'; a module is written as where it is"),
        (["layers", "own.py:model"], "it is written 'own:model'"),
        (["layers", "unreadable:model"], "import raised SyntaxError at unreadable.py:2: "),
        (["tune", "x.yaml", "--output", ""], "--output is empty; the current folder is --output ."),
        (["tune", "own.yaml", "--backend", "lokyy"], "backend='lokyy' is none of 'dask', 'loky'"),
        (
            ["compress", MODEL, "--output", "x", "--layer", "a", "km", "--layer", "a", "none"],
            "--layer 'a' is given twice",
        ),
        (
            ["compress", MODEL, "--output", "x", "--layer", "*", "km", "--scheme", "km"],
            "--layer '*' is given twice; --scheme is that of '*'",
        ),
        (["compress", MODEL, "--output", "x"], "nothing to do: give --scheme or --layer"),
        (["compress", MODEL, "--output", "x", "--scheme", "none"], "all that is named is left"),
        (
            ["compress", MODEL, "--output", "x", "--scheme", "km", "--layer", "re:.*", "none"],
            "nothing to write: every layer is left",
        ),
        (
            ["export", "m.vq", "--to", "coreml", "--opset", "18", *EXPORTED],
            "--opset is for onnx, and nothing of coreml",
        ),
        (
            ["export", "m.vq", "--to", "aoti", "--operator", "native", *EXPORTED],
            "--operator native is for onnx and pte, and nothing of aoti",
        ),
    ],
)
def test_words_that_say_nothing_or_two_things(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.py").write_text("def model():\n    return 1\n")
    (tmp_path / "unreadable.py").write_text("\ndef model(:\n")
    shutil.copy(ROOT / "recipes" / "digits.yaml", "own.yaml")
    assert main(["-q", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not Path("x").exists()


def test_none_for_all_leaves_what_no_layer_names() -> None:
    words = ["compress", MODEL, "--output", "m.vq", "--scheme", "none"]
    assert main([*words, "--layer", "classifier.0", "km(k=4)"]) == 0
    assert list(vq.open_file("m.vq").layers) == ["classifier.0"]


def test_compress_takes_results_per_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """What ``tune`` evaluates by: their mean is the metric."""
    words = ["compress", MODEL, "--scheme", "km(k=8)", "--output", "m.vq", "--json", "--evaluate"]
    found = []
    for function in ("evaluate", "evaluate_samples"):
        assert main([*words, f"vq_plugin.workloads.digits:{function}"]) == 0
        found.append(json.loads(capsys.readouterr().out)["metric"])
    assert found[1] == pytest.approx(found[0], abs=1e-6)


def test_functions_that_return_no_batches_and_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import torch\ndef no(): pass\ndef one(): return torch.ones(8, 64)\n"
    code += "def nan(model): return float('nan')\ndef lots(model): return torch.ones(3, 3)\n"
    (tmp_path / "odd_ones.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["compress", MODEL, "--scheme", "km(k=8)", "--output", "m.vq"]
    for option, name, said in (
        ("--calibration", "no", "what 'odd_ones:no' returns is an iterable of batches"),
        ("--calibration", "one", "what 'odd_ones:one' returns .* put a single batch into a list"),
        ("--evaluate", "nan", "'odd_ones:nan' returned nan"),
        ("--evaluate", "lots", r"'odd_ones:lots' returned values of shape \(3, 3\); it must"),
    ):
        assert main([*words, option, f"odd_ones:{name}"]) == 2
        assert re.search(said, capsys.readouterr().err)
        assert not Path("m.vq").exists()
    assert main(words) == 0
    export = ["export", "m.vq", "--to", "onnx", "--model", MODEL, "--output", "m.onnx"]
    for name, said in (("no", "iterable of batches"), ("one", "put a single batch into a list")):
        assert main([*export, "--example", f"odd_ones:{name}"]) == 2
        assert f"'odd_ones:{name}' returns" in (shown := capsys.readouterr().err)
        assert said in shown


def test_json_of_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vq_plugin"] == vq.__version__


def test_layers_says_what_can_code_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    Path("net_of_layers.py").write_text(NAMES)
    assert main(["layers", "net_of_layers:model", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    all_slots = {"compress", "tune", "INC", "torchao quantize_"}
    assert set(rows["mix"]["hosts"]) == {*all_slots, "PT2E", "torch.ao"}
    assert set(rows["attention.in_proj_weight"]["hosts"]) == {*all_slots, "PT2E"}
    assert set(rows["rnn.weight_ih_l0"]["hosts"]) == all_slots
    assert (rows["mix"]["shape"], rows["mix"]["nbytes"]) == ([8, 8], 256)
    assert (rows["head"]["tied_to"], rows["head"]["nbytes"]) == ("embed", 0)
    assert [name for name, row in rows.items() if row["by_name_only"]] == ["table"]
    assert main(["layers", "net_of_layers:model", "-q"]) == 0
    shown = capsys.readouterr().out
    assert "tied to embed" in shown
    assert f"{len(rows)} weights" in shown
    # Names are those that compress takes.
    schemes = {name: vq.KM(k=2) for name in rows}
    namespace: dict[str, Any] = {}
    exec(NAMES, namespace)
    assert len(vq.summary(vq.compress(namespace["Net"](), schemes)).rows) == len(rows)


@pytest.mark.parametrize("before", [True, False])
def test_quiet_and_verbose_stand_before_or_after_the_command(
    before: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path, said = recipe(), {}
    for option in ("-q", "-v"):
        words = [option, "tune", path] if before else ["tune", path, option]
        capsys.readouterr()
        assert main([*words, "--output", option.strip("-")]) == 0
        said[option] = capsys.readouterr()
    assert said["-q"].err == ""
    assert "PASSED" in said["-q"].out
    assert re.search(r"classifier\.0 pq.*: \d+ bytes, ", said["-v"].err)
    assert logging.getLogger("vq_plugin").level == logging.NOTSET


def test_verbose_shows_where_an_error_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    Path("failing_user.py").write_text("def model():\n    raise KeyError('weights')\n")
    for words, traced in (([], False), (["-v"], True)):
        assert main(["layers", "failing_user:model", *words]) == 2
        shown = capsys.readouterr().err
        assert "'failing_user:model' raised KeyError at failing_user.py:2: 'weights'" in shown
        assert ("Traceback" in shown) == traced


def test_an_interrupt_that_other_code_makes_an_error_of_is_still_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = """
        import os, signal
        from torch import nn
        def {name}():
            try:
                os.kill(os.getpid(), signal.SIG{signal})
            except BaseException:
                {then}
            return nn.Linear(8, 8)
        """
    text = code.format(name="wraps", signal="INT", then="raise RuntimeError('failed')")
    text += code.format(name="swallows", signal="TERM", then="pass")
    Path("interrupted_user.py").write_text(textwrap.dedent(text))
    Path("m.vq").write_text("old")
    for name, exit_code in (("wraps", 130), ("swallows", 143)):
        words = ["compress", f"interrupted_user:{name}", "--scheme", "km(k=4)", "--output", "m.vq"]
        assert main([*words, "-q"]) == exit_code
        ended = "interrupted" if exit_code == 130 else "terminated"
        assert capsys.readouterr().err == f"vq-plugin: {ended}\n"
        assert Path("m.vq").read_text() == "old"
        assert not list(tmp_path.glob(".vq_plugin.*"))
    assert main(["doctor"]) == 0


def test_an_error_of_the_package_itself_is_no_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    # No line of the user's.
    monkeypatch.setattr("vq_plugin.ops.costs.processor", partial(divmod, 1, 0))
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_a_recipe_that_writes_elsewhere_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outside, inside = tmp_path / "out", tmp_path / "work"
    inside.mkdir()
    text = Path(recipe()).read_text().replace("output: runs/digits", "output: ../out")
    monkeypatch.chdir(inside)
    Path("mine.yaml").write_text(text)
    assert main(["tune", "mine.yaml"]) == 2
    line = text.splitlines().index("output: ../out") + 1
    shown = capsys.readouterr().err
    assert f"mine.yaml:{line}: output: '../out' is outside of the current folder" in shown
    assert "--output ../out" in shown
    assert not outside.exists()
    questions = []

    def answer(question: str) -> str:
        questions.append(question)
        return answers.pop()

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", answer)
    answers = ["yes", "no"]
    assert main(["tune", "mine.yaml"]) == 2
    assert not outside.exists()
    assert main(["tune", "mine.yaml"]) == 0
    assert (outside / "model.vq").exists()
    assert str(outside) in questions[0]
    # Said on the command line it is meant.
    assert main(["tune", "mine.yaml", "--output", "../out"]) == 0
    assert len(questions) == 2


def test_shipped_recipes_run_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "init", "--from", "digits"]) == 0
    assert "$schema" not in Path("digits.yaml").read_text()
    assert main(["recipe", "check", "digits.yaml"]) == 0
    assert main(["recipe", "init", "--from", "digits"]) == 2
    assert "exists and stays" in capsys.readouterr().err
    assert main(["recipe", "init", "--from", "digits", "--model", MODEL, "x.yaml"]) == 2
    assert stopped(["recipe", "init", "--from", "digts"]) == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(words[0] in script for words in COMMANDS)
    assert "digits_confidence" in script
    if shell == "bash" and shutil.which("bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_completion_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'vq-plugin[completion]'" in capsys.readouterr().err


BEFORE_TORCH = """
import os, sys, time
import vq_plugin_command

class Watched:
    def __getattr__(self, name):
        return getattr(sys.__stderr__, name)

    def write(self, text):
        sys.__stderr__.write(text)
        if "\\n" in text:
            sys.__stderr__.flush()
            said()

def said():
    print(time.process_time(), "torch" in sys.modules, flush=True)
    os._exit(0)

sys.stderr = Watched()
try:
    vq_plugin_command.main()
except SystemExit:
    said()
said()
"""
AS_PEOPLE_CALL_IT = "import sys, vq_plugin_command; sys.exit(vq_plugin_command.main())"


def called(program: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """A process of its own, whose program knows the package and nothing of it is imported."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["tqdm", "argparse"])
def test_an_interrupt_while_the_command_is_imported_is_one_line(
    module: str, tmp_path: Path
) -> None:
    program = f"""
import sys
from importlib.abc import MetaPathFinder
class Interrupting(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.modules.pop({module!r}, None)
sys.meta_path.insert(0, Interrupting())
"""
    ended = called(program + AS_PEOPLE_CALL_IT, "inspect", "m.vq")
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "vq-plugin: interrupted\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--help"],
        ["tune", "--help"],
        ["tun"],
        ["completion", "bash"],
        ["tune", "recipe.yaml"],
        ["compress", MODEL, "--output", "x"],
        ["layers", MODEL],
    ],
    ids=" ".join,
)
def test_what_is_said_first_does_not_wait_for_torch(words: list[str]) -> None:
    done = called(BEFORE_TORCH, *words)
    seconds, torch = done.stdout.splitlines()[-1].split()
    assert torch == "False"
    # Of the processor: on a busy machine the clock says nothing.
    assert float(seconds) < 0.5
    if words == ["tune", "recipe.yaml"]:
        assert done.stderr.endswith("read recipe.yaml\n")


def test_functions_of_a_recipe_find_the_whole_package() -> None:
    Path("own.py").write_text("""\
import vq_plugin as vq
from vq_plugin.workloads import digits
def model():
    assert {name for name in vq.__all__ if not hasattr(vq, name)} == set()
    assert callable(vq.compress) and callable(vq.summary) and callable(vq.tune)
    return digits.model()
""")
    done = called(AS_PEOPLE_CALL_IT, "layers", "own:model", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_a_machine_without_torch_is_told_so() -> None:
    program = f"import sys; sys.modules['torch'] = None; {AS_PEOPLE_CALL_IT}"
    done = called(program, "layers", MODEL)
    assert done.returncode == 2
    assert done.stderr.endswith("vq-plugin: torch is not installed: pip install torch\n")


def test_the_command_is_the_one_that_is_tried_here() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["scripts"] == {"vq-plugin": "vq_plugin_command:main"}
    assert settings["project"]["version"] == vq.__version__
