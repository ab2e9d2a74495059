"""INC's ``save``, and ``load`` of ours."""

import copy
import json
import pickle
import re

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

import torch
from neural_compressor.torch.quantization import HQQConfig, RTNConfig, quantize, save
from neural_compressor.torch.quantization import load as inc_load
from torch import nn

import vq_plugin as vq
from vq_plugin.inc import KMConfig, PQConfig, VQConfig, load

MIXES = {
    "codebooks": lambda: PQConfig(k=8),
    "rtn": lambda: KMConfig() + RTNConfig(bits=4, use_layer_wise=False, white_list=["fc10"]),
    # INC itself gives fc1 the settings of fc10, whose name contains it.
    "names": lambda: (
        VQConfig(None)
        .set_local("conv2d", KMConfig())
        .set_local("fc1", RTNConfig(bits=8, group_size=16, use_layer_wise=False))
        .set_local("fc10", RTNConfig(bits=2, use_sym=False, use_layer_wise=False))
    ),
    "left": lambda: (
        KMConfig()
        + RTNConfig(white_list=["fc1"], use_layer_wise=False)
        + RTNConfig(dtype="fp32", use_layer_wise=False, white_list=["out"])
    ),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_outputs_are_bit_equal(net, tokens, tmp_path, mix, training, used):
    small = quantize(copy.deepcopy(net), MIXES[mix]())
    if used:
        # Layers of INC turn their bias to float32 when they first run on a CPU.
        small(tokens)
    save(small, str(tmp_path / "model"))
    fresh = type(net)().train(training)
    before = copy.deepcopy(fresh.state_dict())
    again = load(tmp_path / "model", fresh)
    assert again.training == again.out.training == training
    assert torch.equal(again.eval()(tokens), small(tokens))
    assert [type(m) for m in again.modules()] == [type(m) for m in small.modules()]
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_a_saved_model_can_be_saved_again(net, tokens, tmp_path):
    small = quantize(net, PQConfig(k=8), inplace=False)
    save(small, tmp_path / "one")
    save(load(tmp_path / "one", net), tmp_path / "two")
    for name in ("model.vq", "qconfig.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_mixed_model_can_be_saved_again(net, tokens, tmp_path):
    small = quantize(net, MIXES["names"](), inplace=False)
    save(small, tmp_path / "one")
    save(load(tmp_path / "one", net), tmp_path / "two")
    assert torch.equal(load(tmp_path / "two", net)(tokens), small(tokens))


def test_the_file_is_one_of_vq_plugin(net, tokens, tmp_path):
    small = quantize(net, KMConfig(k=4), inplace=False)
    save(small, tmp_path)
    again = vq.load(tmp_path / "model.vq", net)
    assert torch.equal(again(tokens), small(tokens))


def test_copies_of_the_model_save_themselves(net, tokens, tmp_path):
    small = quantize(net, KMConfig(k=4), inplace=False)
    other = copy.deepcopy(small)
    with torch.no_grad():
        other.fc1.codebooks.zero_()
    save(other, tmp_path)
    assert torch.equal(load(tmp_path, net)(tokens), other(tokens))
    assert pickle.loads(pickle.dumps(small)).fc1.scheme == vq.KM(k=4)


def test_incs_own_load_names_ours(net, tmp_path):
    save(quantize(net, KMConfig(k=4), inplace=False), tmp_path)
    with pytest.raises(ValueError, match=r"vq_plugin\.inc\.load\(folder, original_model\)"):
        inc_load(str(tmp_path), original_model=net)


def test_a_folder_of_incs_own_names_incs_load(mlp, tmp_path):
    save(quantize(mlp, RTNConfig(use_layer_wise=False), inplace=False), str(tmp_path))
    with pytest.raises(vq.CheckpointError, match=r"neural_compressor\.torch\.quantization\.load"):
        load(tmp_path, mlp)


def test_no_folder(mlp, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere", mlp)


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "empty"])
def test_damaged_settings(net, tmp_path, damage):
    save(quantize(net, MIXES["rtn"](), inplace=False), tmp_path)
    path = tmp_path / "qconfig.json"
    text = path.read_text()
    path.unlink()
    if damage != "missing":
        path.write_text({"cut": text[:50], "foreign": '{"a": 1}', "empty": ""}[damage])
    with pytest.raises(vq.CheckpointError, match=r"qconfig\.json"):
        load(tmp_path, net)


def test_settings_that_make_no_scheme_name_their_file(net, tmp_path):
    save(quantize(net, KMConfig(k=4), inplace=False), tmp_path)
    path = tmp_path / "qconfig.json"
    path.write_text(path.read_text().replace("float16", "float17"))
    with pytest.raises(vq.CheckpointError, match=rf"^{re.escape(str(path))}: damaged \(km: "):
        load(tmp_path, net)


def test_damaged_model_file(net, tmp_path):
    save(quantize(net, KMConfig(k=4), inplace=False), tmp_path)
    path = tmp_path / "model.vq"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(vq.CheckpointError, match="damaged"):
        load(tmp_path, net)


def test_settings_of_another_layer(net, tmp_path):
    save(quantize(net, MIXES["rtn"](), inplace=False), tmp_path)
    path = tmp_path / "qconfig.json"
    settings = json.loads(path.read_text())
    (layers,) = settings.values()
    layers["('fc10', 'Linear')"]["rtn"]["bits"] = 8
    path.write_text(json.dumps(settings))
    with pytest.raises(vq.CheckpointError, match=r"INC cannot read layer \('fc10'"):
        load(tmp_path, net)


def test_inc_saved_into_the_folder_later(mlp, tmp_path):
    save(quantize(mlp, KMConfig(), inplace=False), tmp_path)
    save(quantize(mlp, RTNConfig(use_layer_wise=False), inplace=False), str(tmp_path))
    with pytest.raises(vq.CheckpointError, match="has INC saved another model"):
        load(tmp_path, mlp)


def test_another_architecture(net, tmp_path):
    save(quantize(net, KMConfig(k=4), inplace=False), tmp_path)
    with pytest.raises(vq.CheckpointError, match="the model has no layer"):
        load(tmp_path, nn.Sequential(nn.Linear(2, 2)))


def test_nothing_to_save(net, tmp_path):
    with pytest.raises(ValueError, match="no codebook layer, so there is nothing to save"):
        save(quantize(net, VQConfig(None)), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_what_only_pickle_could_keep(mlp, tmp_path):
    small = quantize(mlp, KMConfig(white_list=["0"]) + HQQConfig(white_list=["2"]))
    with pytest.raises(ValueError, match=r"'2\.meta_info' holds a dict"):
        save(small, tmp_path)


def test_layers_of_inc_whose_settings_are_lost(mlp, tmp_path):
    save(quantize(mlp, RTNConfig(use_layer_wise=False, white_list=["2"])), str(tmp_path / "inc"))
    fresh = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 8))
    loaded = inc_load(str(tmp_path / "inc"), original_model=fresh)
    with pytest.raises(ValueError, match="layer '2' is a INCWeightOnlyLinear whose settings were"):
        save(quantize(loaded, KMConfig()), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_names_that_inc_cannot_read_back(tmp_path):
    model = nn.ModuleDict({"it's": nn.Linear(32, 32), "b": nn.Linear(32, 32)})
    small = quantize(model, KMConfig().set_local("it's", RTNConfig(use_layer_wise=False)))
    with pytest.raises(ValueError, match="a name with a quote"):
        save(small, tmp_path)


def test_into_a_model_that_keeps_activations(tmp_path):
    def fresh():
        return nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))

    small = quantize(fresh(), KMConfig(k=4))
    save(small, tmp_path)
    model, x = fresh(), torch.randn(2, 16)
    model[0].kept = model[0](x)
    assert torch.equal(load(tmp_path, model)(x), small(x))
