"""The Python blocks of the README and the docs run, page by page, from top to bottom."""

import math
import re
import shlex
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import vq_plugin as vq
from vq_plugin.cli import _parser, main

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line of the first statement and text of every block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in BLOCK.finditer(text)]


# Blocks of own_model.md are files and commands, too: tests/test_own_model.py.
PAGES_OF_TEXT = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES_OF_TEXT if blocks(page) and page.name != "own_model.md"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(
    page: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VQ_PLUGIN_CACHE", str(cache))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    namespace: dict[str, object] = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        for line, text in blocks(page):
            if "neural_compressor" in text and find_spec("neural_compressor") is None:
                pytest.skip(f"Intel Neural Compressor is not installed, from line {line} on")
            if "torchao" in text and find_spec("torchao") is None:
                pytest.skip(f"torchao is not installed, from line {line} on")
            if "torch_pruning" in text and find_spec("torch_pruning") is None:
                pytest.skip(f"torch-pruning is not installed, from line {line} on")
            if "export_onnx" in text and find_spec("onnxscript") is None:
                pytest.skip(f"the extra onnx is not installed, from line {line} on")
            # The leading lines make a traceback show the line of the page.
            exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)


def commands(page: Path) -> list[str]:
    """Whole command lines of blocks of a page, fenced or indented; synopses have brackets."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = "\n".join(re.findall(r"^```bash.*?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    lines = [*fenced.splitlines(), *re.findall(r"^    (vq-plugin .*)$", text, re.MULTILINE)]
    found = [line.partition(" #")[0].strip() for line in lines]
    return [line for line in found if line.startswith("vq-plugin ") and not set("[|…") & set(line)]


def test_commands_of_the_pages_are_commands() -> None:
    """Options and choices; README's, the tutorial's and the pipeline's are run elsewhere."""
    lines = [(page, line) for page in PAGES_OF_TEXT for line in commands(page)]
    assert len(lines) >= 18
    for page, line in lines:
        words = shlex.split(line.partition(" || ")[0])[1:]
        try:
            _parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{page.name}: {line}")


def test_commands_within_sentences_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Their options too, and files that they name are there."""
    count = 0
    for page in PAGES_OF_TEXT:
        for text in re.findall(r"`vq-plugin ([^`]*)`", page.read_text(encoding="utf-8")):
            words = shlex.split(" ".join(text.split()))
            if re.search(r"[A-Z]{4}|…", text):
                continue
            count += 1
            with suppress(SystemExit):
                _parser().parse_args(words)
            # A sentence may leave out what a command or an option needs, but name no other.
            shown = capsys.readouterr().err
            assert "invalid" not in shown, (page.name, text)
            assert "unrecognized" not in shown, (page.name, text)
            missing = [word for word in words if "recipes/" in word and not (ROOT / word).exists()]
            assert not missing, (page.name, text)
    assert count >= 15


def test_modules_of_integration_that_pages_run_are_there() -> None:
    names = {
        name
        for page in PAGES_OF_TEXT
        for name in re.findall(r"python -m (integration[\w.]*)", page.read_text(encoding="utf-8"))
    }
    assert len(names) >= 25
    for name in sorted(names):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


@pytest.mark.skipif(find_spec("onnxscript") is None, reason="the extra onnx is not installed")
def test_the_command_of_the_page_on_other_runtimes_runs(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VQ_PLUGIN_CACHE", str(cache))
    (line,) = commands(ROOT / "docs" / "deploy.md")
    make = "compress vq_plugin.workloads.digits:model --scheme km(k=16) --output model.vq -q"
    assert main(make.split()) == 0
    assert main([*shlex.split(line)[1:], "-q"]) == 0
    assert (tmp_path / "model.onnx").stat().st_size > 1000


def test_commands_of_the_recipes_page_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VQ_PLUGIN_CACHE", str(cache))
    lines = [line for line in commands(ROOT / "docs" / "recipes.md") if " tune " not in line]
    complete = [line for line in lines if "my_model" not in line or " init " in line]
    complete = [line for line in complete if not re.search(r"MODULE:|[A-Z]{4}", line)]
    assert len(complete) >= 3
    for line in complete:
        assert main([*shlex.split(line)[1:], "-q"]) == 0, line


def test_readme_and_main_pages_have_blocks() -> None:
    names = {page.name for page in PAGES}
    assert {"README.md", "index.md", "quickstart.md", "concepts.md", "format.md"} <= names


def test_sizes_of_the_concepts_page() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\(.*?\))` \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) >= 10
    for scheme, cells in rows:
        rates = [
            4 * math.prod(shape) / vq.parse_scheme(scheme).geometry(shape).nbytes
            for shape in ((1024, 3136), (512, 1024), (64, 32, 3, 3))
        ]
        shown = ["below 1" if rate < 1 else f"{rate:.1f}" for rate in rates]
        assert [cell.strip() for cell in cells.split("|")] == shown, scheme


def test_every_public_name_has_its_place_on_an_api_page() -> None:
    folder = ROOT / "docs" / "api"
    index = (folder / "index.md").read_text(encoding="utf-8")
    pages = {page.name: page.read_text(encoding="utf-8") for page in folder.glob("*.md")}
    placed = [
        (name, page)
        for page, text in pages.items()
        for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    ]
    names = [name for name, _ in placed]
    assert len(names) == len(set(names))
    missing = [
        name for name in vq.__all__ if f"vq_plugin.{name}" not in names and name != "__version__"
    ]
    assert missing == []
    # Links to the one page that there was before lead to a link to the name.
    linked = set(re.findall(r"\]\((\w+\.md)#(\S+?)\)\{ #(\S+) \}", index))
    assert linked == {(page, name, name) for name, page in placed}
