"""Which kernels run, and for which shapes the native ones leave the work to torch."""

import pytest
import torch
from torch import Tensor

import vq_plugin as vq
from vq_plugin.fit.batch import Batch
from vq_plugin.fit.kernels import Kernels, NativeKernels, TorchKernels, best_kernels
from vq_plugin.ops import fit


@pytest.mark.parametrize("native", [False, True])
def test_native_kernels_run_where_there_are_any(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "native_fits", lambda: native)
    assert isinstance(best_kernels(), NativeKernels) == native


@pytest.mark.skipif(not fit.native_fits(), reason="no native kernels here")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dim", "k"), [(65, 4), (2, 257)])
def test_long_sub_vectors_and_many_centers_are_left_to_torch(
    dim: int, k: int, weighted: bool
) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, dim, generator=rng)
    batch = Batch(x, torch.rand(x.shape, generator=rng) + 0.1 if weighted else None)
    first = torch.rand(2, 1, generator=rng, dtype=torch.float64)
    draws = torch.rand(k - 1, 2, 3, generator=rng, dtype=torch.float64)

    def results(kernels: Kernels) -> list[Tensor]:
        centers = kernels.seeds(batch, torch.ones(2, 300), first, draws)
        moved, codes = kernels.lloyd_iterations(batch, centers, iterations=5, tolerance=1e-4)
        return [
            centers, moved, codes, *kernels.assign_with_error(batch, moved),
            *kernels.means(batch, codes, k), kernels.exchange(batch, codes, k, sweeps=2),
            kernels.code_search(torch.linspace(-1, 1, k - 1))(x.flatten()[:99]).long(),
        ]  # fmt: skip

    for native, pure in zip(results(NativeKernels()), results(TorchKernels()), strict=True):
        assert native.dtype == pure.dtype
        assert torch.equal(native, pure)


def test_a_scheme_beyond_both_limits_is_fitted_all_the_same() -> None:
    weight = torch.randn(600, 130)
    for scheme in (vq.PQ(k=300, dim=2), vq.PQ(k=4, dim=65), vq.KM(k=1000)):
        assert vq.quantize_weight(weight, scheme).k == scheme.k
