"""Models that transformers loads with codebooks, and what it cannot do with them."""

import pytest

transformers = pytest.importorskip("transformers")

import torch
from safetensors import safe_open

import vq_plugin as vq
from vq_plugin.nn import CodebookLinear
from vq_plugin.torchao import VQWeightOnlyConfig, check_converted

SCHEME = vq.PQ(k=16, dim=4)
LAYERS = {r"re:model\.layers\..*": SCHEME}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "float")
    return tmp_path


def load(folder, **settings):
    return transformers.LlamaForCausalLM.from_pretrained(folder, **settings).eval()


@pytest.fixture
def small(folder):
    quantization = transformers.TorchAoConfig(quant_type=VQWeightOnlyConfig(SCHEME))
    return load(folder / "float", quantization_config=quantization)


def test_loaded_with_codebooks(folder, small):
    tokens = torch.arange(10).reshape(2, 5)
    expected = vq.compress(load(folder / "float"), LAYERS)
    check_converted(small, LAYERS)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(small(tokens).logits, expected(tokens).logits)


def test_saved_as_safetensors_with_the_scheme(folder, small):
    small.save_pretrained(folder / "small")
    config = transformers.AutoConfig.from_pretrained(folder / "small").quantization_config
    assert config["quant_type"]["default"]["_data"]["scheme"] == str(SCHEME)
    again = transformers.TorchAoConfig.from_dict(config)
    assert again.quant_type == VQWeightOnlyConfig(SCHEME)
    with safe_open(folder / "small" / "model.safetensors", "pt") as file:
        codes = file.get_tensor("model.layers.0.mlp.up_proj.codes")
    assert codes.dtype is torch.uint8
    assert torch.equal(codes, small.model.layers[0].mlp.up_proj.codes)


def test_transformers_does_not_load_it_again_and_our_file_does(folder, small):
    """Docs/torchao.md says so: if this changes, the page has to."""
    tokens = torch.arange(10).reshape(2, 5)
    small.save_pretrained(folder / "small")
    assert not isinstance(load(folder / "small").model.layers[0].mlp.up_proj, CodebookLinear)
    vq.save(small, folder / "small.vq")
    again = vq.load(folder / "small.vq", load(folder / "float"))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, small(tokens).logits)
