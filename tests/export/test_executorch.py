"""Programs for ExecuTorch of its own operators, as it gets them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.export.executorch import coded_program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.channels = nn.Conv1d(8, 16, 3)
        self.flat = nn.Conv1d(16, 16, 1)
        self.out = nn.Linear(16, 5)

    def forward(self, words: Tensor) -> Tensor:
        features = self.flat(self.channels(self.words(words).mT))
        result: Tensor = self.out(features.mT)
        return result


@pytest.fixture
def words() -> Tensor:
    return torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "scheme", [vq.PQ(k=16, dim=4), vq.KM(k=40, scale="row"), vq.PQ(k=8, dim=2, axis="out")], ids=str
)
def test_codes_are_bytes_and_operators_torchs(scheme: vq.Scheme, words: Tensor) -> None:
    channels = vq.PQ(k=16, dim=4, layout="channels")
    small = vq.compress(Net(), {"channels": channels, "*": scheme})
    program = coded_program(small, words)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(words), small.eval()(words))
    held = {**program.state_dict, **program.constants}
    codes = [value for name, value in held.items() if name.endswith("_codes")]
    assert [value.dtype for value in codes] == [torch.uint8] * 4
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any(name.startswith("vq.") for name in operators)
    assert "aten.bmm.default" in operators


def test_a_machine_without_executorch(
    words: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vq_plugin.export.extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'vq-plugin\[executorch\]'"):
        vq.export_executorch(Net(), tmp_path / "s.pte", words)
    assert list(tmp_path.iterdir()) == []
