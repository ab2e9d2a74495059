"""Each error names the remedy, and leaves the model as it was."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.transform_module import register_quantize_module_handler

import vq_plugin as vq
from vq_plugin.torchao import VQQuantizer, VQWeightOnlyConfig, check_converted
from vq_plugin.torchao.versions import check_version

KM = vq.KM(k=4)


def every(module: nn.Module, name: str) -> bool:
    return name != "" and not isinstance(module, nn.ModuleList)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval()


@pytest.fixture
def unchanged(model):
    """Whether the model is what it was."""
    before, types = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]

    def check() -> bool:
        after = model.state_dict()
        same = before.keys() == after.keys() and all(
            torch.equal(before[key].nan_to_num(), after[key].nan_to_num()) for key in before
        )
        return same and types == [type(m) for m in model.modules()]

    return check


def test_a_module_without_a_weight(model, unchanged):
    with pytest.raises(ValueError, match=r"'1' is a ReLU, .* let filter_fn choose layers"):
        quantize_(model, VQWeightOnlyConfig(KM), every)
    assert unchanged()


def test_a_container(model, unchanged):
    with pytest.raises(ValueError, match="'' is a Sequential"):
        quantize_(model, VQWeightOnlyConfig(KM), lambda *_: True)
    assert unchanged()


def test_a_regular_expression_that_meets_biases(model, unchanged):
    config = FqnToConfig(OrderedDict({"re:2.*": VQWeightOnlyConfig(KM)}))
    with pytest.raises(ValueError, match=r"no weight 'bias'.*\n.*meets names of containers"):
        quantize_(model, config, filter_fn=None)
    assert unchanged()


def test_a_weight_that_is_not_finite(model, unchanged):
    model[2].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer '2': .*infinite"):
        quantize_(model, VQWeightOnlyConfig(KM))
    assert type(model[0]) is nn.Linear


def test_half_of_a_tie(words):
    with pytest.raises(ValueError, match="'head' and 'words' share one weight: choose both"):
        quantize_(words, VQWeightOnlyConfig(KM))
    assert words.head.weight is words.words.weight
    assert type(words.again) is nn.Linear


def test_a_second_conversion(model):
    quantize_(model, VQWeightOnlyConfig(KM))
    with pytest.raises(ValueError, match=r"'0' is compressed already .* a fresh float model"):
        quantize_(model, VQWeightOnlyConfig(KM), lambda _, name: name in ("0", "2"))


def test_a_call_that_another_config_ends():
    class Refuses(AOBaseConfig):
        pass

    @register_quantize_module_handler(Refuses)
    def refuse(module: nn.Module, config: Refuses) -> nn.Module:
        raise RuntimeError("no")

    model, ours = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)]), VQWeightOnlyConfig(KM)
    config = FqnToConfig(OrderedDict({"0": ours, "1": Refuses(), "2": ours}))
    with pytest.raises(RuntimeError, match="no"):
        quantize_(model, config, filter_fn=None)
    quantize_(model, VQWeightOnlyConfig(vq.KM(k=8)), lambda _, name: name == "2")
    check_converted(model, {"0": KM, "2": vq.KM(k=8)})


def test_a_filter_that_matches_nothing(model, unchanged):
    quantize_(model, VQWeightOnlyConfig(KM), lambda *_: False)
    with pytest.raises(ValueError, match=r"'0': asked for .* filter_fn did not choose it"):
        check_converted(model, KM)
    assert unchanged()


def test_what_the_default_filter_skips(words):
    words.head.weight = nn.Parameter(words.head.weight.detach().clone())
    quantize_(words, VQWeightOnlyConfig(KM))
    with pytest.raises(ValueError, match="without a filter quantize_ takes Linear only") as error:
        check_converted(words, KM)
    assert "'words'" in str(error.value)
    assert "'mix'" in str(error.value)
    assert "'again'" not in str(error.value)
    check_converted(words, {nn.Linear: KM})


def test_configs_in_the_place_of_schemes(model):
    config = FqnToConfig(OrderedDict({"0": VQWeightOnlyConfig(KM), "2": None}))
    quantize_(model, config, filter_fn=None)
    check_converted(model, config)
    with pytest.raises(ValueError, match="'2': asked for"):
        check_converted(model, VQWeightOnlyConfig(KM))
    with pytest.raises(ValueError, match=r"'0': .* but it has km\(k=4\)"):
        check_converted(model, FqnToConfig(OrderedDict({"0": VQWeightOnlyConfig(vq.PQ())})))


def test_a_prepared_model_is_not_converted(model):
    quantize_(model, VQWeightOnlyConfig(KM, step="prepare"))
    with pytest.raises(ValueError, match="only prepared"):
        check_converted(model, KM)


@pytest.mark.parametrize("scheme", [4, None, {"0": KM}, "auto", nn.Linear])
def test_no_scheme(scheme):
    with pytest.raises(TypeError, match="scheme must be one scheme"):
        VQWeightOnlyConfig(scheme)


def test_other_settings():
    with pytest.raises(ValueError, match="did you mean 'pq'"):
        VQWeightOnlyConfig("pqq(k=4)")
    with pytest.raises(ValueError, match="step must be"):
        VQWeightOnlyConfig(KM, step="train")
    with pytest.raises(TypeError, match="seed must be a whole number"):
        VQWeightOnlyConfig(KM, seed=1.5)
    with pytest.raises(TypeError, match="expected a scheme"):
        VQQuantizer({"0": 4})


def program(model: nn.Module) -> nn.Module:
    return torch.export.export(model, (torch.zeros(2, 16),)).module()


def test_names_that_the_graph_lacks(model):
    graph = program(model)
    code = graph.code
    with pytest.raises(ValueError, match="'fc' matches nothing; the nearest names are 0, 2"):
        prepare_pt2e(graph, VQQuantizer({"fc": KM}))
    assert graph.code == code


def test_a_graph_with_codes(model, convert):
    small = convert(model, KM, torch.zeros(2, 16))
    with pytest.raises(ValueError, match="compressed already"):
        prepare_pt2e(small, VQQuantizer(KM))
    with pytest.raises(ValueError, match="the program holds codes already"):
        prepare_pt2e(program(small), VQQuantizer(KM))


def test_a_graph_with_a_weight_that_is_not_finite(model):
    model[2].weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"layer '2': .*infinite"):
        prepare_pt2e(program(model), VQQuantizer(KM))


def test_a_quantizer_for_the_other_call(model):
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train()
    graph = torch.export.export(conv, (torch.randn(2, 1, 5, 5),)).module()
    with pytest.raises(ValueError, match="VQQuantizer\\(schemes, is_qat=True\\)"):
        convert_pt2e(prepare_qat_pt2e(graph, VQQuantizer(KM)))
    with pytest.raises(ValueError, match="never ran"):
        convert_pt2e(prepare_qat_pt2e(program(model), VQQuantizer(KM, is_qat=True)))


def test_part_of_the_model_that_calibration_misses():
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.one(value), self.other(value)

    graph = torch.export.export(Either().eval(), (torch.randn(4, 8),)).module()
    prepared = prepare_pt2e(graph, VQQuantizer(KM))
    observers = [m for m in prepared.modules() if type(m).__name__ == "InputObserver"]
    observers[0](torch.randn(4, 8))
    with pytest.raises(ValueError, match="calibration never ran"):
        convert_pt2e(prepared)


@pytest.mark.parametrize(
    ("package", "version", "oldest"),
    [("torchao", "0.9.0", "0.18"), ("torchao", "0.17.1+cpu", "0.18"), ("torch", "2.9.1", "2.10")],
)
def test_a_release_that_is_too_old(package, version, oldest):
    with pytest.raises(ImportError, match=f"needs {package} {oldest} or later, got {version[:3]}"):
        check_version(package, version)
