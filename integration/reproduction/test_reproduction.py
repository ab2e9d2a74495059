"""The retrieval test beside scikit-learn, and a run that goes on after a kill."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

import vq_plugin as vq
from integration.reproduction import __main__ as command
from integration.reproduction import learned, methods, penni
from integration.reproduction.journal import Journal
from integration.reproduction.measured import formed, mean_average_precision, nbytes
from vq_plugin.seeded import seeded
from vq_plugin.workloads import digits


def test_mean_average_precision_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(70, 5, generator=generator)
    labels = torch.randint(0, 3, (70,), generator=generator)
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    expected = []
    for at in range(50):
        others = np.arange(70) != at
        relevant = (labels == labels[at]).numpy()[others]
        expected.append(average_precision_score(relevant, (unit @ unit[at])[others]))
    assert mean_average_precision(features, labels, queries=50) == pytest.approx(np.mean(expected))


def test_a_run_goes_on_after_its_last_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def measured(head: Any, setting: object, *, calibrated: bool) -> dict[str, float]:
        calls.append((setting, calibrated))
        return {"rate": 1.0, "accuracy@1": 90.0, "accuracy@5": 99.0, "mAP": 80.0, "mAP, 1 bit": 1.0}

    monkeypatch.setattr(command, "head_of", lambda seed, quick: None)
    monkeypatch.setattr(command, "measured", measured)
    path = tmp_path / "rows.jsonl"
    command.run(Journal(path), 0, quick=True)
    assert len(calls) == 7
    *whole, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole) + last[:20])
    journal = Journal(path)
    command.run(journal, 0, quick=True)
    assert len(calls) == 8
    assert {row["setting"] for row in command.means([*Journal(path).rows.values()])} == {
        "", "svd(rate=4)", "km(k=4)", "svd(rate=4)+km(k=16)",
    }  # fmt: skip


def test_rates_are_those_of_the_layers_that_are_compressed() -> None:
    head = command.head_of(0, quick=True)
    row = command.measured(head, vq.KM(k=4), calibrated=False)
    assert 16 <= row["rate"] < 17
    assert command.measured(head, vq.SVD(rate=4), calibrated=False)["rate"] == pytest.approx(
        4, rel=0.03
    )


def test_a_method_ends_in_a_file_that_loads_and_an_onnx_model_that_runs() -> None:
    net = methods.Network(
        digits.model(),
        digits.calibration(),
        methods.Few(digits.training_batches(), 3),
        digits.test,
    )
    kept = partial(methods.merged, keep=0.5)
    row = methods.row_of(methods.Method(kept, vq.KM(k=16), passes=1), net)
    assert row["onnx gap"] < 1e-4
    assert 50 < row["weights gone"] < 80
    assert row["run"] == pytest.approx(row["nonzero"], abs=1)
    assert row["rate"] > 15


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_learned_codebooks_end_in_a_file_that_loads() -> None:
    net = methods.Network(
        digits.model(),
        digits.calibration(),
        methods.Few(digits.training_batches(), 3),
        digits.test,
    )
    schemes = {"classifier.0": vq.PQ(k=8, dim=4), "classifier.3": vq.KM(k=16), "*": None}
    with seeded(0):
        small = learned.learn(
            digits.DigitsCNN().train(), schemes, digits.load().train, passes=2, beta=0.01, seed=0
        )
    row = methods.ended(digits.DigitsCNN().eval(), small, net)
    assert row["onnx gap"] < 1e-4
    assert row["lost"] == pytest.approx(100 * (digits.test(net.model) - digits.test(small)))
    assert row["rate"] > 8


def test_bytes_of_layers_are_codes_where_there_are_any() -> None:
    model = nn.Sequential(nn.Conv2d(4, 64, 3), nn.Sequential(nn.Conv2d(64, 64, 1)))
    both = formed(model, {"0": vq.KM(k=16, scale=None), "1.0": vq.KM(k=256)}, None)
    rows = {row.name: row.file_nbytes for row in vq.summary(both).rows}
    assert nbytes(both, ["0", "1.0"]) == sum(rows.values())
    factors = formed(model, {"1.0": vq.SVD(rank=8)}, None)
    assert nbytes(factors, ["1.0"]) == 4 * (8 * 64 + 64 * 8)
    assert nbytes(factors, ["0"]) == 4 * 64 * 4 * 9


def test_penni_beside_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = replace(penni.digits_cnn(), passes=3, sizes=(30_000,))
    monkeypatch.setitem(penni.SUBJECTS, "penni", ("Digits' CNN", lambda: subject))
    table = penni.published(tmp_path, "penni", [0])
    assert all(f"\n{way} " in table for way in penni.WAYS)
    rows = Journal(tmp_path / "penni.jsonl").rows.values()
    assert all(row["bytes"] <= 30_000 and row["difference"] > 0 for row in rows)
    assert all(row["onnx gap"] < 1e-4 for row in rows)
    # Products have fewer weights, sparse ones the fewest.
    assert len({row["weights"] for row in rows}) == 3
    learn, sparse, products = (row["start gone"] for row in rows)
    assert learn == 0 < products < sparse

    _, small = penni.after_penni(subject, 30_000, 0)
    vq.save(small, tmp_path / "small.vq")
    again = vq.load(tmp_path / "small.vq", digits.model())
    assert torch.equal(again(subject.images), small(subject.images))
