"""Models of many layers: what is done for each of them does not grow with how many there are."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from tests.checkpoint.models import assert_same_state
from vq_plugin.checkpoint import read_header
from vq_plugin.checkpoint.state import load_state


def model(count: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))


def seconds(call: Callable[[], object]) -> float:
    found = []
    for _ in range(2):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def test_time_is_linear_in_layers(tmp_path: Path) -> None:
    taken: dict[str, list[float]] = {"compress": [], "load": [], "read_header": []}
    for count in (400, 3200):
        float_model, path = model(count), tmp_path / f"{count}.vq"
        made: list[nn.Module] = []
        calls: dict[str, Callable[[], object]] = {
            "compress": lambda: made.append(vq.compress(float_model, vq.KM(k=2))),  # noqa: B023
            "load": lambda: vq.load(path, float_model),  # noqa: B023 - called here
            "read_header": lambda: read_header(path),  # noqa: B023
        }
        for name, call in calls.items():
            taken[name].append(seconds(call))
            if name == "compress":
                vq.save(made[0], path)
    # 8 times the layers; quadratic work would take 64 times as long.
    for name, (few, many) in taken.items():
        assert many < 8 * 2.5 * few, name


class Renamed(nn.Module):
    """A module whose hooks change the keys of its children, and that says what is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.shared = self.inner[0]
        self.missing: list[str] = []
        self._register_load_state_dict_pre_hook(self._rename)
        self.register_load_state_dict_post_hook(
            lambda module, keys: module.missing.extend(keys.missing_keys)
        )

    @staticmethod
    def _rename(state: dict[str, Tensor], prefix: str, *_: object) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}old.")]:
            state[key.replace("old.", "inner.0.")] = state.pop(key)


def test_a_state_is_loaded_as_torch_does_it() -> None:
    """Torch itself is the oracle: values, hooks, keys that are missing, unknown or do not fit."""

    def build() -> nn.Module:
        torch.manual_seed(1)
        return nn.ModuleDict({"a": Renamed(), "b": nn.LSTM(2, 3), "empty": nn.Sequential()})

    full = {key: torch.randn_like(value.float()) for key, value in build().state_dict().items()}
    renamed = {key.replace("a.inner.0.", "a.old."): value for key, value in full.items()}
    cut = {key: value for key, value in full.items() if "norm" not in key and "hh" not in key}
    cut.pop("a.inner.1.num_batches_tracked")
    more = {**full, "a.gone": torch.ones(1), "gone.weight": torch.ones(1), "b": torch.ones(1)}
    for state in (full, renamed, cut, more, {}):
        ours, theirs = build(), build()
        missing, unexpected = load_state(ours, dict(state))
        expected = theirs.load_state_dict(dict(state), strict=False)
        assert (missing, unexpected) == (expected.missing_keys, expected.unexpected_keys)
        assert_same_state(ours, theirs)
        assert ours["a"].missing == theirs["a"].missing  # type: ignore[index]
    wrong = {**full, "b.weight_ih_l0": torch.ones(3)}
    with pytest.raises(RuntimeError) as ours_says:
        load_state(build(), dict(wrong))
    with pytest.raises(RuntimeError) as torch_says:
        build().load_state_dict(dict(wrong), strict=False)
    assert str(ours_says.value) == str(torch_says.value)


def test_a_model_that_loads_its_state_itself_is_asked_to(tmp_path: Path) -> None:
    class Own(nn.Sequential):
        def load_state_dict(
            self, state: dict[str, Tensor], *args: object, **rest: object
        ) -> object:
            self.asked = True
            return super().load_state_dict(state, *args, **rest)  # type: ignore[arg-type]

    torch.manual_seed(0)
    small = vq.compress(Own(nn.Linear(4, 4)), vq.KM(k=2))
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", Own(nn.Linear(4, 4)))
    assert again.asked
    assert_same_state(again, small)
