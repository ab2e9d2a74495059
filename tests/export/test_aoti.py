"""AOTInductor packages: what they compute, what they hold, and what is refused."""

import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.nn import coded_weights

# Quick to compile, not to run.
QUICK = {
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "aot_inductor.precompile_headers": False,
}


@pytest.fixture
def small() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64))
    return vq.compress(model, {"0": vq.KM(k=16), "3": vq.PQ(k=16, dim=4)})


@pytest.fixture
def value() -> Tensor:
    return torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_packages_hold_codes_whatever_is_frozen(
    small: nn.Module, value: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The usual one is shared by all processes.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "small.pt2"
    small.train()
    with torch._inductor.config.patch({**QUICK, "freezing": True}):
        vq.export_aoti(small, path, value[:1])
    assert all(module.training for module in small.modules())
    loaded = torch._inductor.aoti_load_package(str(path))
    small.eval()
    for batch in (value, value[:1], torch.cat([value, value])):
        with torch.no_grad():
            torch.testing.assert_close(loaded(batch), small(batch))
    with zipfile.ZipFile(path) as archive:
        held = b"".join(archive.read(name) for name in archive.namelist())
        entries = archive.infolist()
    # torch packs the text of its source as it is, of which a tenth is left.
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_DEFLATED}
    assert path.stat().st_size < 0.5 * sum(entry.file_size for entry in entries)
    # The same bytes whenever they are packed.
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    for layer in coded_weights(small).values():
        assert layer._codes.numpy().tobytes() in held
    # Tables for debuggers are larger than all else of a small model.
    assert b".debug_line" not in held


@pytest.mark.parametrize(
    ("name", "message"),
    [("small.onnx", "end in .pt2"), ("missing/small.pt2", "folder does not exist")],
)
def test_files_that_cannot_be(
    name: str, message: str, small: nn.Module, value: Tensor, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        vq.export_aoti(small, tmp_path / name, value)
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_not_compressed(small: nn.Module, value: Tensor, tmp_path: Path) -> None:
    graph = torch.export.export(small.eval(), (value,)).module()
    with pytest.raises(ValueError, match="an exported graph has no layers"):
        vq.export_aoti(graph, tmp_path / "s.pt2", value)
    with pytest.raises(ValueError, match="no codebook weights"):
        vq.export_aoti(nn.Conv2d(8, 4, 1), tmp_path / "s.pt2", value)
    with pytest.raises(TypeError, match="the model is a str"):
        vq.export_aoti("model", tmp_path / "s.pt2", value)  # type: ignore[arg-type]


def test_examples_that_do_not_run(small: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "s.pt2").write_bytes(b"older")
    with pytest.raises(ValueError, match="does not run on the example"):
        vq.export_aoti(small, tmp_path / "s.pt2", torch.zeros(1, 9, 4, 4))
    assert (tmp_path / "s.pt2").read_bytes() == b"older"


def test_a_machine_without_a_compiler(small: nn.Module, value: Tensor, tmp_path: Path) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(RuntimeError, match=r"install a compiler .*no-such-compiler"),
    ):
        vq.export_aoti(small, tmp_path / "s.pt2", value)
    assert not (tmp_path / "s.pt2").exists()
