"""What becomes of codes when a converted program is exported, saved, compiled and packaged."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import vq_plugin as vq

SCHEMES = {"features.0": vq.KM(k=16), "classifier.0": vq.PQ(k=16, dim=4), "*": vq.KM(k=16)}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Flatten())
        self.classifier = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(value))


@pytest.fixture
def value():
    return torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def small(convert, value):
    torch.manual_seed(0)
    return convert(Net().eval(), SCHEMES, value)


@pytest.fixture
def program(small, value):
    return torch.export.export(small, (value,))


def integers(tensors) -> int:
    return sum(each.nbytes for each in tensors if not each.is_floating_point())


@pytest.mark.usefixtures("by_codes")
def test_codes_stay_integers(program, small, value):
    assert torch.equal(program.module()(value), small(value))
    held = [*program.state_dict.values(), *program.constants.values()]
    floats = sum(each.nbytes for each in held if each.is_floating_point())
    weights = 128 * 64 * 9 + 512 * 512 + 10 * 512
    assert integers(held) <= weights / 2
    # Codebooks and biases.
    assert floats < weights
    assert any(str(node.target).startswith("vq.") for node in program.graph.nodes)


@pytest.mark.usefixtures("by_codes")
def test_a_saved_program(program, small, value, tmp_path):
    torch.export.save(program, tmp_path / "small.pt2")
    torch.export.save(torch.export.export(Net(), (value,)), tmp_path / "float.pt2")
    again = torch.export.load(tmp_path / "small.pt2")
    assert torch.equal(again.module()(value), small(value))
    codes = {name: each.dtype for name, each in again.constants.items()}
    assert codes
    assert not any(dtype.is_floating_point for dtype in codes.values())
    sizes = [(tmp_path / name).stat().st_size for name in ("small.pt2", "float.pt2")]
    assert sizes[0] < sizes[1] / 3


@needs_compiler
@pytest.mark.parametrize(("k", "bits"), [(2, 1), (4, 2), (16, 4), (64, 8)])
def test_tables_take_a_part_of_a_byte(k, bits, tmp_path):
    table = vq.compress(nn.Sequential(nn.Embedding(300, 24)).eval(), vq.KM(k=k))
    rows = torch.randint(300, (2, 7))
    program = torch.export.export(table, (rows,))
    assert integers(program.constants.values()) == 300 * 24 * bits // 8
    torch.export.save(program, tmp_path / "table.pt2")
    again = torch.export.load(tmp_path / "table.pt2").module()
    with torch.no_grad():
        for run in (again, torch.compile(table)):
            assert torch.equal(run(rows), table(rows))


@needs_compiler
def test_a_compiled_program(small, value):
    with torch.no_grad():
        assert torch.allclose(torch.compile(small)(value), small(value), atol=1e-5)


def _holds(path: Path, tensor: torch.Tensor) -> bool:
    wanted = tensor.numpy().tobytes()[:64]
    with zipfile.ZipFile(path) as archive:
        return any(wanted in archive.read(name) for name in archive.namelist())


@needs_compiler
def test_packages_and_freezing(program, small, value, tmp_path):
    """Freezing decodes convolutions: if that changes, the table in docs/torchao.md has to."""
    sizes = {}
    for freezing in (False, True):
        path = tmp_path / f"{freezing}.pt2"
        with torch.no_grad(), torch._inductor.config.patch(freezing=freezing):
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
            packaged = torch._inductor.aoti_load_package(str(path))
            assert torch.allclose(packaged(value), small(value), atol=1e-5)
        sizes[freezing] = path.stat().st_size
        assert _holds(path, program.constants["classifier.0._codes"])
        assert _holds(path, program.constants["features.0._codes"]) is not freezing
    convolution, linear = 4 * 128 * 64 * 9, 4 * 512 * 512
    grown = sizes[True] - sizes[False]
    assert 0.5 * convolution < grown < linear / 2


PROGRAM = """
import sys, torch._inductor.codecache, vq_plugin.ops
packaged = torch._inductor.aoti_load_package(sys.argv[1])
torch.save(packaged(torch.load(sys.argv[2])), sys.argv[3])
"""


@needs_compiler
def test_a_package_in_another_process(program, small, value, tmp_path):
    paths = [str(tmp_path / name) for name in ("small.pt2", "value.pt", "result.pt")]
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=paths[0])
    torch.save(value, paths[1])
    subprocess.run([sys.executable, "-c", PROGRAM, *paths], check=True, capture_output=True)
    assert torch.allclose(torch.load(paths[2]), small(value), atol=1e-5)
