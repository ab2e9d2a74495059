"""Every field of a header, set to what it cannot be: a refusal, or right tensors, and soon."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import vq_plugin as vq
from tests.checkpoint.costs import assert_cheap, read_all
from tests.checkpoint.forging import LAYOUTS, contents, dense, unpacked
from tests.checkpoint.test_mutated_files import CASES, Case

HUGE = (1 << 62) - 1
ODD = [
    *(-1, 0, 1, 2, 3, 7, 255, 256, 65_537, 1 << 20, 1 << 31, 1 << 32, HUGE, 1 << 63, 1 << 64),
    *(10**300, -(10**300), 0.5, -0.0, 1e308, float("inf"), float("nan"), True, False, None),
    *("", "row", "in", "out", "x" * 5000, "0", "float64", "int8", "codes", "\x1b[2J", "\ud800"),
    "channels",
    *([], [[]], {}, [0], [HUGE] * 5, [1] * 70, [HUGE, 0], [0.5], ["1"], {"": 0}, [None]),
]
FILES_OF_A_CASE = 250


def fields(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a header and every key or index in it."""
    if isinstance(content, dict | list):
        keys = content if isinstance(content, dict) else range(len(content))
        for key in keys:
            yield content, key
            yield from fields(content[key])


def changed(random_: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    """A header with one to three fields that are otherwise, also dimensions more or less."""
    header = copy.deepcopy(header)
    for _ in range(random_.randint(1, 3)):
        holder, key = random_.choice(list(fields(header)))
        what = random_.random()
        if what < 0.7:
            holder[key] = copy.deepcopy(random_.choice(ODD))
        elif what < 0.8 and isinstance(holder, list):
            holder.insert(key, random_.choice(ODD))
        elif what < 0.9 and isinstance(holder[key], int):
            holder[key] *= random_.choice([-1, 2, 1 << 10, 1 << 40])
        else:
            del holder[key]
    return header


def loads_right(path: Path, fresh: nn.Module, shapes: dict[str, Any]) -> bool:
    """Whether a file loads; with other shapes than the model's it must not."""
    try:
        state: dict[str, Tensor] = vq.load(path, fresh).state_dict()
    except vq.CheckpointError:
        return False
    # A forged tie may be to a layer that has no scale.
    assert {k: v.shape for k, v in state.items() if k != "tied.scale"} == shapes
    return True


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_odd_fields_are_refused_or_right_and_cost_little(case: Case, tmp_path: Path) -> None:
    path, random_, fresh, small = tmp_path / "m.vq", random.Random(0), case.fresh(), case.small()
    vq.save(small, path, rest=case.rest)
    shapes = {k: v.shape for k, v in small.state_dict().items() if k != "tied.scale"}
    header, body = unpacked(path.read_bytes())
    loaded = 0
    for _ in range(FILES_OF_A_CASE):
        layout = random_.choice(list(LAYOUTS))
        path.write_bytes(LAYOUTS[layout](changed(random_, header), body))
        assert_cheap(path, lambda: read_all(path, fresh), path.read_text(errors="replace")[-300:])
        loaded += loads_right(path, fresh, shapes)
    assert loaded < FILES_OF_A_CASE / 5


def test_the_files_whose_fields_are_changed_are_right_before(tmp_path: Path) -> None:
    path = tmp_path / "m.vq"
    case = CASES["coded"]
    vq.save(case.small(), path)
    assert not read_all(path, case.fresh())
    header, body = unpacked(path.read_bytes())
    path.write_bytes(dense(header, body))
    assert not read_all(path, case.fresh())
    assert contents(path)[0]["layers"]
