"""Files: bit for bit what was saved, or a ``CheckpointError``."""

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.checkpoint import read_header


class Net(nn.Module):
    """Every kind of layer, a norm with buffers, and layers left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12, padding_idx=0)
        self.conv1 = nn.Conv1d(12, 8, 3, padding="same", padding_mode="circular")
        self.norm = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv2d(1, 6, 3, groups=1, bias=False)
        self.conv3 = nn.Conv3d(1, 2, (1, 3, 3))
        self.fc = nn.Linear(2 * 5 * 4 * 6, 10)
        self.left = nn.Linear(10, 3)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("flags", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(self.embed(x).transpose(1, 2))).relu()  # 8 x 6
        x = self.conv2(x.unsqueeze(1))  # 6 x 6 x 4
        x = torch.nn.functional.pad(x, (1, 1, 1, 1))  # 6 x 8 x 6
        x = self.conv3(x[:, :, :7].unsqueeze(1)).flatten(1)  # 2 x 6 x 5 x 4
        return self.left(self.fc(x))


INDEX = torch.arange(18).reshape(3, 6)

SCHEMES: list[vq.Scheme] = [
    vq.KM(k=5),
    vq.KM(k=4, group=3),
    vq.KM(k=3, scale="row", codebook_dtype="bfloat16", keep_zeros=True),
    vq.PQ(k=6, dim=4),
    vq.PQ(k=6, dim=5, axis="out", scale="row"),
    vq.PQ(k=9, dim=3, codebooks="tensor", codebook_dtype="float32"),
    vq.RQ(k=3, stages=2),
    vq.RQ(k=4, stages=3, dim=4, axis="out", codebooks="tensor"),
    vq.Binary(),
    vq.Binary(scale="row"),
]


def compressed(scheme: vq.Scheme | None = None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return vq.compress(Net(), {"left": None, "*": scheme or vq.KM(k=5)})


def assert_same_state(one: nn.Module, two: nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert list(first) == list(second)
    for key, value in first.items():
        assert value.dtype == second[key].dtype, key
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_loaded_model_is_the_saved_one(scheme: vq.Scheme, training: bool, tmp_path: Path) -> None:
    small = compressed(scheme)
    small(INDEX)  # running statistics move
    small.eval()
    size = vq.save(small, tmp_path / "m.vq")
    assert size == (tmp_path / "m.vq").stat().st_size
    fresh = Net().train(training)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    again = vq.load(tmp_path / "m.vq", fresh)
    assert all(module.training == training for module in again.modules())
    assert_same_state(small, again)
    again.eval()
    assert torch.equal(again(INDEX), small(INDEX))
    assert again.fc.scheme == scheme
    assert str(vq.summary(again)) == str(vq.summary(small))
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_trained_model_computes_the_same_after_loading(scheme: vq.Scheme, tmp_path: Path) -> None:
    small = compressed(scheme)
    optimizer = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        small(INDEX).square().sum().backward()
        optimizer.step()
    small.eval()
    expected = small(INDEX)
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", Net().eval())
    assert torch.equal(again(INDEX), expected)
    # Saving changed nothing, and a second generation is the first.
    assert torch.equal(small(INDEX), expected)
    vq.save(again, tmp_path / "again.vq")
    assert (tmp_path / "again.vq").read_bytes() == (tmp_path / "m.vq").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scheme", [SCHEMES[2], SCHEMES[4], SCHEMES[5]], ids=str)
def test_other_dtypes_round_trip(dtype: torch.dtype, scheme: vq.Scheme, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for small in (vq.compress(Net().to(dtype), scheme), vq.compress(Net(), scheme).to(dtype)):
        small.eval()
        vq.save(small, tmp_path / "m.vq")
        again = vq.load(tmp_path / "m.vq", Net().to(dtype).eval())
        assert torch.equal(again(INDEX), small(INDEX))


def test_three_bit_codes_take_three_bits_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = vq.compress(nn.Linear(512, 512, bias=False), vq.KM(k=8))
    size = vq.save(small, tmp_path / "m.vq")
    codes = 512 * 512 * 3 // 8
    assert codes < size < codes + 1000
    _, nbytes = read_header(tmp_path / "m.vq")
    assert nbytes == {"codes": codes, "codebooks": 16}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_nbytes_are_the_bytes_in_the_file_or_more_where_codes_are_coded(
    scheme: vq.Scheme, tmp_path: Path
) -> None:
    small = compressed(scheme)
    vq.save(small, tmp_path / "m.vq")
    header, nbytes = read_header(tmp_path / "m.vq")
    for row in vq.summary(small).rows:
        leaves = (f"{row.name}.{leaf}" for leaf in ("codes", "codebooks", "scale"))
        stored = sum(nbytes.get(leaf, 0) for leaf in leaves)
        assert stored < row.nbytes if row.name in header.coded else stored == row.nbytes
    assert sum(nbytes.values()) <= vq.summary(small).nbytes + vq.summary(small).other_nbytes


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    small = compressed()
    for name in ("a", "b"):
        vq.save(small, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_fresh_process_gives_the_same_bytes(tmp_path: Path) -> None:
    script = """
import sys, torch, vq_plugin as vq
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
small = vq.compress(model, {"0": vq.KM(), "*": vq.PQ()}, [torch.randn(4, 3, 8, 8)])
vq.save(small, sys.argv[1])
"""
    digests = set()
    for i, seed in enumerate(("0", "1")):
        path = tmp_path / str(i)
        subprocess.run(
            [sys.executable, "-c", script, str(path)],
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A file with a little of everything, short enough to damage at every byte."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False))
    schemes = {"0": vq.KM(k=3, group=2), "2": vq.PQ(k=4, dim=4, scale="row")}
    small = vq.compress(model, schemes).eval()
    path = tmp_path_factory.mktemp("files") / "m.vq"
    vq.save(small, path)
    return path, small


def float_model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False)).eval()


def assert_refused_or_identical(path: Path, data: bytes, small: nn.Module, what: str) -> None:
    damaged = path.with_suffix(".damaged")
    damaged.write_bytes(data)
    try:
        again = vq.load(damaged, float_model())
    except vq.CheckpointError:
        return
    x = torch.arange(12.0).reshape(2, 6)
    assert torch.equal(again(x), small(x)), what
    assert_same_state(again, small)


def test_a_truncated_file_is_refused(small_file: tuple[Path, nn.Module]) -> None:
    path, _ = small_file
    data = path.read_bytes()
    cut = path.with_suffix(".cut")
    for length in range(0, len(data), 3):
        cut.write_bytes(data[:length])
        with pytest.raises(vq.CheckpointError, match=r"m\.cut"):
            vq.load(cut, float_model())
    cut.write_bytes(data + b"\0")
    with pytest.raises(vq.CheckpointError, match=r"m\.cut"):
        vq.load(cut, float_model())


def test_no_single_damaged_byte_goes_unnoticed(small_file: tuple[Path, nn.Module]) -> None:
    path, small = small_file
    data = path.read_bytes()
    for position, old in enumerate(data):
        # A flipped bit; and in the header, letters and digits that still parse.
        others = {old ^ 1, old ^ 0x40, *(b"0123456789IUFB" if chr(old).isalnum() else b"")}
        for new in others - {old}:
            changed = data[:position] + bytes([new]) + data[position + 1 :]
            around = data[max(0, position - 25) : position + 10]
            what = f"byte {position}: {old:#x} -> {new:#x} in {around!r}"
            assert_refused_or_identical(path, changed, small, what)


@settings(max_examples=300)
@given(data=st.data())
def test_damage_of_any_kind_is_refused(
    small_file: tuple[Path, nn.Module], data: st.DataObject
) -> None:
    path, small = small_file
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        end = min(len(content), start + data.draw(st.integers(0, 8)))
        content[start:end] = data.draw(st.binary(max_size=8))
    if bytes(content) != path.read_bytes():
        assert_refused_or_identical(path, bytes(content), small, "mutation")


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(small_file: tuple[Path, nn.Module], data: bytes) -> None:
    path = small_file[0].with_suffix(".noise")
    path.write_bytes(data)
    with pytest.raises(vq.CheckpointError, match=r"m\.noise"):
        vq.load(path, float_model())


Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]


def rewritten(source: Path, target: Path, edit: Edit) -> Path:
    """A well-formed file whose header and tensors were edited."""
    with safe_open(source, "pt") as file:
        header = json.loads(file.metadata()["vq_plugin"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    edit(header, tensors)
    save_file(tensors, target, {"vq_plugin": json.dumps(header)})
    return target


def edits() -> dict[str, Edit]:
    def set_layer(name: str, field: str, value: Any) -> Edit:
        return lambda header, _: header["layers"][name].__setitem__(field, value)

    return {
        "no layers": lambda h, _: h.pop("layers"),
        "layers is a list": lambda h, _: h.update(layers=[]),
        "a layer is a number": lambda h, _: h["layers"].update({"0": 3}),
        "an unknown field": lambda h, _: h.update(extra=1),
        "format is a word": lambda h, _: h.update(format="one"),
        "format is infinite": lambda h, _: h.update(format=float("inf")),
        "format is zero": lambda h, _: h.update(format=0),
        "format is null": lambda h, _: h.update(format=None),
        "checksums is a list": lambda h, _: h.update(checksums=[]),
        "checksums is null": lambda h, _: h.update(checksums=None),
        "aliases is a list": lambda h, _: h.update(aliases=["0.bias"]),
        "an alias to nowhere": lambda h, _: h["aliases"].update({"0.bias": "gone"}),
        "an alias that is a list": lambda h, _: h["aliases"].update({"0.bias": ["gone"]}),
        "codes alias to a float layer": lambda h, _: h["aliases"].update({"0.codes": "1.weight"}),
        "a missing tensor": lambda _, t: t.pop("0.codes"),
        "a changed tensor": lambda _, t: t["1.weight"].add_(1),
        "an added tensor": lambda _, t: t.update(new=torch.zeros(3)),
        "an unknown scheme": set_layer("0", "scheme", "zip(k=3)"),
        "a scheme that is a number": set_layer("0", "scheme", 3),
        "another group": set_layer("0", "scheme", "km(k=3,group=3)"),
        "another axis": set_layer("2", "scheme", "pq(k=4,dim=4,axis=out,scale=row)"),
        "a huge k": set_layer("0", "k", 1 << 62),
        "a negative k": set_layer("0", "k", -3),
        "k is a word": set_layer("0", "k", "three"),
        "k is a float": set_layer("0", "k", 3.0),
        "codes of two dimensions": set_layer("0", "codes", [6, 6]),
        "codes transposed": set_layer("2", "codes", [1, 2, 5]),
        "codes too many": set_layer("0", "codes", [1, 6, 1 << 40]),
        "negative codes": set_layer("0", "codes", [-1, -6, 6]),
        "codes of null": set_layer("0", "codes", None),
        "another shape": set_layer("0", "shape", [6, 5]),
        "shape is a number": set_layer("0", "shape", 36),
        "an unknown dtype": set_layer("0", "dtype", "float128"),
    }


@pytest.mark.parametrize("name", edits())
def test_a_forged_header_is_refused(
    name: str, small_file: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path = rewritten(small_file[0], tmp_path / "forged.vq", edits()[name])
    with pytest.raises(vq.CheckpointError, match=r"forged\.vq"):
        vq.load(path, float_model())


def test_a_header_of_many_brackets_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "m.vq", {"vq_plugin": "[" * 100_000})
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: the header is damaged"):
        vq.load(tmp_path / "m.vq", float_model())


def test_a_newer_format_says_what_to_do(small_file: tuple[Path, nn.Module], tmp_path: Path) -> None:
    def newer(header: dict[str, Any], _: dict[str, Tensor]) -> None:
        header.update(format=99, unheard_of={"x": 1}, layers="otherwise")

    path = rewritten(small_file[0], tmp_path / "m.vq", newer)
    with pytest.raises(vq.CheckpointError, match=r"format 99 is newer .*upgrade"):
        vq.load(path, float_model())


def test_a_plain_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file(float_model().state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(vq.CheckpointError, match="not one that vq_plugin wrote"):
        vq.load(tmp_path / "m.safetensors", float_model())


class Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("write", ["pickle", "torch.save", "torch.save legacy"])
def test_a_pickle_is_refused_and_never_run(write: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "m.vq", tmp_path / "executed"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Trap(marker)))
    else:
        torch.save(Trap(marker), path, _use_new_zipfile_serialization=write == "torch.save")
    with pytest.raises(vq.CheckpointError):
        vq.load(path, float_model())
    with pytest.raises(vq.CheckpointError):
        read_header(path)
    assert not marker.exists()


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        vq.load(tmp_path / "gone.vq", float_model())
    with pytest.raises(OSError, match=r"folder|directory|device|Is a"):
        vq.load(tmp_path, float_model())


def wrong_models() -> dict[str, tuple[Callable[[], nn.Module], str]]:
    def without_fc() -> nn.Module:
        model = Net()
        model.fc1 = model.fc
        del model.fc
        return model

    def replace(**layers: nn.Module) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            model = Net()
            for name, layer in layers.items():
                setattr(model, name, layer)
            return model

        return build

    return {
        "a layer lacks": (without_fc, r"no layer 'fc'; the nearest names are fc1"),
        "another shape": (replace(fc=nn.Linear(240, 11)), r"layer 'fc': .*\(11, 240\)"),
        "another kind": (replace(fc=nn.ReLU()), "layer 'fc' of the model is a ReLU"),
        "kernel of another shape": (replace(conv2=nn.Conv2d(1, 6, 2)), "layer 'conv2'"),
        "no bias": (replace(fc=nn.Linear(240, 10, bias=False)), r"does not fit.*fc\.bias"),
        "a bias too many": (replace(conv2=nn.Conv2d(1, 6, 3)), r"does not fit.*conv2\.bias"),
        "a norm lacks": (replace(norm=nn.Identity()), r"does not fit.*norm\."),
        "a layer too many": (replace(more=nn.Linear(2, 2)), r"does not fit.*more\.weight"),
        "another left layer": (replace(left=nn.Linear(10, 4)), r"does not fit.*left\."),
        "another dtype": (lambda: Net().half(), r"saved as float32.*\.to\(torch\.float32\)"),
        "another norm dtype": (
            replace(norm=nn.BatchNorm1d(8).double()),
            r"'norm\.\w+' was saved as torch\.float32",
        ),
        "compressed already": (lambda: compressed(), "CodebookEmbedding.*fresh float model"),
        "max_norm": (
            replace(embed=nn.Embedding(20, 12, max_norm=1.0)),
            "layer 'embed': .*max_norm",
        ),
    }


@pytest.mark.parametrize("name", wrong_models())
def test_a_model_that_does_not_fit_is_an_error_that_says_where(name: str, tmp_path: Path) -> None:
    vq.save(compressed(), tmp_path / "m.vq")
    build, message = wrong_models()[name]
    with pytest.raises(vq.CheckpointError, match=rf"(?s)m\.vq: .*{message}"):
        vq.load(tmp_path / "m.vq", build())


def test_a_lazy_model_is_an_error(tmp_path: Path) -> None:
    vq.save(vq.compress(nn.Sequential(nn.Linear(4, 4)), vq.KM()), tmp_path / "m.vq")
    with pytest.raises(vq.CheckpointError, match="layer '0'"):
        vq.load(tmp_path / "m.vq", nn.Sequential(nn.LazyLinear(4)))


def test_a_bare_layer_round_trips(tmp_path: Path) -> None:
    small = vq.compress(nn.Linear(8, 4), vq.PQ(k=4))
    vq.save(small, tmp_path / "m.vq")
    assert_same_state(vq.load(tmp_path / "m.vq", nn.Linear(8, 4)), small)


def test_state_that_is_no_tensor_is_an_error(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"step": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    small = vq.compress(nn.Sequential(nn.Linear(4, 4), Extra(4, 4)), {"0": vq.KM()})
    with pytest.raises(ValueError, match=r"'1\._extra_state' holds a dict"):
        vq.save(small, tmp_path / "m.vq")
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_the_format_cannot_hold_is_an_error_that_names_it(tmp_path: Path) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(4, 4)), vq.KM())
    small.register_buffer("phases", torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(ValueError, match="phases"):
        vq.save(small, tmp_path / "m.vq")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_compressed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no codebook layer; compress it first"):
        vq.save(Net(), tmp_path / "m.vq")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.vq"
    vq.save(compressed(seed=0), path)
    first = path.read_bytes()
    # What another process sees at the moment of the replacement: the old file, whole.
    seen: list[bytes] = []

    def disk_full(*_: Any) -> None:
        seen.append(path.read_bytes())
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", disk_full)
        with pytest.raises(OSError, match="no space"):
            vq.save(compressed(seed=1), path)
    assert seen == [first]
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]
    vq.save(compressed(seed=1), path)
    assert path.read_bytes() != first
    assert list(tmp_path.iterdir()) == [path]


def test_parameters_that_share_memory_and_ties_outside_the_codebooks_survive(
    tmp_path: Path,
) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), MyTied(), MyTied())
        model[2].shift = model[1].shift
        model[1].register_buffer("part", model[1].whole[:2])
        return model

    small = vq.compress(build(), {"0": vq.KM()})
    with torch.no_grad():
        small[1].shift.fill_(7)  # type: ignore[index]
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", build())
    assert_same_state(small, again)
    assert again[2].shift is again[1].shift  # type: ignore[index]


class MyTied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.register_buffer("whole", torch.arange(4.0))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("scalar", torch.tensor(2.5, dtype=torch.float64))
