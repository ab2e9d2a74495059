"""A page that reads drawn digits by the compressed digits model, in onnxruntime-web.

    python -m integration.browser.build FOLDER
    python -m http.server --directory FOLDER

The folder has all that the page needs. onnxruntime-web is taken from npm once, at one version, and
kept with the trained models.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from shutil import copyfile

import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.atomic import write_atomically
from vq_plugin.select import Schemes
from vq_plugin.workloads import digits
from vq_plugin.workloads.cache import cache_dir

RUNTIME = "onnxruntime-web@1.30.0"
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
_SCHEMES: Schemes = {
    "classifier.0": "pq(k=16,dim=8,axis=out,codebook_dtype=int8)",
    nn.Conv2d: "km(k=16)",
    "*": "km(k=4)",
}


def build(folder: Path) -> None:
    """Writes the page, the model twice and the runtime into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model, example = digits.model(), digits.calibration()[0]
    small = vq.compress(model, _SCHEMES, digits.calibration())
    vq.export_onnx(small, folder / "compressed.onnx", example)
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model, (example,), folder / "float.onnx", dynamic_shapes=batch, opset_version=21,
        external_data=False, verbose=False,
    )  # fmt: skip
    copyfile(Path(__file__).with_name("page.html"), folder / "index.html")
    with tarfile.open(_package()) as package:
        for name in _RUNTIME_FILES:
            inside = package.extractfile(f"package/dist/{name}")
            assert inside is not None
            (folder / name).write_bytes(inside.read())


def _package() -> Path:
    """The package of the runtime; RuntimeError if npm does not give the one that is meant."""
    path = cache_dir() / f"{RUNTIME}.tgz"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                ["npm", "pack", "--silent", RUNTIME], cwd=folder, check=True, capture_output=True
            )
            (fresh,) = Path(folder).iterdir()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, fresh.read_bytes())
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != _SHA512:
        raise RuntimeError(f"{path} is not {RUNTIME}: delete it to get it again")
    return path


if __name__ == "__main__":
    build(Path(sys.argv[1]))
