"""What importing the adapter does to INC: it adds names and changes nothing else."""

import subprocess
import sys

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

from neural_compressor.common.base_config import config_registry
from neural_compressor.common.base_tuning import ConfigSet
from neural_compressor.torch.quantization import get_all_config_set
from neural_compressor.torch.utils.utility import algos_mapping

from vq_plugin import inc

NAMES = {"vq", "vq_km", "vq_pq", "vq_rq", "vq_binary", "vq_signs", "vq_uniform"}

# INC's own autotune over everything it would try by default, in a process without us and in one
# with us.
PROGRAM = """
import sys
import torch
from torch import nn
from neural_compressor.common.base_tuning import ConfigSet
from neural_compressor.torch.quantization import (
    RTNConfig, TuningConfig, autotune, get_all_config_set
)
if {ours}:
    import vq_plugin.inc
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8))
trials = []
for config in get_all_config_set():
    if config is None or isinstance(config, list):
        trials.append(repr(config))
    else:
        trials += [repr(found) for found in config.expand()]
settings = RTNConfig(bits=[2, 4, 8], use_layer_wise=False)
scores = []
def evaluate(m):
    scores.append(float(m(torch.ones(1, 32)).square().sum()))
    return scores[-1]
best = autotune(model, TuningConfig([settings], tolerable_loss=1e-9), evaluate)
print(len(trials), hash(tuple(trials)), scores, type(best[0]).__name__)
"""


def test_names_are_registered():
    registered = config_registry.get_cls_configs()["torch"]
    assert registered.keys() >= NAMES
    assert algos_mapping.keys() >= NAMES
    classes = (
        inc.VQConfig, inc.KMConfig, inc.PQConfig, inc.RQConfig, inc.BinaryConfig, inc.UniformConfig,
        inc.SignsConfig,
    )  # fmt: skip
    assert {cls.name: cls for cls in classes} == {name: registered[name] for name in NAMES}


def test_incs_default_search_has_no_trial_more():
    ours = [c for c in get_all_config_set() if isinstance(c, inc.VQConfig)]
    # A scheme of a user's own, as other tests register them, has an entry, too.
    registered = {n for n in config_registry.get_cls_configs()["torch"] if n.startswith("vq")}
    assert registered >= NAMES
    assert len(ours) == len(registered)
    assert ConfigSet.from_fwk_configs(ours).config_list == []


def test_incs_own_search_is_the_same_with_and_without():
    outputs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM.format(ours=ours)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": "0", "LOGLEVEL": "ERROR", "OMP_NUM_THREADS": "1"},
        ).stdout
        for ours in (False, True)
    ]
    assert outputs[0] == outputs[1] != ""


def test_public_names():
    assert set(inc.__all__) == {
        "BinaryConfig",
        "KMConfig",
        "PQConfig",
        "RQConfig",
        "SignsConfig",
        "UniformConfig",
        "VQConfig",
        "load",
        "scheme_config",
        "tuning_config",
    }


def test_without_inc_the_error_says_what_to_install():
    program = (
        "import sys; sys.modules['neural_compressor'] = None\n"
        "import vq_plugin\n"
        "try: import vq_plugin.inc\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install 'vq-plugin[inc]'" in run.stdout
