"""The page on a model of one's own: its files, its commands and its code, from top to bottom."""

import json
import re
import sys
from pathlib import Path

import pytest

from vq_plugin.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "own_model.md"
BLOCK = re.compile(r'^```(\w+)(?: title="(\S+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    kinds = []
    for kind, file, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        kinds.append(kind)
        if file:
            Path(file).write_text(text, encoding="utf-8")
        elif kind == "python":
            exec(compile(text, str(PAGE), "exec"), namespace)
        else:
            for line in text.splitlines():
                words = line.partition("#")[0].split()
                assert words[0] == "vq-plugin"
                assert main(words[1:]) == 0, capsys.readouterr()
    assert kinds == ["python", "python", "yaml", "bash", "python"]
    report = json.loads(Path("runs/my_project/report.json").read_text(encoding="utf-8"))
    shown = capsys.readouterr().out.splitlines()[-1]
    # What is shipped is what the verdict speaks of.
    assert float(shown) == pytest.approx(report["result"]["test_score"], abs=1e-4)
    del sys.modules["my_project"]
