"""``report.json``: what it says, and that it is what its schema says."""

import json
import math
import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

import vq_plugin as vq
from vq_plugin.tuning.report import json_schema, write_report
from vq_plugin.tuning.result import LayerCandidate, LayerLadder, TuneResult

DOCS = Path(__file__).parents[3] / "docs"


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def written(folder: Path, result: TuneResult, *rest: Any, **keywords: Any) -> dict[str, Any]:
    paths = write_report(folder, result, *rest, **keywords)
    loaded: dict[str, Any] = json.loads(
        paths.json.read_text(encoding="utf-8"), parse_constant=refuse
    )
    return loaded


def test_every_report_follows_the_published_schema(
    results: dict[str, TuneResult], tmp_path: Path
) -> None:
    schema = json.loads((DOCS / "report.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for name, result in results.items():
        errors = [error.message for error in validator.iter_errors(written(tmp_path, result))]
        assert errors == [], name


def test_the_schema_refuses_what_is_no_report(
    results: dict[str, TuneResult], tmp_path: Path
) -> None:
    validator = Draft202012Validator(json_schema())
    report = written(tmp_path, results["passed"])
    for key in report:
        assert not validator.is_valid({k: value for k, value in report.items() if k != key})
    assert not validator.is_valid({**report, "report_version": 2})
    assert not validator.is_valid({**report, "sizes": {**report["sizes"], "float_nbytes": -1}})


def test_the_published_schema_is_that_of_the_code() -> None:
    published = (DOCS / "report.schema.json").read_text(encoding="utf-8")
    assert published == json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", (
        "write it anew: python -c 'import json; from vq_plugin.tuning.report import json_schema; "
        "print(json.dumps(json_schema(), indent=2, ensure_ascii=False))' > docs/report.schema.json"
    )


def test_the_documentation_names_every_key() -> None:
    page = (DOCS / "report.md").read_text(encoding="utf-8")
    documented = {
        heading: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)
        for heading, body in re.findall(r"^### (.+?)\n(.*?)(?=^#|\Z)", page, re.M | re.S)
    }
    schema = json_schema()
    records = {"The whole report": schema, **schema["$defs"]}
    assert documented == {name: list(entry["properties"]) for name, entry in records.items()}


def test_every_key_of_the_schema_is_described() -> None:
    schema = json_schema()
    for name, record in {"Report": schema, **schema["$defs"]}.items():
        assert record["description"], name
        for key, entry in record["properties"].items():
            assert entry["description"], (name, key)


def test_the_result_is_written_field_by_field_but_for_the_model(
    results: dict[str, TuneResult], tmp_path: Path
) -> None:
    result = results["passed"]
    names = [field.name for field in fields(TuneResult) if field.name != "model"]
    written_result = written(tmp_path, result)["result"]
    assert list(written_result) == names
    assert written_result["trials"][0]["schemes"] == {
        name: str(scheme) for name, scheme in result.trials[0].schemes.items()
    }


def test_equal_results_give_equal_files(results: dict[str, TuneResult], tmp_path: Path) -> None:
    first = write_report(tmp_path / "a", results["passed"])
    second = write_report(tmp_path / "deep" / "b", results["passed"])
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert [path.name for path in first] == ["report.json", "report.html"]


def test_bytes_and_rates_add_up(results: dict[str, TuneResult], tmp_path: Path) -> None:
    result = results["passed"]
    vq.save(result.model, tmp_path / "model.vq")
    report = written(tmp_path, result, tmp_path / "model.vq")
    sizes, layers = report["sizes"], report["layers"]
    assert sizes["file_nbytes"] == (tmp_path / "model.vq").stat().st_size
    inside = sum(layer["file_nbytes"] for layer in layers)
    assert sizes["nbytes"] == inside + sizes["other_nbytes"]
    assert sizes["file_rate"] == sizes["float_nbytes"] / sizes["file_nbytes"]
    assert report["result"]["rate"] == pytest.approx(sizes["float_nbytes"] / sizes["nbytes"])
    schemes = report["result"]["schemes"]
    for layer in layers:
        bits = 8 * layer["nbytes"] / math.prod(layer["shape"])
        assert layer["bits_per_weight"] == pytest.approx(bits)
        assert layer["scheme"] == schemes[layer["name"]]
    chosen = report["result"]["trials"][report["chosen_trial"]]
    assert (chosen["nbytes"], chosen["schemes"]) == (sizes["nbytes"], schemes)


def test_numbers_that_do_not_exist_are_null(results: dict[str, TuneResult], tmp_path: Path) -> None:
    report = written(tmp_path, results["passed"])
    failed = [trial for trial in report["result"]["trials"] if trial["error"]]
    assert len(failed) == 2
    for trial in failed:
        assert (trial["score"], trial["loss"], trial["interval"]) == (None, None, None)
        assert trial["held"] is False
    odd = replace(
        results["passed"],
        test_score=math.nan,
        test_loss=math.nan,
        test_interval=(0.0, math.inf),
        search_seconds=math.inf,
    )
    result = written(tmp_path, odd)["result"]
    assert (result["test_score"], result["test_loss"]) == (None, None)
    assert result["test_interval"] == [0.0, None]
    assert result["search_seconds"] is None


def test_without_a_chosen_model_nothing_looks_like_one(
    results: dict[str, TuneResult], tmp_path: Path
) -> None:
    report = written(tmp_path, results["missed"])
    result = report["result"]
    assert result["passed"] is False
    assert result["stopped"] == "no setting holds the budget"
    assert report["chosen_trial"] is None
    assert result["baseline"] == 0.92
    for key in ("score", "loss", "interval", "rate", "schemes"):
        assert result[key] is None
    sizes = report["sizes"]
    assert {key for key, value in sizes.items() if value is not None} == {"float_nbytes"}
    assert sizes["float_nbytes"] == results["passed"].layers[0].float_nbytes + sum(
        value.nbytes
        for key, value in results["missed"].model.state_dict().items()
        if key != "features.0.weight"
    )
    assert report["layers"] == []
    assert [len(layer["candidates"]) for layer in result["layers"]] == [
        len(layer.candidates) for layer in results["missed"].layers
    ]


def test_layers_left_in_float_and_layers_outside_of_the_search(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    small = vq.compress(net, {"0": vq.KM(k=4), "1": vq.KM(k=16)})

    def ladder(name: str, scheme: vq.Scheme) -> LayerLadder:
        nbytes = vq.quantize_weight(net.get_submodule(name).weight, scheme).nbytes  # type: ignore[arg-type]
        candidates = (
            LayerCandidate(None, 64 * 64 * 4, 0.0, 0.0),
            LayerCandidate(scheme, nbytes, 0.1, 0.1),
        )
        return LayerLadder(name, (64, 64), 64 * 64 * 4, candidates)

    result = TuneResult(
        model=small, schemes={"0": vq.KM(k=4), "2": None}, passed=True, baseline=1.0, score=1.0,
        loss=0.0, interval=None, rate=2.0, trials=(), frontier=(), budget=vq.LossBudget(0.01),
        layers=(ladder("0", vq.KM(k=4)), ladder("2", vq.KM(k=4))),
    )  # fmt: skip
    report = written(tmp_path, result)
    assert [(la["name"], la["scheme"], la["kind"]) for la in report["layers"]] == [
        ("0", "km(k=4)", "CodebookLinear"), ("2", "float", "Linear"),
        ("1", "km(k=16)", "CodebookLinear"),
    ]  # fmt: skip
    left = report["layers"][1]
    assert (left["file_nbytes"], left["bits_per_weight"]) == (64 * 64 * 4, 32)
    assert report["sizes"]["other_nbytes"] == 3 * 64 * 4
    assert report["chosen_trial"] is None


def test_weights_left_in_float_are_listed(results: dict[str, TuneResult], tmp_path: Path) -> None:
    assert written(tmp_path, results["left in float"])["result"]["left_float"] == [
        {
            "name": "encoder.in_proj_weight",
            "nbytes": 123_456,
            "reason": "no candidate",
            "reachable": True,
        },
        {
            "name": "<b>tail</b>",
            "nbytes": 9_000,
            "reason": "k above the values & more",
            "reachable": False,
        },
    ]


def test_the_recipe_is_kept_as_it_was(results: dict[str, TuneResult], tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_bytes("# ü <b>\r\nversion: 1\n\n".encode())
    report = written(tmp_path, results["passed"], recipe=recipe)
    assert report["recipe"] == {"name": "small.yaml", "text": "# ü <b>\r\nversion: 1\n\n"}


def test_a_write_that_fails_leaves_the_old_report(
    results: dict[str, TuneResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_report(tmp_path, results["passed"])
    before = [path.read_bytes() for path in paths]

    def full_disk(*_: Any) -> NoReturn:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_report(tmp_path, results["missed"])
    assert [path.read_bytes() for path in paths] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
