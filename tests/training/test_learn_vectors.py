"""``vq.learn(schemes=)``: vectors pay for their bits, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from tests.training.learning import Everything, Killed, inputs, network, saved
from tests.training.test_finetune import batches, same
from vq_plugin.coding.entropy import coded_size
from vq_plugin.nn import Slot, coded_weights, find_slots
from vq_plugin.training.latent import WIDEST
from vq_plugin.training.latent_vectors import LatentVectors
from vq_plugin.workloads import digits

SHARED = vq.PQ(k=16, dim=4, codebooks="tensor")


def latent_of(shape: tuple[int, ...], scheme: vq.PQ) -> tuple[LatentVectors, nn.Parameter, Slot]:
    """Vectors of random numbers, most of them small."""
    layer = nn.Linear(shape[1], shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(3)) ** 3)
    (slot,) = find_slots(layer).values()
    return LatentVectors(layer.weight, slot, scheme, 0), layer.weight, slot


@pytest.mark.filterwarnings("ignore:codes are far off")
def test_less_is_lost_than_by_fit_and_training_of_the_codebooks(tmp_path: Path) -> None:
    model = digits.model()
    vectors = vq.PQ(k=4, dim=16, codebooks="tensor")
    fitted = vq.compress(model, {nn.Linear: vectors, "*": "km(k=4)"})
    vq.finetune(fitted, batches(labels=False), teacher=model, epochs=12)
    nbytes = saved(fitted, tmp_path)
    small = vq.learn(
        model, batches(labels=False), target_bytes=nbytes, epochs=12,
        schemes={nn.Linear: SHARED},
    )  # fmt: skip
    assert saved(small, tmp_path) <= nbytes
    assert digits.test(small) > digits.test(fitted) + 0.02


@pytest.mark.parametrize(
    "scheme", ["pq(k=16,dim=4,codebooks=tensor)", "pq(k=32,dim=8,codebooks=tensor)"]
)
def test_a_target_is_never_exceeded(scheme: str, tmp_path: Path) -> None:
    for epochs in (1, 8):  # one is too short: what is too much is cut
        small = vq.learn(
            digits.model(), batches(labels=False), target_bytes=9_000, epochs=epochs,
            schemes={nn.Linear: scheme},
        )  # fmt: skip
        assert saved(small, tmp_path) <= 9_000


def test_codes_are_those_of_the_scheme_and_most_vectors_zero(tmp_path: Path) -> None:
    schemes = {nn.Linear: SHARED}
    small = vq.learn(
        digits.model(), batches(labels=False), rate_weight=2e-5, epochs=6, schemes=schemes
    )
    for name, held in coded_weights(small).items():
        weight = held.codebook_weight
        if not name.startswith("classifier"):
            assert weight.scheme.method == "km"
            continue
        assert weight.scheme == SHARED
        assert weight.k <= 16
        assert weight.codes.unique().tolist() == list(range(weight.k))
        assert not bool(weight.codebooks[0, 0, 0, 0].any())
        if name == "classifier.0":
            assert float((weight.codes == 0).double().mean()) > 0.5
    assert digits.test(small) > digits.test(digits.model()) - 0.05
    vq.save(small, tmp_path / "model.vq")
    again = vq.load(tmp_path / "model.vq", digits.model())
    x = digits.load().test[0][:4]
    with torch.no_grad():
        assert torch.allclose(again.eval()(x), small.eval()(x), atol=1e-4)


def test_a_higher_price_gives_more_zeros() -> None:
    def zeros(price: float) -> float:
        small = vq.learn(
            network(), inputs(), rate_weight=price, epochs=4, schemes=vq.PQ(k=16, dim=2)
        )
        weights = [each.codebook_weight.decode() for each in coded_weights(small).values()]
        return float(torch.cat([w.flatten() for w in weights]).eq(0).double().mean())

    free, cheap, dear = map(zeros, (0.0, 1e-4, 1e-2))
    assert free <= cheap < dear


def test_bits_that_are_counted_are_bits_of_the_file() -> None:
    latent, _, slot = latent_of((256, 256), vq.PQ(k=64, dim=2, codebooks="tensor"))
    latent.count()
    small = latent.coded(slot)
    size = coded_size(small.codes.numpy(), small.k)
    assert float(latent.bits) / 8 == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("scheme", [SHARED, vq.PQ(k=8, dim=4), vq.PQ(k=8, dim=3, axis="out")])
def test_bits_pull_along_the_way_where_they_fall_fastest(scheme: vq.PQ) -> None:
    latent, weight, _ = latent_of((64, 32), scheme)
    latent.count()
    counts = torch.bincount(
        latent.places.flatten().int(), minlength=latent.centers.shape[1]
    ).double()
    lengths = -((counts + 0.5) / (counts.sum() + 0.5 * len(counts))).log2()
    commonest = int(lengths.argmin())
    weight.grad = torch.zeros_like(weight)
    latent.pull(3.0, settled=False)
    assert latent.latent.grad is not None
    assert weight.grad is None
    for book in range(len(latent.places)):
        centers = latent.centers[book].detach().double()
        for at in range(0, latent.places.shape[1], 9):
            code = int(latent.places[book, at])
            if code == commonest:
                continue
            falls = (lengths[code] - lengths).clamp_min(0)
            slopes = falls / (centers[code] - centers).norm(dim=1).clamp_min(1e-30)
            way = latent.latent[book, at].detach().double() - centers[int(slopes.argmax())]
            expected = 3 * slopes.max() * way / way.norm()
            assert torch.allclose(latent.latent.grad[book, at].double(), expected, rtol=1e-3)


@pytest.mark.parametrize(
    "scheme",
    [SHARED, vq.PQ(k=8, dim=3), vq.PQ(k=8, dim=4, axis="out"),
     vq.PQ(k=16, dim=4, codebooks="tensor", layout="channels"),
     vq.PQ(k=8, dim=4, layout="channels")],
)  # fmt: skip
def test_the_model_computes_with_what_is_coded(scheme: vq.PQ) -> None:
    layer = nn.Conv2d(6, 10, 3)
    (slot,) = find_slots(layer).values()
    latent = LatentVectors(layer.weight, slot, scheme, 0)
    latent.write(settled=False)
    small = latent.coded(slot)
    assert small.geometry.axis == scheme.geometry((10, 6, 3, 3)).axis
    assert torch.allclose(small.decode(), layer.weight.detach(), atol=1e-3)
    layer(torch.randn(2, 6, 8, 8)).square().sum().backward()
    found = layer.weight.grad
    assert found is not None
    latent.pull(0.0, settled=False)
    # Straight through: the gradients of all numbers, each once.
    assert latent.latent.grad is not None
    assert float(latent.latent.grad.double().sum()) == pytest.approx(
        float(found.double().sum()), rel=1e-4
    )


def test_every_kind_of_layer_learns_vectors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Everything().train()
    tokens = [torch.randint(20, (8, 5)) for _ in range(6)]
    small = vq.learn(model, tokens, rate_weight=1e-4, epochs=2, lr=1e-2, schemes=vq.PQ(k=16, dim=2))
    held = coded_weights(small)
    assert {"table", "up", "conv", "head"} <= set(held)
    assert {each.codebook_weight.scheme.method for each in held.values()} == {"pq"}
    assert torch.equal(small.head.weight, small.table.weight)  # type: ignore[union-attr]
    assert not bool(small.table.weight[0].any())  # type: ignore[union-attr, index]
    saved(small, tmp_path)
    again = vq.load(tmp_path / "model.vq", Everything())
    with torch.no_grad():
        assert torch.allclose(again.eval()(tokens[0]), small.eval()(tokens[0]), atol=1e-2)


def test_the_same_bytes_again_and_after_a_kill(tmp_path: Path) -> None:
    def run(loader: list[Tensor], target: int | None, **more: Any) -> dict[str, Tensor]:
        price = None if target else 1e-3
        settings: dict[str, Any] = {"rate_weight": price, "target_bytes": target, "epochs": 4}
        settings |= {"schemes": {"0": "pq(k=16,dim=4,codebooks=tensor)"}, **more}
        return dict(vq.learn(network(), loader, **settings).state_dict())

    for target in (None, 2000):
        whole = run(inputs(), target)
        assert same(whole, run(inputs(), target))
        file = tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            run(Killed(inputs()), target, checkpoint=file)
        with pytest.raises(ValueError, match="is of a run with"):
            run(inputs(), target, checkpoint=file, schemes="pq(k=8,dim=4,codebooks=tensor)")
        assert same(whole, run(inputs(), target, checkpoint=file))
        assert not file.exists()


def test_threads_change_no_byte_of_what_is_assigned() -> None:
    def assigned(threads: int) -> tuple[Tensor, Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            latent, weight, _ = latent_of((300, 256), SHARED)
            latent.count()
            latent.write(settled=False)
            weight.grad = weight.detach() * 0.01
            latent.pull(1e-3, settled=False)
            assert latent.centers.grad is not None
            return latent.places, latent.centers.grad
        finally:
            torch.set_num_threads(before)

    assert all(map(torch.equal, assigned(1), assigned(4)))


def test_half_precision_and_what_is_not_a_multiple_of_dim() -> None:
    model = network().half()
    batch = [x.half() for x in inputs()]
    schemes = {"0": vq.PQ(k=16, dim=3, codebooks="tensor"), "2": WIDEST}
    small = vq.learn(model, batch, rate_weight=1e-4, epochs=3, schemes=schemes)
    assert {p.dtype for p in small.parameters()} == {torch.float16}
    assert coded_weights(small)["2"].codebook_weight.scheme.method == "km"
    with torch.no_grad():
        error = (small(batch[0]).float() - model(batch[0]).float()).std()
        assert error < 0.7 * model(batch[0]).float().std()


def test_a_weight_of_zeros_stays_one() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[operator, union-attr]
    small = vq.learn(model, inputs(), rate_weight=1e-2, epochs=1, schemes=SHARED, lr=0.0)
    assert not bool(small[0].weight.any())  # type: ignore[index]


@pytest.mark.parametrize(
    ("schemes", "error", "message"),
    [
        ("rq(k=16,stages=2,dim=4)", ValueError, "layer '0': rq.* does not learn: give pq"),
        ("km(k=16)", ValueError, "layer '0': km.* does not learn"),
        ("km(k=16,group=8)", ValueError, "layer '0': km.* does not learn"),
        ("signs(levels=2,block=4)", ValueError, "layer '0': signs.* does not learn"),
        (vq.PQ(scale="row"), ValueError, "without scale="),
        ({"3": SHARED}, ValueError, "'3' matches nothing"),
        ("small", TypeError, "preset"),
        ({"0": 5}, TypeError, "expected a scheme"),
    ],
)
def test_what_does_not_learn_is_named(schemes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vq.learn(network(), inputs(2), rate_weight=1e-4, epochs=1, schemes=schemes)


def test_two_schemes_of_one_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="share one weight"):
        vq.learn(
            Everything(), [torch.randint(20, (8, 5))], rate_weight=1e-4, epochs=1,
            schemes={"head": vq.PQ(k=16, dim=2)},
        )  # fmt: skip
