"""Networks as people have them, whose weights are mostly not Linear's and Conv2d's."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.nn import coded_weights, find_slots


class SpeakerNet(nn.Module):
    """Three LSTM layers over a spectrogram, the last state projected (Wan et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(20, 48, 3, batch_first=True)
        self.linear = nn.Linear(48, 48)

    def forward(self, frames: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(frames)
        return functional.normalize(self.linear(hidden[-1]).relu(), dim=1)


class Encoder(nn.Module):
    """Two Transformer layers over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 48)
        layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(48, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.tokens(tokens)).mean(1))


class UNet(nn.Module):
    """Two steps down, two up by transposed convolutions, and skips (Ronneberger et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 12, 24, 48)
        self.down = nn.ModuleList(map(self.block, widths[:-1], widths[1:]))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in ((48, 24), (24, 12))
        )
        self.across = nn.ModuleList(map(self.block, (48, 24), (24, 12)))
        self.head = nn.Conv2d(12, 2, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def forward(self, image: Tensor) -> Tensor:
        skips = []
        value = image
        for at, block in enumerate(self.down):
            value = block(functional.max_pool2d(value, 2) if at else value)
            skips.append(value)
        for up, across, skip in zip(self.up, self.across, skips[-2::-1], strict=True):
            value = across(torch.cat([up(value), skip], 1))
        return self.head(value)


class Gpt2(nn.Module):
    """transformers' GPT-2, whose products are its own ``Conv1D``; logits of the next token."""

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            vocab_size=60, n_positions=16, n_embd=48, n_layer=2, n_head=4
        )
        config._attn_implementation = "eager"
        self.body = transformers.GPT2Model(config)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.body(tokens).last_hidden_state
        return hidden @ self.body.wte.weight.T


@dataclass
class Case:
    """A float model, data for it, and a distance between outputs."""

    model: nn.Module
    batches: list[Tensor]

    def outputs(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(batch) for batch in self.batches])

    def error(self, model: nn.Module) -> float:
        difference = self.outputs(model) - self.outputs(self.model)
        return float(difference.square().mean())


def tokens(count: int, length: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(count, (8, length))


NETS: dict[str, tuple[type[nn.Module], Callable[[], Tensor]]] = {
    "speaker": (SpeakerNet, lambda: torch.randn(8, 12, 20) * torch.linspace(0.2, 2, 20)),
    "encoder": (Encoder, tokens(50, 7)),
    "u-net": (UNet, lambda: torch.randn(2, 1, 16, 16)),
    "gpt2": (Gpt2, tokens(60, 9)),
}


@pytest.fixture(params=NETS)
def case(request: pytest.FixtureRequest, set_threads: Callable[[int], None]) -> Case:
    make, batch = NETS[request.param]
    set_threads(1)  # too small for more
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():  # as if trained: not what is drawn at the start, but of one size
        for value in model.parameters():
            if value.dim() > 1:
                value.normal_(std=value[0].numel() ** -0.5)
    return Case(model.eval(), [batch() for _ in range(4)])


def weights(model: nn.Module) -> list[Tensor]:
    """The parameters of two dimensions or more: biases and norms are no weights."""
    return [value for value in model.parameters() if value.dim() > 1]


def decoded(model: nn.Module, small: nn.Module) -> nn.Module:
    """The float model with the weights that the codes stand for."""
    result = copy.deepcopy(model)
    slots = find_slots(result)
    with torch.no_grad():
        for name, coded in coded_weights(small).items():
            slots[name].value.copy_(slots[name].view.restore(coded.codebook_weight.decode()))
    return result


def test_its_weights_are_coded_and_it_computes_with_what_they_stand_for(case: Case) -> None:
    small = vq.compress(case.model, vq.KM(k=16))
    coded = coded_weights(small)
    assert sum(each.codebook_weight.decode().numel() for each in coded.values()) >= 0.99 * sum(
        value.numel() for value in weights(case.model)
    )
    expected = case.outputs(decoded(case.model, small))
    for memory in ("weight", "codes"):
        vq.set_memory(small, memory)
        for _ in range(2):
            torch.testing.assert_close(case.outputs(small), expected, atol=1e-5, rtol=1e-4)
    assert 0 < case.error(small) < 0.2 * float(case.outputs(case.model).square().mean())


def test_its_file_gives_it_back_with_or_without_a_model(case: Case, tmp_path: Path) -> None:
    small = vq.compress(case.model, vq.KM(k=16))
    nbytes = vq.save(small, tmp_path / "net.vq")
    assert nbytes < 0.4 * sum(value.nbytes for value in case.model.parameters())
    fresh = copy.deepcopy(case.model)
    for value in fresh.parameters():
        nn.init.zeros_(value)
    again = vq.load(tmp_path / "net.vq", fresh)
    assert torch.equal(case.outputs(again), case.outputs(small))
    layers = vq.open_file(tmp_path / "net.vq").layers
    slots = find_slots(decoded(case.model, small))
    assert layers.keys() == slots.keys()
    for name, slot in slots.items():
        assert torch.equal(layers[name].decode(), slot.value), name


def test_its_summary_lists_every_weight(case: Case) -> None:
    small = vq.compress(case.model, vq.KM(k=16))
    summary = vq.summary(small)
    assert [row.name for row in summary.rows] == [*find_slots(case.model)]
    assert summary.float_nbytes == sum(4 * value.numel() for value in weights(case.model))
    assert not summary.left


def test_training_its_codebooks_brings_it_nearer(case: Case) -> None:
    small = vq.compress(case.model, vq.KM(k=4))
    before = case.error(small)
    vq.finetune(
        small, case.batches, teacher=case.model, loss=functional.mse_loss, epochs=4, lr=0.01
    )
    assert case.error(small) < 0.8 * before


def test_calibration_brings_its_outputs_nearer(case: Case) -> None:
    scheme = vq.PQ(k=8, dim=4, codebooks="tensor")
    calibrated = vq.compress(case.model, scheme, case.batches)
    assert case.error(calibrated) < case.error(vq.compress(case.model, scheme))


def test_a_search_stays_within_its_budget(case: Case) -> None:
    size = float(case.outputs(case.model).square().mean())

    def likeness(model: nn.Module) -> float:
        return 1 - case.error(model) / size

    result = vq.tune(
        case.model,
        likeness,
        vq.LossBudget(relative=0.05),
        case.batches,
        candidates=[vq.KM(k=4), vq.KM(k=16), vq.KM(k=64)],
        max_trials=4,
    )
    assert result.passed
    assert result.rate > 4
    assert likeness(result.model) == pytest.approx(result.score)
    assert result.score >= 0.95
    assert result.schemes.keys() == find_slots(case.model).keys()


def test_fused_experts_are_coded() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    torch.manual_seed(0)
    model = transformers.MixtralModel(config).eval()
    small = vq.compress(model, vq.KM(k=4))
    experts = "layers.0.mlp.experts"
    assert {f"{experts}.gate_up_proj", f"{experts}.down_proj"} < coded_weights(small).keys()
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        output = small(tokens).last_hidden_state
        expected = decoded(model, small)(tokens).last_hidden_state
    assert torch.allclose(output, expected, atol=1e-5)
