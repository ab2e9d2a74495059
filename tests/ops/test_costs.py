"""Costs of kernels: which way a layer runs follows what was measured, in every process alike."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from torch import nn

import vq_plugin as vq
from integration.benchmarks.harness import random_codes
from vq_plugin import ops
from vq_plugin.cli import main
from vq_plugin.nn import measured
from vq_plugin.ops import costs
from vq_plugin.ops.costs import Costs, Grid, costs_of, costs_path, forget_costs, keep_costs

NOW = "2026-11-29T03:00:00+00:00"
pytestmark = pytest.mark.skipif(ops.native() is None, reason="there are no kernels")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the user's, and none of this process's."""
    monkeypatch.delenv("VQ_PLUGIN_COSTS", raising=False)
    monkeypatch.setenv("VQ_PLUGIN_CACHE", str(tmp_path))
    forget_costs()
    yield tmp_path
    forget_costs()


def isa() -> str:
    name = ops.isa()
    assert name is not None
    return name


def times(ratio: float, *kernels: str) -> Costs:
    """Costs of kernels that take so many times as long as estimated."""
    grid = Grid((64.0, 1e6), (1.0, 100.0), ((ratio, ratio), (ratio, ratio)))
    return Costs(NOW, dict.fromkeys(kernels, (grid,)))


def runs_by_codes(layer: vq.nn.CodebookLayer, *shape: int) -> bool:
    with torch.no_grad():
        layer(torch.zeros(shape))
    kept = layer._decoded.kept is None
    layer._forget()
    return kept


@given(
    st.lists(st.floats(0.01, 100), min_size=6, max_size=6),
    st.floats(10, 1e5),
    st.floats(1, 1e3),
)
def test_ratios_between_measured_sizes_are_interpolated_in_logarithms(
    ratios: list[float], weights: float, samples: float
) -> None:
    grid = Grid((10, 300, 1e5), (1, 1e3), tuple(zip(ratios[::2], ratios[1::2], strict=True)))
    oracle = RegularGridInterpolator(
        (np.log(grid.weights), np.log(grid.samples)), np.log(grid.ratios)
    )
    at = [min(math.log(weights), math.log(1e5)), math.log(samples)]
    assert grid.at(weights, samples) == pytest.approx(math.exp(oracle(at)[0]))


def test_outside_of_what_was_measured_the_nearest_ratio_holds() -> None:
    grid = Grid((10, 100), (1, 4), ((1.0, 2.0), (3.0, 4.0)))
    places = ((1, 0.5), (1, 99), (1e9, 1), (1e9, 99))
    assert [grid.at(*place) for place in places] == pytest.approx([1, 2, 3, 4])


def test_a_kernel_that_is_slow_here_leaves_layers_to_their_float_weight() -> None:
    layer = vq.compress(nn.Linear(512, 512), vq.PQ(k=16, dim=4))
    conv = vq.compress(nn.Conv2d(256, 256, 3), vq.PQ(k=16, dim=8, layout="channels"))
    ops.use_isa(ops.isas()[0])
    if isa() == "scalar":
        pytest.skip("plain kernels are slow anyway")
    assert runs_by_codes(layer, 1, 512)
    assert runs_by_codes(conv, 1, 256, 9, 9)
    keep_costs(isa(), times(1e3, "lookup_nibbles, dim 4"))
    assert not runs_by_codes(layer, 1, 512)
    assert runs_by_codes(conv, 1, 256, 9, 9)
    keep_costs(isa(), times(1e3, "convolve"))
    assert runs_by_codes(layer, 1, 512)
    assert not runs_by_codes(conv, 1, 256, 9, 9)


def test_a_kernel_that_is_fast_here_runs_where_estimates_would_not_have_it() -> None:
    layer = vq.compress(nn.Linear(256, 256), vq.KM(k=256))
    before = runs_by_codes(layer, 64, 256)
    keep_costs(isa(), times(1e-3, "scalar_bytes"))
    assert (before, runs_by_codes(layer, 64, 256)) == (False, True)


def test_the_worst_number_of_threads_decides() -> None:
    few, many = (times(ratio, "lookup_bytes").grids["lookup_bytes"][0] for ratio in (0.5, 3.0))
    assert Costs(NOW, {"lookup_bytes": (few, many)}).ratio("lookup_bytes", 1e4, 8) > 2.9
    assert Costs(NOW, {"lookup_bytes": (few, many)}).ratio("scalar_bytes", 1e4, 8) == 1.0


def test_decoding_in_every_pass_counts_as_time_of_the_float_layer() -> None:
    shape = (1024, 1024, 1, 16, 4, 0, False, True, False, False)
    found = costs.linear_estimates(1, shape, 0)
    assert found is not None
    # Twice as slow as a kept weight: less than decoding a million weights takes.
    keep_costs(isa(), times(2 * found.plain / found.codes, found.kernel))
    assert not costs.codes_pay(1, shape, 0)
    assert costs.codes_pay(1, shape, 0, decodes=True)


@pytest.fixture
def plain_kernels() -> Iterator[None]:
    before = isa()
    ops.use_isa("scalar")
    yield
    ops.use_isa(before)


@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.usefixtures("plain_kernels")
def test_a_book_for_all_subspaces_is_read_once(samples: int) -> None:
    """Rounding it to float16 is most of what plain C++ does for 256 centers."""
    of_each, of_all = (
        costs.linear_estimates(
            samples, (4096, 4096, 1, 256, 4, 0, one_book, False, False, False), 0
        )
        for one_book in (False, True)
    )
    assert of_each is not None
    assert of_all is not None
    assert of_all.codes < 0.8 * of_each.codes


@pytest.mark.usefixtures("plain_kernels")
def test_plain_kernels_run_large_layers_and_few_samples_only() -> None:
    schemes = {
        "pq(k=16,dim=8)": True,
        "pq(k=256,dim=4,codebooks=tensor)": True,
        "pq(k=16,dim=4,axis=out)": False,
        "km(k=16)": False,
    }
    for scheme, pays in schemes.items():
        large, small = (
            random_codes(nn.Linear(size, size, bias=False), vq.parse_scheme(scheme)).eval()
            for size in (4096, 256)
        )
        assert runs_by_codes(large, 1, 4096) == pays, scheme
        assert not runs_by_codes(large, 64, 4096), scheme
        assert not runs_by_codes(small, 1, 256), scheme


def test_outputs_are_those_of_the_way_that_was_chosen() -> None:
    layer = vq.compress(nn.Linear(96, 48), vq.PQ(k=16, dim=4))
    x = torch.randn(5, 96)
    for ratio in (1e-3, 1e3):
        keep_costs(isa(), times(ratio, "lookup_nibbles, dim 4"))
        with torch.no_grad():
            torch.testing.assert_close(layer(x), layer.to_float()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spoiled", ["{", "[]", '"grids"', "{}", "\x00\xff", "older", "timeless"])
def test_a_damaged_file_is_warned_of_once_and_not_used(spoiled: str) -> None:
    keep_costs(isa(), times(1e3, "lookup_nibbles, dim 4"))
    path = costs_path(isa())
    if spoiled == "older":
        spoiled = path.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"')
    elif spoiled == "timeless":
        spoiled = path.read_text().replace(NOW, "yesterday")
    path.write_bytes(spoiled.encode("latin1"))
    forget_costs()
    with pytest.warns(UserWarning, match=f"{path.name}.*doctor --measure"):
        assert costs_of(isa()).measured is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = vq.compress(nn.Linear(64, 64), vq.PQ(k=16, dim=4))
        with torch.no_grad():
            layer(torch.zeros(1, 64))


@pytest.mark.parametrize(
    "ratios", [[[1.0]], [[0.0, 1.0], [1.0, 1.0]], [[math.nan, 1.0], [1.0, 1.0]], [[1.0, 1.0]]]
)
def test_a_file_of_senseless_ratios_is_not_used(ratios: list[list[float]]) -> None:
    keep_costs(isa(), times(1.0, "lookup_nibbles"))
    path = costs_path(isa())
    content = json.loads(path.read_text())
    content["grids"]["lookup_nibbles"][0]["ratios"] = ratios
    path.write_text(json.dumps(content))
    forget_costs()
    with pytest.warns(UserWarning, match="holds no costs"):
        assert costs_of(isa()).grids == {}


def test_without_a_home_or_a_cache_costs_are_the_shipped_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "file").touch()
        for folder in (tmp_path / "none", tmp_path / "file"):
            monkeypatch.setenv("VQ_PLUGIN_CACHE", str(folder))
            forget_costs()
            assert costs_of(isa()).measured is None

        def homeless(_: Path) -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "expanduser", homeless)
        forget_costs()
        assert costs_of(isa()).measured is None


def test_a_folder_in_the_place_of_the_file_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    costs_path(isa()).mkdir(parents=True)
    monkeypatch.setattr("vq_plugin.nn.measured.measure_costs", lambda _: pytest.fail("measured"))
    with pytest.warns(UserWarning, match="cannot be read"):
        assert costs_of(isa()).measured is None
    assert main(["doctor", "--measure"]) == 2
    assert str(costs_path(isa())) in capsys.readouterr().err


def test_the_variable_turns_measured_costs_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_costs(isa(), times(1e3, "lookup_nibbles, dim 4"))
    assert costs_of(isa()).measured == NOW
    monkeypatch.setenv("VQ_PLUGIN_COSTS", "shipped")
    forget_costs()
    assert costs_of(isa()) == Costs(None, {})
    assert main(["doctor", "--measure"]) == 2
    assert "unset it" in capsys.readouterr().err
    monkeypatch.setenv("VQ_PLUGIN_COSTS", "fast")
    forget_costs()
    with pytest.raises(ValueError, match="VQ_PLUGIN_COSTS='fast'"):
        costs_of(isa())


def test_another_process_decides_alike() -> None:
    keep_costs(isa(), times(1e3, "lookup_nibbles, dim 4"))
    program = (
        "from vq_plugin.ops.costs import codes_pay, costs_of\n"
        "from vq_plugin import ops\n"
        "shape = (512, 512, 1, 16, 4, 0, False, True, False, False)\n"
        "print(costs_of(ops.isa()).measured, codes_pay(1, shape, 0))\n"
    )
    environment = os.environ | {"VQ_PLUGIN_ISA": isa()}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [NOW, "False"]


def test_a_process_that_has_decided_stays_with_it_while_others_measure() -> None:
    before = costs_of(isa())
    path = costs_path(isa())
    keep_costs(isa(), times(1e3, "lookup_nibbles, dim 4"))
    content = path.read_bytes()
    path.unlink()
    forget_costs()
    assert costs_of(isa()) == before
    path.write_bytes(content)  # as another process does
    assert costs_of(isa()) == before


def test_doctor_measures_and_shows_what_is_in_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    assert main(["doctor"]) == 0
    assert "shipped" in capsys.readouterr().out
    monkeypatch.setattr("vq_plugin.nn.measured.measure_costs", lambda _: times(2, "lookup_nibbles"))
    assert main(["doctor", "--measure", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["costs"]
    assert "days old" in shown
    assert str(cache) in shown
    monkeypatch.setenv("VQ_PLUGIN_COSTS", "shipped")
    forget_costs()
    assert main(["doctor"]) == 0
    assert "as VQ_PLUGIN_COSTS says" in capsys.readouterr().out


def test_nothing_is_measured_where_nothing_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    monkeypatch.setattr("vq_plugin.nn.measured.measure_costs", pytest.fail)
    (cache / "costs").touch()
    assert main(["doctor", "--measure"]) == 2
    assert str(cache / "costs") in capsys.readouterr().err


def test_a_measurement_finds_a_ratio_for_every_kernel_and_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Tiny, and by a clock on which codes take three times as long as the float layer.
    kinds = [dataclasses.replace(kind, sizes=kind.sizes[:2]) for kind in measured._KINDS]
    monkeypatch.setattr("vq_plugin.nn.measured._KINDS", kinds)
    monkeypatch.setattr("vq_plugin.nn.measured._race", lambda *_: 3.0)
    threads = torch.get_num_threads()
    found = measured.measure_costs([1, 2])
    assert torch.get_num_threads() == threads
    assert {"lookup_nibbles, dim 4", "pointwise scalar_bytes", "convolve"} <= found.grids.keys()
    for grids in found.grids.values():
        assert len(grids) == 2
    shape = (512, 512, 1, 16, 4, 0, False, True, False, False)
    expected = costs.linear_estimates(8, shape, 0)
    assert expected is not None
    mended = expected.codes * found.ratio(expected.kernel, expected.weights, 8)
    assert mended == pytest.approx(3 * expected.plain)
