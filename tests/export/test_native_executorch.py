"""Programs for ExecuTorch whose codebook layers are operators of ours, in torch and there."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from tests.export.reading import Attention, Functions, Tied, coded
from vq_plugin.export.executorch import coded_program
from vq_plugin.export.runtimes import in_executorch

CHANNELS = vq.PQ(k=16, dim=3, layout="channels")


class Net(nn.Module):
    """Layers with an operator, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 9, padding_idx=3)
        self.channels = nn.Conv2d(9, 32, 3, padding=1, groups=1)
        self.pointwise = nn.Conv2d(32, 24, 1, stride=2)
        self.flat = nn.Conv2d(24, 16, (3, 2), (2, 1), padding=(0, 2), dilation=(1, 2))
        self.mirrored = nn.Conv1d(16, 8, 3, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv1d(8, 8, 1, groups=2)
        self.wide = nn.Linear(8, 40)
        self.again = nn.Linear(8, 40, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        image = self.words(words).movedim(-1, 1)
        features = self.flat(self.pointwise(self.channels(image).relu()).relu())
        places = self.grouped(self.mirrored(features.flatten(2))).mT
        result: Tensor = self.wide(places) + self.again(places)
        return result


@pytest.fixture
def words() -> Tensor:
    return torch.randint(20, (2, 8, 8), generator=torch.Generator().manual_seed(0))


def small_net(scheme: vq.Scheme) -> nn.Module:
    torch.manual_seed(0)
    return vq.compress(Net().eval(), {"channels": CHANNELS, "*": scheme})


@pytest.mark.parametrize(
    ("scheme", "lacking"),
    [
        (vq.PQ(k=7, dim=3, axis="out", scale="row"), ["embedding"]),
        (vq.RQ(k=40, stages=2, dim=4, codebook_dtype="int8"), []),
        (vq.KM(k=7, group=3, codebook_dtype="bfloat16"), []),
        (vq.KM(k=300), ["flat_conv", "linear"]),
    ],
    ids=str,
)
def test_layers_become_operators_that_compute_the_same(
    scheme: vq.Scheme, lacking: list[str], words: Tensor
) -> None:
    small = small_net(scheme)
    program = coded_program(small, words, "native")
    with torch.no_grad():
        torch.testing.assert_close(program.module()(words), small(words))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    ours = {name.split(".")[1] for name in operators if name.startswith("vq_plugin.")}
    kinds = {"embedding", "conv", "flat_conv", "linear"} - set(lacking)
    assert ours == {f"codebook_{kind}" for kind in kinds}
    assert not any(name.startswith("vq.") for name in operators)
    held = {**program.state_dict, **program.constants}
    assert held["grouped._codes"].dtype == torch.uint8


def test_codes_take_four_bits(words: Tensor) -> None:
    program = coded_program(small_net(vq.PQ(k=16, dim=1)), words, "native")
    held = {**program.state_dict, **program.constants}
    codes = {name: value for name, value in held.items() if name.endswith("_codes")}
    assert codes["words._codes"].shape == (1, 20, 5)
    assert codes["wide._codes"].nbytes == 48 * 8 // 2
    assert codes["flat._codes"].nbytes == 16 * 24 * 6 // 2


def test_an_operator_of_no_library(words: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="operator 'fast': it can be 'portable' or 'native'"):
        vq.export_executorch(small_net(vq.KM()), tmp_path / "s.pte", words, operator="fast")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


class TestRuntime:
    """In ExecuTorch's own runtime."""

    @pytest.fixture(autouse=True)
    def _executorch(self) -> None:
        pytest.importorskip("executorch.runtime")

    def test_native_programs_compute_as_the_layers(self, words: Tensor, tmp_path: Path) -> None:
        small = small_net(vq.PQ(k=16, dim=3, scale="row"))
        path = tmp_path / "small.pte"
        vq.export_executorch(small, path, words, operator="native")
        program = in_executorch(path, native=True)
        for batch in (words, words.flip(0)):
            (found,) = program(batch)
            with torch.no_grad():
                torch.testing.assert_close(found, small(batch))
        # A row that the table has not got is an error of the run, not of the process.
        with pytest.raises(RuntimeError, match="failed with error 0x12"):
            program(words + 20)
        (found,) = program(words)
        torch.testing.assert_close(found, small(words).detach())

    def test_tables_and_products_are_torchs_bit_for_bit(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        schemes = (
            "km(k=3,scale=row)",
            "km(k=200,group=7)",
            "pq(k=16,dim=3)",
            "rq(k=20,stages=2,dim=5)",
        )
        tables = nn.ModuleList(nn.Embedding(41, 14) for _ in schemes)

        class Products(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.tables, self.linear = tables, nn.Linear(14, 5)

            def forward(self, rows: Tensor, x: Tensor) -> list[Tensor]:
                return [self.linear(x), *(table(rows) for table in self.tables)]

        chosen = {f"tables.{at}": scheme for at, scheme in enumerate(schemes)}
        small = vq.compress(Products().eval(), {**chosen, "linear": vq.PQ(k=16, dim=4)})
        inputs = torch.randint(41, (3, 4)), torch.randn(2, 14)
        vq.export_executorch(small, tmp_path / "rows.pte", inputs, operator="native")
        found = in_executorch(tmp_path / "rows.pte", native=True)(*inputs)
        program = coded_program(small, inputs, "native").module()
        with torch.no_grad():
            expected = program(*inputs)
        assert all(map(torch.equal, found, expected))

    @pytest.mark.parametrize("model", [Tied, Functions, Attention])
    def test_weights_that_are_read_beside_their_layer_are_decoded(
        self, model: type[nn.Module], words: Tensor, tmp_path: Path
    ) -> None:
        small, rows = coded(model), words[:, 0]
        vq.export_executorch(small, tmp_path / "small.pte", rows, operator="native")
        (found,) = in_executorch(tmp_path / "small.pte", native=True)(rows)
        with torch.no_grad():
            torch.testing.assert_close(found, small(rows))

    def test_portable_programs_compute_as_the_layers(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        small = vq.compress(nn.Sequential(nn.Linear(16, 8), nn.ReLU()).eval(), vq.KM(k=40))
        x = torch.randn(2, 16)
        vq.export_executorch(small, tmp_path / "s.pte", x)
        (found,) = in_executorch(tmp_path / "s.pte")(x)
        torch.testing.assert_close(found, small(x).detach())

    def test_the_library_is_compiled_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = Path(vq.executorch_library())
        built = library.stat().st_mtime_ns
        assert vq.executorch_library() == str(library)
        assert library.stat().st_mtime_ns == built

    def test_a_machine_that_has_no_place_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("VQ_PLUGIN_CACHE", str(tmp_path / "file"))
        with pytest.raises(RuntimeError, match=r"cannot be kept: .*; set VQ_PLUGIN_CACHE"):
            vq.executorch_library()

    def test_a_machine_that_cannot_compile_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VQ_PLUGIN_CACHE", str(tmp_path))
        monkeypatch.setattr(
            "vq_plugin.export.executorch_library.cpp_compiler", lambda user: "/bin/false"
        )
        with pytest.raises(
            RuntimeError, match="library for ExecuTorch does not compile: /bin/fals"
        ):
            vq.executorch_library()
        assert not [file for file in tmp_path.rglob("*") if file.is_file()]
