"""What CONTRIBUTING.md says a change takes: a user's schemes and layers need no edit of ours."""

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin import reader
from vq_plugin.nn import slots
from vq_plugin.schemes import registry

PACKAGE = Path(vq.__file__).parent
PAGE = PACKAGE.parent / "CONTRIBUTING.md"
SHIPPED = {"KM", "PQ", "RQ", "Binary", "Uniform"}


class Scores(nn.Module):
    """A layer that nobody ships: its weight is ``(in, out)``, and not called so."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(24, 40))

    def forward(self, value: Tensor) -> Tensor:
        return value @ self.kernel


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 24), nn.ReLU(), Scores()).eval()


@pytest.fixture
def scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[vq.Scheme]:
    """The scheme of the page, in a module of its own."""
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "users_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("users_module")
    yield module.Ternary(share=0.5)
    del sys.modules["users_module"], registry.SCHEMES["ternary"], registry._FITS[module.Ternary]


@pytest.fixture
def slot() -> Iterator[None]:
    vq.register_slot(
        Scores, "kernel", view=(1, 0), inputs=slots.registered_slots()[nn.Linear][0].inputs
    )
    yield
    del slots._KINDS[Scores]
    slots._FOUND.clear()


def test_a_scheme_in_a_users_module_works_everywhere(scheme: vq.Scheme, tmp_path: Path) -> None:
    assert vq.parse_scheme(str(scheme)) == scheme == vq.scheme_from_dict(scheme.to_dict())
    torch.manual_seed(0)
    model, inputs = network()[:1], torch.randn(64, 32)
    small = vq.compress(model, scheme, calibration=[inputs])
    assert set(small[0].codes.unique().tolist()) == {0, 1, 2}
    (row,) = vq.summary(small).rows
    assert row.scheme == "ternary(share=0.5)"
    assert row.nbytes == small[0].geometry.nbytes == 24 * 32 * 2 / 8 + 3 * 2
    vq.save(small, tmp_path / "model.vq")
    loaded = vq.load(tmp_path / "model.vq", network()[:1])
    assert torch.equal(loaded(inputs), small(inputs))
    assert loaded[0].scheme == scheme
    layer = reader.open_file(tmp_path / "model.vq").layers["0"]
    assert layer.scheme == str(scheme)
    assert torch.equal(torch.from_numpy(layer.decode()), small[0].weight.detach())
    result = vq.tune(
        model,
        lambda candidate: (
            1 / (1 + float((candidate(inputs) - model(inputs)).detach().abs().mean()))
        ),
        vq.LossBudget(relative=0.9),
        candidates={"*": [scheme, vq.KM(k=16)]},
        max_trials=2,
    )
    assert result.passed
    assert result.schemes == {"0": scheme}


@pytest.mark.usefixtures("slot")
def test_a_layer_of_a_users_own_works_everywhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = network(), torch.randn(64, 32)
    small = vq.compress(model, vq.KM(k=8), calibration=[inputs])
    assert [row.name for row in vq.summary(small).rows] == ["0", "2"]
    assert vq.summary(small).left == ()
    vq.finetune(small, [inputs], teacher=model, epochs=1)
    vq.save(small, tmp_path / "model.vq")
    assert torch.equal(vq.load(tmp_path / "model.vq", network())(inputs), small(inputs))
    decoded = vq.open_file(tmp_path / "model.vq").layers["2"].decode()
    assert torch.equal(decoded, small[2].kernel.detach())
    assert decoded.unique().numel() <= 8


def names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.name for node in ast.walk(tree) if isinstance(node, ast.alias)
    }


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_only_their_own_files_exports_and_defaults_name_the_shipped_schemes() -> None:
    found = {place for place, tree in modules() if names(tree) & SHIPPED}
    own = {"schemes/__init__.py", "schemes/preset.py", "schemes/vector.py", "fit/schemes.py"}
    exports = {"__init__.py", "inc/__init__.py"}
    # What is done unless another scheme is asked for.
    defaults = {"inc/config.py", "tuning/space.py"}
    # Learned steps are whole numbers of one length: as what they go into layers and files.
    learned = {"training/latent.py"}
    assert found == own | exports | defaults | learned


def test_nobody_asks_which_of_them_a_scheme_is() -> None:
    """Neither by isinstance, nor by ``is``, nor by the name of its method."""
    asking = {
        f"{place}:{node.lineno}"
        for place, tree in modules()
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.Call)
            and "isinstance" in ast.unparse(node.func)
            and names(node) & SHIPPED
        )
        or (
            isinstance(node, ast.Compare)
            and (".method" in ast.unparse(node) or names(node) & SHIPPED)
        )
        or (isinstance(node, ast.MatchClass) and names(node.cls) & SHIPPED)
    }
    assert asking == set()


def test_no_room_knows_a_host() -> None:
    imports = {
        (place, name)
        for place, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name,)
        for host in ("torch_ao", "inc")
        if name.startswith(f"vq_plugin.{host}") and not place.startswith(f"{host}/")
    }
    assert imports == set()
