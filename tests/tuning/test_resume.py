"""A search that is killed goes on where it was, and ends as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_killed_searches_lose_and_repeat_nothing(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "integration.tuning.kill_and_resume", "--quick"]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check["value"] for check in json.loads(output.read_text())["checks"]}
    assert checks == {
        "kills": 5,
        "evaluations lost": 0,
        "evaluations repeated": 0,
        "searches with another result": 0,
    }
