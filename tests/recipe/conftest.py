"""What the tests of recipes share: a recipe with every key, and a way to write one."""

from collections.abc import Callable
from pathlib import Path

import pytest

EVERY_KEY = """\
version: 1
model: vq_plugin.workloads.digits:model
quantization:
  approach: post_training_weight_only
  calibration: vq_plugin.workloads.digits:calibration
  model_wise:
    scheme: [km(k=4), "pq(k=16,dim=4)", null]
  optype_wise:
    Conv2d: {scheme: [km(k=16), km(k=256)]}
  op_wise:
    classifier.3: {scheme: null}
    "re:features.*": {scheme: km(k=8)}
evaluation:
  tuning: vq_plugin.workloads.digits:evaluate
  test: vq_plugin.workloads.digits:test
tuning:
  strategy: frontier
  accuracy_criterion:
    relative: 0.02
    higher_is_better: true
    confidence: 0.9
    min_agreement: 0.6
  objective: size
  exit_policy:
    max_trials: 7
    timeout: 60
  random_seed: 3
output: out
pruning:
  loader: vq_plugin.workloads.digits:training_batches
  sparsity: 0.9
  epochs: 2
  learning_rate: 1e-3
recovery:
  loader: vq_plugin.workloads.digits:training_batches
  epochs: 2
  learning_rate: 0.02
  max_trials: 3
rest: float16
host: torchao
"""


@pytest.fixture(scope="session")
def every_key() -> str:
    """A recipe that gives every key that can be given together."""
    return EVERY_KEY


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a recipe and gives its path."""

    def write_text(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text
