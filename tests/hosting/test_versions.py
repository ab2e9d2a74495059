"""Releases of hosts that lack what this package needs of them: errors that say which serve."""

import importlib
import sys

import pytest


def imported_without(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports a package anew where there is no such module."""
    for name in list(sys.modules):
        if name == package or name.startswith(f"{package}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    importlib.import_module(package)


def test_a_torch_without_torch_ao(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"torch 2\.10 to 2\.15 have.*use vq_plugin\.torchao"):
        imported_without("torch.ao.quantization.quantize_fx", "vq_plugin.torch_ao", monkeypatch)


def test_a_torchao_that_names_things_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    annotations = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer"
    with pytest.raises(ImportError, match=r"works with torchao 0\.18.*torchao==0\.18"):
        imported_without(annotations, "vq_plugin.torchao", monkeypatch)
