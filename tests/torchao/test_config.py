"""The config as values: dicts, JSON, and equality."""

import json
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torchao.core.config import config_from_dict, config_to_dict
from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig

import vq_plugin as vq
from vq_plugin.torchao import VQWeightOnlyConfig


@pytest.mark.parametrize(
    "scheme",
    [
        vq.KM(k=16, group=8, keep_zeros=True),
        vq.PQ(k=8, dim=4, axis="out", codebooks="tensor", codebook_dtype="int8"),
        vq.RQ(k=16, stages=3, scale="row"),
        vq.Binary(),
    ],
)
def test_to_json_and_back(scheme):
    config = VQWeightOnlyConfig(scheme, step="convert", seed=7)
    again = config_from_dict(json.loads(json.dumps(config_to_dict(config))))
    assert again == config
    assert again.layer_scheme == scheme


def test_text_is_as_good():
    assert VQWeightOnlyConfig("pq(k=8,dim=4)") == VQWeightOnlyConfig(vq.PQ(k=8, dim=4))


def test_inside_another_config():
    config = FqnToConfig(
        OrderedDict({"a": VQWeightOnlyConfig("km"), "b": Int8WeightOnlyConfig(), "re:c": None})
    )
    again = config_from_dict(config_to_dict(config))
    assert again.fqn_to_config["a"] == VQWeightOnlyConfig("km")
    assert type(again.fqn_to_config["b"]) is Int8WeightOnlyConfig
    assert again.fqn_to_config["re:c"] is None


def test_another_process_reads_it():
    program = (
        "import json, sys, vq_plugin.torchao; from torchao.core.config import config_from_dict; "
        "print(config_from_dict(json.loads(sys.argv[1])))"
    )
    text = json.dumps(config_to_dict(VQWeightOnlyConfig("binary")))
    run = subprocess.run(
        [sys.executable, "-c", program, text], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "VQWeightOnlyConfig(scheme='binary()', step=None, seed=0)"
    assert torch.__version__
