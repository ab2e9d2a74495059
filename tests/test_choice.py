"""Presets: schemes chosen weight by weight."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.sizes import file_nbytes
from vq_plugin.torch_ao import get_qconfig_mapping


def separable(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, stride=2), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 24, 3, groups=24), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 64, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10),
    ).eval()  # fmt: skip
    with torch.no_grad():
        # Channels of very different sizes, as batch norm leaves them, and a dead one.
        model[3].weight *= torch.logspace(-2, 1, 24).reshape(-1, 1, 1, 1)
        model[3].weight[5] = 0
    return model


def images(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 3, 16, 16, generator=generator) for _ in range(count)]


def change(model: nn.Module, small: nn.Module, batches: list[Tensor]) -> float:
    with torch.no_grad():
        before = torch.cat([model(x) for x in batches])
        after = torch.cat([small(x) for x in batches])
    return float((after - before).square().mean() / (before - before.mean(0)).square().mean())


def nbytes(small: nn.Module) -> int:
    return vq.summary(small).nbytes


def relative_row_errors(model: nn.Module, small: nn.Module) -> float:
    total = 0.0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        rows = module.weight.detach().double().flatten(1)
        wrong = small.get_submodule(name).weight.detach().double().flatten(1) - rows
        live = rows.abs().sum(1) > 0
        total += float((wrong.square().sum(1)[live] / rows.square().sum(1)[live]).mean())
    return total


@pytest.mark.parametrize("name", vq.PRESETS)
def test_without_calibration_relative_errors_of_rows_add_up_to_the_change(name: str) -> None:
    model = separable()
    small = vq.compress(model, name)
    allowed = vq.PRESETS[name].change
    assert allowed / 3 < relative_row_errors(model, small) <= allowed * 1.001


@pytest.mark.parametrize("name", vq.PRESETS)
def test_with_calibration_outputs_change_by_about_the_change(name: str) -> None:
    allowed, changes = vq.PRESETS[name].change, []
    # One network is off by a factor of 1.5 this way or that.
    for model in map(separable, range(5)):
        small = vq.compress(model, name, images(8, seed=1))
        changes.append(change(model, small, images(8, seed=2)))
    assert allowed / 4 < sum(changes) / len(changes) < allowed * 2
    assert max(changes) < allowed * 2


def test_presets_are_in_the_order_of_size() -> None:
    sizes = [nbytes(vq.compress(separable(), name, images(4, 1))) for name in vq.PRESETS]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_one_scheme_for_all_is_larger_at_the_same_change() -> None:
    model, batches = separable(), images(8, seed=1)
    small = vq.compress(model, "auto", batches)
    found = change(model, small, images(8, seed=2))
    uniform = [vq.compress(model, vq.KM(k), batches) for k in (16, 32, 64, 128, 256)]
    as_good = [s for s in uniform if change(model, s, images(8, seed=2)) <= found]
    assert not as_good or nbytes(small) < min(map(nbytes, as_good))


def test_a_preset_of_ones_own_chooses_among_its_schemes() -> None:
    schemes = (vq.PQ(k=16, dim=2, codebooks="tensor"), vq.KM(k=16))
    chosen = vq.choose_schemes(separable(), vq.Preset(0.5, schemes))
    assert set(chosen.values()) <= set(schemes)


def test_presets_stand_beside_schemes_and_none() -> None:
    model = separable()
    small = vq.compress(model, {"0": None, "10": vq.KM(k=4), "*": "auto"})
    assert type(small[0]) is nn.Conv2d
    assert small[10].scheme == vq.KM(k=4)
    assert {"3", "6", "12"} <= {row.name for row in vq.summary(small).rows}


def test_what_is_chosen_is_what_compress_uses_and_what_hosts_take() -> None:
    model, batches = separable(), images(2, seed=1)
    chosen = vq.choose_schemes(model, "small", iter(batches))
    small = vq.compress(model, "small", (x for x in batches))
    assert {name: small.get_submodule(name).scheme for name in chosen} == chosen
    get_qconfig_mapping(chosen)
    with pytest.raises(TypeError, match="choose_schemes"):
        get_qconfig_mapping("small")


def test_shared_weights_are_chosen_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            scores: Tensor = self.head(self.table(tokens))
            return scores

    model, tokens = Tied(), [torch.randint(0, 50, (16,))]
    assert len(set(vq.choose_schemes(model, "auto", tokens).values())) == 1
    small = vq.compress(model, "auto", tokens)
    assert torch.equal(small.head.codes, small.table.codes)
    assert small.head.codebooks is small.table.codebooks


def test_the_same_bytes_on_any_number_of_threads() -> None:
    model, batches, threads = separable(), images(4, seed=1), torch.get_num_threads()
    states = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            states.append(vq.compress(model, "auto", batches).state_dict())
    finally:
        torch.set_num_threads(threads)
    first, second = states
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_model_stays_as_it_was() -> None:
    model = separable().train()
    before = copy.deepcopy(model.state_dict())
    vq.compress(model, "auto", images(2, seed=1))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_outputs_without_a_gradient() -> None:
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = separable()

        def forward(self, x: Tensor) -> Tensor:
            labels: Tensor = self.inner(x).argmax(1)
            return labels

    with pytest.warns(UserWarning, match="no gradient reaches"):
        small = vq.compress(Labels(), "auto", images(2, seed=1))
    assert nbytes(small) > 0


def test_a_change_that_no_scheme_reaches_gives_the_most_faithful() -> None:
    model = separable()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = vq.compress(model, vq.Preset(1e-6, (vq.KM(k=4), vq.KM(k=2))))
    assert {row.scheme for row in vq.summary(small).rows} <= {"km(k=4)", "km(k=2)"}


def test_words_that_are_no_preset() -> None:
    with pytest.raises(ValueError, match=r"'faithful', 'auto', 'small'.*'aoto' is unknown"):
        vq.compress(separable(), "aoto")
    with pytest.raises(ValueError, match="change must be above 0"):
        vq.Preset(0.0)
    with pytest.raises(ValueError, match="needs schemes"):
        vq.Preset(0.1, ())


def test_bytes_are_those_of_the_file() -> None:
    small = vq.compress(separable(), "auto", images(2, seed=1))
    for row in vq.summary(small).rows:
        layer = small.get_submodule(row.name)
        assert file_nbytes(layer.codebook_weight) <= row.nbytes


def test_rows_of_a_table_that_calibration_never_looked_up_stay_good() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(400, 32), nn.Flatten(), nn.Linear(128, 8)).eval()
    with torch.no_grad():
        model[0].weight[40:] *= 30
    seen = [torch.randint(0, 40, (64, 4)) for _ in range(4)]
    small = vq.compress(model, "small", seen)
    size = model[0].weight.detach().square().sum(1)
    wrong = (small[0].weight - model[0].weight).detach().square().sum(1) / size
    assert float(wrong[40:].mean()) < 2 * float(wrong[:40].mean())


def test_errors_of_a_table_go_where_the_outputs_do_not_feel_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(400, 16), nn.Linear(16, 6), nn.Tanh(), nn.Flatten(), nn.Linear(24, 8)
    ).eval()
    with torch.no_grad():
        # Two of 16 directions, none of them a column, do nearly all.
        model[1].weight.copy_(torch.randn(6, 2) @ torch.randn(2, 16) / 4 + model[1].weight / 8)
    seen = [torch.randint(0, 200, (64, 4)) for _ in range(8)]
    other = [torch.randint(200, 400, (64, 4)) for _ in range(4)]
    scheme = {"0": vq.Uniform(step=1.0, scale="row")}
    felt, unfelt = (vq.compress(model, scheme, each) for each in (seen, None))
    assert change(model, felt, other) < 0.6 * change(model, unfelt, other)
    assert sum(map(file_nbytes, weights(felt))) < 1.25 * sum(map(file_nbytes, weights(unfelt)))


def weights(small: nn.Module) -> list[vq.CodebookWeight]:
    return [small.get_submodule(row.name).codebook_weight for row in vq.summary(small).rows]


def test_a_table_of_few_gradients_is_fitted_by_its_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(3, 64), nn.Flatten(), nn.Linear(256, 8)).eval()
    seen = [torch.randint(0, 3, (16, 4))]
    scheme = {"0": vq.Uniform(step=0.5, scale="row")}
    felt, unfelt = (vq.compress(model, scheme, each) for each in (seen, None))
    # Errors are left where they are; only centers go by how often a row is looked up.
    codes = [each[0].codebook_weight.codes for each in (felt, unfelt)]
    assert torch.equal(*codes)
