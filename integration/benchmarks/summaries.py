"""The tables of docs/benchmarks.md: one a question, made from what the published runs printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean

from integration.benchmarks.published import Row, published

NETWORKS = {
    "fashion_mnist_cnn": "Fashion-MNIST CNN",
    "lenet5": "LeNet-5",
    "lenet_300_100": "LeNet-300-100",
    "resnet20": "ResNet-20",
}
ZOO = {
    "efficientnet_lite0": "EfficientNet-Lite0, ImageNet",
    "minilm": "all-MiniLM-L6-v2",
    "speaker_encoder": "speaker encoder of resemblyzer",
    "crepe_tiny": "CREPE tiny, pitch",
    "text_recognition": "text recognition of EasyOCR",
    "mtcnn": "MTCNN, faces",
    "voice_activity": "Silero VAD, speech or not",
}
# Columns, and how the settings begin whose best row stands there.
ZOO_SETTINGS = {
    "`KM(k=16)`": ("ours KM(16)",),
    "calibrated": ("ours KM(16), calibrated",),
    '`"auto"`': ("ours auto, calibrated",),
    '`"small"`': ("ours small, calibrated",),
    "`tune`": ("ours tuned at 1 %",),
    "coremltools": ("coremltools",),
    "torch.ao int8": ("torch.ao", "torchao"),
}
SPEEDS = {
    "PQ k=16 dim=4": "`pq(k=16,dim=4)`",
    "PQ k=16 dim=4, fast": "`pq(k=16,dim=4)`, fast",
    "PQ k=256 dim=8 codebooks=tensor": "`pq(k=256,dim=8,codebooks=tensor)`",
    "KM k=16": "`km(k=16)`",
    "KM k=16, fast": "`km(k=16)`, fast",
    "torch.ao int8 dynamic": "torch.ao int8 dynamic",
}
MACHINES = {"avx512": "AVX-512", "avx2": "AVX2", "scalar": "plain C++"}


def rate_rows(network: str, by: str, calibrated: bool = False) -> list[Row]:
    """What one contender measured on one network, without any training."""
    return [
        row
        for row in published(f"rate_accuracy_{network}").table("")
        if row["by"].startswith(by) and bool(row["calibrated"]) == calibrated
    ]


def whole_files(network: str) -> dict[str, list[Row]]:
    """The last stage of every contender: one row a seed."""
    rows = published(f"trained_{network}").table("")
    last = {row["by"]: row["stage"] for row in rows}
    return {by: [r for r in rows if (r["by"], r["stage"]) == (by, last[by])] for by in last}


def average(rows: Iterable[Row], column: str) -> float:
    """Mean of one column."""
    return mean(float(row[column]) for row in rows)


def _rate() -> str:
    contenders = {
        "vq_plugin": ("vq_plugin", False),
        "vq_plugin, calibrated": ("vq_plugin", True),
        "coremltools": ("coremltools", False),
        "torchao": ("torchao", False),
    }

    def smallest(network: str, by: str, calibrated: bool) -> str:
        held = [r for r in rate_rows(network, by, calibrated) if float(r["loss (tuning)"]) <= 1]
        if not held:
            return "–"
        best = max(held, key=lambda row: float(row["layer rate"]))
        return f"{float(best['layer rate']):.1f}x ({best['loss (test)']})"

    networks = {**NETWORKS, "digits": "CNN on digits"}
    rows = [
        [name, *(smallest(network, *who) for who in contenders.values())]
        for network, name in networks.items()
    ]
    return _markdown(["network", *contenders], rows)


def _calibration() -> str:
    rows = [
        [
            name,
            f"`{row['schemes'].replace(' + ', '` + `')}`",
            f"{float(row['layer rate']):.1f}x",
            row["plain"],
            f"{mean(map(float, row['calibrated'].split())):.2f}",
        ]
        for network, name in (("fashion_mnist_cnn", "CNN"), ("resnet20", "ResNet-20"))
        for row in published(f"calibrated_{network}").table("")
    ]
    return _markdown(["network", "schemes", "rate", "plain fit", "calibrated"], rows, text=2)


def _whole_files() -> str:
    def cell(rows: Sequence[Row]) -> str:
        if not rows:
            return "–"
        size, rate, loss = (average(rows, key) for key in ("bytes", "rate", "loss (test)"))
        return f"{size / 1e3:.1f} kB, {rate:.0f}x ({loss:.2f})"

    who = ("vq_plugin", "Deep Compression", "coremltools")
    rows = [
        [name, *(cell(whole_files(network).get(by, [])) for by in who)]
        for network, name in NETWORKS.items()
    ]
    return _markdown(["network", *who], rows)


def _tuning() -> str:
    tables = [
        {row["method"]: row for row in published(f"tuning_{network}").table(network)}
        for network in ("fashion_mnist_cnn", "resnet20")
    ]

    def cells(row: Row) -> list[str]:
        return [f"{row['file rate']}x ({row['loss (test) %']})", row["evaluations"]]

    rows = [[method, *cells(tables[0][method]), *cells(tables[1][method])] for method in tables[0]]
    return _markdown(["method", "CNN", "evaluations", "ResNet-20", "evaluations"], rows)


def _inc() -> str:
    rows = published("inc").table("The smallest folder")
    methods = dict.fromkeys(row["method"] for row in rows)
    body = []
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        body.append([
            method,
            f"{average(own, 'folder bytes') / 1e3:.0f} kB",
            f"{average(own, 'folder rate'):.1f}x",
            f"{average(own, 'evaluations'):.0f}",
            f"{average(own, 'loss (test) %'):.2f}",
        ])  # fmt: skip
    return _markdown(["candidates", "folder", "rate", "evaluations", "loss (test) %"], body)


def speeds(machine: str) -> dict[str, Row]:
    """Times as fast as float32 by layer, of a 4096x4096 layer just called, on two threads."""
    rows = published("linear").table(f"4096x4096, 2 threads, warm, {machine}")
    return {row["layer"]: row for row in rows}


def _speed() -> str:
    tables = {machine: speeds(machine) for machine in MACHINES}
    rows = [
        [name, *(_both(table[layer]) if layer in table else "–" for table in tables.values())]
        for layer, name in SPEEDS.items()
    ]
    return _markdown(["layer", *MACHINES.values()], rows)


def _both(row: Row) -> str:
    return f"{float(row['batch 1']):.1f} / {float(row['batch 32']):.1f}"


def _convolutions() -> str:
    columns = ["float32 ms", "PQ k=16 dim=4", "PQ fast", "KM k=16", "KM fast"]
    rows = [
        [f"{r['input']} → {r['outputs']}, {r['kernel']}, batch {r['images']}", *map(r.get, columns)]
        for r in published("conv").table("nn.Conv2d float32 / layer, 2 threads, avx512")
    ]
    return _markdown(["convolution", *columns], rows)


def _models() -> str:
    columns = ["file MB", "latency ms", "dense ms", "dense MB", "process MB"]
    rows = [
        [f"{name}, {row['weights']}", *map(row.get, columns)]
        for name in ("VGG-16", "Fashion-MNIST CNN")
        for row in published("models").table(name)
    ]
    return _markdown(["model", *columns], rows)


def _whole_vgg() -> str:
    columns = ["milliseconds", "ratio", "weights MB"]
    rows = [
        [row["weights"], *map(row.get, columns)]
        for row in published("vgg16").table("VGG-16, batch 1, 1 thread")
    ]
    return _markdown(["VGG-16", *columns], rows)


def fits() -> list[tuple[str, str, float, float]]:
    """What was fitted, by whom, seconds, and squared error over ours."""
    run, rows = published("fit"), []
    for what, title, k in (
        ("KM k=4", "KM on 4096x1024", "4"),
        ("KM k=16", "KM on 4096x1024", "16"),
        ("KM k=256", "KM on 4096x1024", "256"),
        ("PQ k=16, dim 4", "PQ k=16", None),
        ("RQ k=256, 2 stages", "RQ k=256", None),
    ):
        for row in run.table(title):
            who = row["contender"].replace(" per subspace", "").replace("(n_init=1)", "")
            if row.get("k") == k and not who.endswith("float32 codebook"):
                rows.append((what, who, float(row["seconds"]), float(row["SSE / ours"])))
    return rows


def _fit() -> str:
    rows = [[what, who, f"{s:.2f}", f"{error:.4f}"] for what, who, s, error in fits()]
    return _markdown(["fit", "by", "seconds", "squared error / ours"], rows, text=2)


def _files() -> str:
    columns = ["kept", "packed kB", "file kB", "save MB/s", "load MB/s"]
    table = published("files").table("Files of")
    rows = [[f"`{row['scheme']}`", *map(row.get, columns)] for row in table]
    return _markdown(["scheme", *columns], rows)


def _promises() -> str:
    plain, sure = published("tuning_confidence_digits").table("digits")
    kills = published("kill_and_resume").table("Searches")
    ended = published("kill_releases").table("Kills")
    releases = published("compatibility").table("Releases")
    host = published("host_tests").table("Test files")[-1]
    workers = published("workers").table("fashion_mnist_cnn")
    lost = sum(int(row["lost"]) + int(row["repeated"]) for row in kills)
    rows = [
        ["a model accepted with 95 % confidence breaks the budget in truth",
         f"{sure['beyond the budget']} of {sure['accepted']} (without a confidence "
         f"{plain['beyond the budget']} of {plain['accepted']})", "tuning_confidence_digits"],
        ["evaluations lost or repeated after "
         f"{sum(int(row['killed']) for row in kills)} kills", str(lost), "kill_and_resume"],
        [f"no whole release after {len(ended)} kills of `tune`, `compress` and `export`",
         str(sum(row["whole"] == "?" for row in ended)), "kill_releases"],
        ["different files from one process, two, and a Dask cluster",
         str(sum(row["same file"] != "yes" for row in workers)), "workers"],
        [f"failures of our tests with {len(releases)} releases of INC",
         str(sum(int(row["failed"]) for row in releases)), "compatibility"],
        [f"of {host['passed']} tests of INC's own, other outcomes with the plugin",
         str(len(published("host_tests").table("Tests with another outcome"))), "host_tests"],
    ]  # fmt: skip
    linked = [[what, found, f"[{run}](benchmarks/{run}.txt)"] for what, found, run in rows]
    return _markdown(["what", "found", "run"], linked, text=3)


def _zoo() -> str:
    def nbytes(row: Row) -> int:
        return int(str(row["bytes"]).replace(",", ""))

    def cell(rows: list[Row], whole: int) -> str | None:
        measured = [row for row in rows if row["agreement %"]]
        holding = [row for row in measured if float(row["agreement %"]) >= 99]
        if not measured:
            return None
        if holding:
            best = min(holding, key=nbytes)
        else:
            best = max(measured, key=lambda row: float(row["agreement %"]))
        return f"{whole / nbytes(best):.1f}x ({best['agreement %']})"

    rows = []
    for network, name in ZOO.items():
        run = published(f"zoo_{network}").table(network)
        found = [
            # A whole name, or the beginning of several.
            [row for row in run if row["setting"] in starts]
            or [row for row in run if row["setting"].startswith(starts)]
            for starts in ZOO_SETTINGS.values()
        ]
        whole = next(nbytes(row) for row in run if row["setting"] == "float32")
        rows.append([name, *(cell(some, whole) for some in found)])
    return _markdown(["network", *ZOO_SETTINGS], rows)


def _nncodec() -> str:
    plain = ("vq_plugin, uniform", "vq_plugin, vectors", "vq_plugin, preset")
    contenders: dict[str, Callable[[str], bool]] = {
        "vq_plugin": lambda by: by in plain,
        "vq_plugin, calibrated": lambda by: (
            by.removesuffix(", calibrated") in plain and by not in plain
        ),
        "nncodec, as it comes": lambda by: by == "nncodec, as it comes",
        "nncodec, best of its ways": lambda by: by.startswith("nncodec"),
    }

    def smallest(rows: list[Row], wanted: Callable[[str], bool]) -> str:
        held = [row for row in rows if wanted(row["by"])]
        if not held:
            return "–"
        best = max(held, key=lambda row: float(row["rate"]))
        return f"{float(best['rate']):.1f}x ({best['loss (test)']})"

    lines, run = [], published("nncodec")
    for network, title in NETWORKS.items():
        if f"## {network}, nothing" not in run.text:
            continue
        rows = run.table(f"{network}, nothing trained")
        for budget in dict.fromkeys(row["budget"] for row in rows):
            same = [row for row in rows if row["budget"] == budget]
            cells = [smallest(same, wanted) for wanted in contenders.values()]
            lines.append([title, budget, *cells])
    return _markdown(["network", "points", *contenders], lines)


SUMMARIES: dict[str, Callable[[], str]] = {
    "rate": _rate,
    "calibration": _calibration,
    "whole_files": _whole_files,
    "nncodec": _nncodec,
    "zoo": _zoo,
    "tuning": _tuning,
    "inc": _inc,
    "speed": _speed,
    "convolutions": _convolutions,
    "models": _models,
    "whole_vgg": _whole_vgg,
    "fit": _fit,
    "files": _files,
    "promises": _promises,
}


def _markdown(header: list[str], rows: Iterable[Sequence[str | None]], text: int = 1) -> str:
    """A table whose first columns hold text and the others numbers."""
    rule = ["---"] * text + ["---:"] * (len(header) - text)
    lines = [header, rule, *([cell or "–" for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
