"""A scheme and a layer of a user's own, through every route that the shipped ones go."""

import copy
import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.cli import main
from vq_plugin.nn import coded_weights
from vq_plugin.nn.inputs import Arguments
from vq_plugin.nn.slots import _KINDS
from vq_plugin.recipe import read_recipe
from vq_plugin.schemes import SCHEMES
from vq_plugin.seeded import seeded
from vq_plugin.torch_ao import (
    check_converted,
    get_backend_config,
    get_qconfig_mapping,
    observe_inputs,
)

fx = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")


def fit_ternary(
    matrix: Tensor, scheme: "Ternary", importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Ternary weights of every group of rows (Li et al. 2016, arXiv 1605.04711)."""
    mass = torch.ones_like(matrix) if importance is None else importance
    codes, sizes = [], []
    for rows, masses in zip(matrix.split(scheme.rows), mass.split(scheme.rows), strict=True):
        size = rows.abs()
        large = size > scheme.threshold * size.mean()
        codes.append(torch.where(large, 1 + rows.sign(), 1).to(torch.uint8))
        sizes.append((size * masses * large).sum() / (masses * large).sum().clamp(min=1e-12))
    centers = torch.stack(sizes).unsqueeze(1) * torch.tensor([-1.0, 0.0, 1.0])
    return torch.cat(codes).unsqueeze(0), centers.reshape(1, -1, 1, 3, 1)


@dataclass(frozen=True, repr=False)
class Ternary(vq.Scheme):
    """Derives from no scheme that is shipped."""

    method = "ternary"
    rows: int = 8
    threshold: float = 0.7

    @property
    def k(self) -> int:
        return 3

    def geometry(self, shape: tuple[int, ...]) -> vq.Geometry:
        return self.cut(shape, group=self.rows)

    def pinned(self, centers: Tensor) -> Tensor:
        return centers == 0


@dataclass(frozen=True, repr=False)
class Named(vq.PQ):
    """The product quantization that is shipped, with a field more."""

    method = "named"
    owner: str = "nobody"


class Scores(nn.Module):
    """A product by a parameter that is ``(in, out)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, value: Tensor) -> Tensor:
        return value @ self.kernel + self.bias


def score_inputs(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    yield arguments["value"].reshape(1, -1, arguments["value"].shape[-1]).float()


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    before = dict(SCHEMES), dict(_KINDS)
    vq.register_scheme(fit=fit_ternary)(Ternary)
    vq.register_scheme()(Named)
    vq.register_slot(Scores, "kernel", view=(1, 0), inputs=score_inputs)
    yield
    for registry, content in zip((SCHEMES, _KINDS), before, strict=True):
        registry.clear()
        registry.update(content)


TERNARY = Ternary(rows=6, threshold=0.5)
NAMED = Named(k=8, dim=4, owner="us")
OWN = pytest.mark.parametrize("scheme", [TERNARY, NAMED], ids=str)


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(256, 24) * torch.linspace(0.1, 2, 24)


def net(last: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), last or nn.Linear(32, 6)
    ).eval()


with seeded(0):
    MODELS = pytest.mark.parametrize("last", [None, Scores(32, 6)], ids=["plain", "own layer"])


def error(model: nn.Module, small: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float((small(inputs) - model(inputs)).square().mean())


@OWN
@MODELS
@pytest.mark.parametrize("calibrated", [False, True])
def test_compressed_saved_read_and_listed(
    scheme: vq.Scheme, last: nn.Module | None, calibrated: bool, inputs: Tensor, tmp_path: Path
) -> None:
    small = vq.compress(net(last), scheme, [inputs] if calibrated else None)
    weights = coded_weights(small)
    assert {name: coded.scheme for name, coded in weights.items()} == dict.fromkeys("024", scheme)
    assert [row.name for row in vq.summary(small).rows] == ["0", "2", "4"]
    assert str(scheme) in str(vq.summary(small))
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", net(last))
    assert error(again, small, inputs) == 0
    layers = vq.open_file(tmp_path / "m.vq").layers
    assert torch.equal(layers["0"].decode(), small[0].weight)
    last_weight = small[4].weight if last is None else small[4].kernel
    assert torch.equal(layers["4"].decode(), last_weight)
    output = io.StringIO()
    with redirect_stdout(output):
        assert main(["inspect", str(tmp_path / "m.vq")]) == 0
    assert output.getvalue().count(str(scheme)) == 3


@MODELS
def test_calibration_and_training_lower_the_error(last: nn.Module | None, inputs: Tensor) -> None:
    model = net(last)
    for scheme in (TERNARY, NAMED):
        small = vq.compress(model, scheme)
        plain = error(model, small, inputs)
        assert error(model, vq.compress(model, scheme, [inputs]), inputs) < 0.9 * plain
        vq.finetune(small, inputs.split(32), teacher=model, loss=functional.mse_loss, epochs=2)
        assert error(model, small, inputs) < 0.9 * plain
    # What is pinned stays where it is.
    small = vq.compress(model, TERNARY)
    vq.finetune(small, [inputs], teacher=model, loss=functional.mse_loss)
    assert all(
        bool((coded.codebooks[..., 1, :] == 0).all()) for coded in coded_weights(small).values()
    )


@MODELS
def test_a_search_chooses_among_them(last: nn.Module | None, inputs: Tensor) -> None:
    model = net(last)
    answers = model(inputs).argmax(1)

    def evaluate(small: nn.Module) -> float:
        return float((small(inputs).argmax(1) == answers).double().mean())

    budget = vq.LossBudget(relative=0.3)
    result = vq.tune(model, evaluate, budget, [inputs], candidates=[TERNARY, NAMED], max_trials=3)
    assert result.passed
    assert set(result.schemes.values()) <= {TERNARY, NAMED}
    assert result.schemes.keys() == set("024")


def test_a_recipe_names_them(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"""\
version: 1
model: vq_plugin.workloads.digits:model
quantization:
  calibration: vq_plugin.workloads.digits:calibration
  model_wise:
    scheme: ["{TERNARY}", "{NAMED}", null]
evaluation:
  tuning: vq_plugin.workloads.digits:evaluate
tuning:
  accuracy_criterion: {{relative: 0.05}}
  exit_policy: {{max_trials: 3}}
output: out
""",
        encoding="utf-8",
    )
    read_recipe(tmp_path / "r.yaml")
    assert main(["tune", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "out")]) == 0
    schemes = {layer.scheme for layer in vq.open_file(tmp_path / "out/model.vq").layers.values()}
    assert schemes & {str(TERNARY), str(NAMED)}


@fx
@OWN
def test_fx_holds_the_schemes(scheme: vq.Scheme, inputs: Tensor) -> None:
    backend = get_backend_config()
    prepared = prepare_fx(net(), get_qconfig_mapping(scheme), (inputs,), backend_config=backend)
    observe_inputs(prepared)
    prepared(inputs)
    converted = check_converted(convert_fx(prepared, backend_config=backend), scheme)
    assert error(vq.compress(net(), scheme, [inputs]), converted, inputs) == 0


@fx
@pytest.mark.parametrize(
    "schemes",
    [
        TERNARY,
        {"4": TERNARY},
        {"4.kernel": TERNARY},
        {Scores: TERNARY},
    ],
)
def test_fx_cannot_hold_the_layer_and_the_check_says_so(schemes: Any, inputs: Tensor) -> None:
    backend = get_backend_config()
    model = net(Scores(32, 6))
    prepared = prepare_fx(model, get_qconfig_mapping(schemes), (inputs,), backend_config=backend)
    converted = convert_fx(prepared, backend_config=backend)
    with pytest.raises(ValueError, match=r"4|Scores"):
        check_converted(converted, schemes)


@OWN
@MODELS
def test_inc_holds_both(scheme: vq.Scheme, last: nn.Module | None, inputs: Tensor) -> None:
    host = pytest.importorskip("neural_compressor.torch.quantization")
    inc = pytest.importorskip("vq_plugin.inc")
    settings = {key: value for key, value in scheme.to_dict().items() if key != "method"}
    config = inc.scheme_config(type(scheme))(**settings)
    small = host.quantize(net(last), config, inplace=False)
    assert error(vq.compress(net(last), scheme), small, inputs) == 0
    assert coded_weights(small).keys() == set("024")


@pytest.mark.parametrize("pattern", ["table", "re:.*tab.*"])
def test_a_parameter_that_a_user_names(pattern: str, inputs: Tensor, tmp_path: Path) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(24, 32)
            self.table = nn.Parameter(torch.randn(32, 6))

        def forward(self, value: Tensor) -> Tensor:
            return self.first(value).relu() @ self.table

    model = Gated().eval()
    schemes = {pattern: TERNARY, "*": vq.KM(k=16)}
    with pytest.warns(UserWarning, match="does not know the inputs of table"):
        small = vq.compress(model, schemes, [inputs])
    assert {name: coded.scheme for name, coded in coded_weights(small).items()} == {
        "first": vq.KM(k=16),
        "table": TERNARY,
    }
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", copy.deepcopy(model))
    assert error(again, small, inputs) == 0
    assert torch.equal(vq.open_file(tmp_path / "m.vq").layers["table"].decode(), small.table)
    before = error(model, small, inputs)
    vq.finetune(small, inputs.split(32), teacher=model, loss=functional.mse_loss, epochs=2)
    assert error(model, small, inputs) < before
