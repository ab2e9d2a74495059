"""A weight in training as centers of sub-vectors, and what their bits pull it towards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight, decode
from vq_plugin.fit.batch import Batch, chosen
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.schemes import codes_by_row, sub_vectors
from vq_plugin.nn import Slot
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import Scheme, torch_code_dtype
from vq_plugin.slot_fit import fit_named
from vq_plugin.training.latent_base import UNSEEN, Latent, entropy

# How fast centers learn, over how fast latent weights do: each serves many of them.
_CENTERS = 3.0


class LatentVectors(Latent):
    """A float weight behind one whose sub-vectors are centers of a codebook, as those of ``PQ``.

    What the model computes with is the center that is nearest to the latent sub-vector. The task's
    gradient passes straight through to the latent weight, and its sum over the sub-vectors of a
    center to that (van den Oord et al. 2017, arXiv 1711.00937, without their auxiliary loss).
    Beside it the bits of the codes pull, ``-log2`` of their shares among the codes of the weight
    (entropy-constrained vector quantization, Chou, Lookabaugh & Gray 1989): a sub-vector goes to
    where bits fall fastest on its way to another center, the difference of two code lengths over
    the distance of the two. From the commonest center all ways lead up; sub-vectors that have it
    go to its middle, by the mean slope of the ways that come down to it. One center of each
    codebook is the zero vector and stays it.

    Attributes:
        latent: Sub-vectors, ``(books, n, dim)``, float32; padded as those of a fit are.
        centers: ``(books, k, dim)``, float32, ascending in length at first; the first is zero.
        places: Codes, ``(books, n)``.
        targets: Which center the bits of each pull to, ``(books, k, dim)``.
        slopes: How hard, in bits over length, ``(books, k, 1)``.
    """

    places: Tensor
    targets: Tensor
    slopes: Tensor

    def __init__(self, weight: nn.Parameter, slot: Slot, scheme: Scheme, seed: int) -> None:
        """Starts from the centers that the scheme's fit finds; ``ValueError`` if it finds none."""
        super().__init__(weight)
        self._scheme, self._view = scheme, slot.view
        values = weight.detach().float()
        fitted = fit_named(slot.name, self._view.weight(values), scheme, seed=seed)
        self._geometry = fitted.geometry
        points = self._points(values)
        self.latent = nn.Parameter(points.x.clone())
        # Of what pads rows: next to nothing. It never changes.
        self._importance = points.importance
        centers = fitted.codebooks[0, 0].float()
        # A code is then about as long in every book, and they can share a table.
        centers = chosen(centers, centers.square().sum(2).argsort(dim=1, stable=True))
        centers[:, 0] = 0
        self.centers = nn.Parameter(centers)
        k = centers.shape[1]
        places = torch.zeros(points.x.shape[:2], dtype=torch_code_dtype(k), device=values.device)
        self.register_buffer("places", places)
        self.register_buffer("targets", centers.clone())
        self.register_buffer("slopes", centers.new_zeros(*centers.shape[:2], 1))
        self._assign()

    def groups(self, lr: float) -> list[dict[str, object]]:
        """Latent sub-vectors, and centers faster."""
        return [
            {"params": [self.latent], "lr": lr},
            {"params": [self.centers], "lr": _CENTERS * lr},
        ]

    @torch.no_grad()
    def count(self) -> None:
        """See :meth:`Latent.count`."""
        counts = self._counts(self.places)
        self.bits.copy_(entropy(counts))
        lengths = -((counts + UNSEEN) / (counts.sum() + UNSEEN * len(counts))).log2()
        commonest = int(lengths.argmin())
        centers = self.centers.detach()
        # From each center (first) to each (second).
        distance = (centers.unsqueeze(2) - centers.unsqueeze(1)).square_().sum(3).sqrt_()
        falls = (lengths.unsqueeze(1) - lengths).clamp_min_(0).to(distance)
        slopes = falls / distance.clamp_min_(torch.finfo(torch.float32).tiny)
        steepest, target = slopes.max(2)
        others = counts.index_fill(0, torch.tensor(commonest, device=counts.device), 0)
        share = (others / others.sum().clamp_min_(1)).to(distance)
        steepest[:, commonest] = slopes[:, :, commonest] @ share
        target[:, commonest] = commonest
        self.slopes.copy_(steepest.unsqueeze(2))
        self.targets.copy_(chosen(centers, target))

    @torch.no_grad()
    def bits_above(self, limit: float) -> float:
        """See :meth:`Latent.bits_above`."""
        return float(entropy(self._counts(self.places.masked_fill(self._short(limit), 0))))

    @torch.no_grad()
    def clear(self, limit: float) -> None:
        """See :meth:`Latent.clear`; a step is half as long as centers in use are in the mean."""
        short = self._short(limit)
        self.places.masked_fill_(short, 0)
        self.latent.masked_fill_(short.unsqueeze(2), 0)

    def kept(self) -> tuple[Tensor, ...]:
        """Latent sub-vectors and codes."""
        return self.latent.detach().clone(), self.places.clone()

    def restore(self, kept: tuple[Tensor, ...]) -> None:
        """See :meth:`Latent.restore`."""
        latent, places = kept
        self.latent.data.copy_(latent)
        self.places.copy_(places)

    @torch.no_grad()
    def write(self, settled: bool) -> None:
        """See :meth:`Latent.write`."""
        if not settled:
            self._assign()
        tables = self.centers.detach()[None, None]
        geometry = self._geometry
        decoded = decode(
            self._codes(self.places), tables, None, shape=geometry.shape, axis=geometry.axis
        )
        self._weight[0].copy_(self._view.restore(decoded))

    @torch.no_grad()
    def pull(self, rate_weight: float, settled: bool) -> None:
        """See :meth:`Latent.pull`; the zero vector gets none."""
        grad = self._points(self._gradient()).x.contiguous()
        self.latent.grad = None
        means, mass = best_kernels().means(
            Batch(grad.cpu(), None), self.places.cpu(), self.centers.shape[1]
        )
        sums = means.mul_(mass)
        sums[:, 0] = 0
        self.centers.grad = sums.to(grad.device)
        if settled:
            return
        way = self.latent.detach() - chosen(self.targets, self.places)
        length = way.square().sum(2, keepdim=True).sqrt_()
        slope = chosen(self.slopes, self.places).mul_(rate_weight)
        way *= slope.div_(length.clamp_min_(torch.finfo(torch.float32).tiny))
        self.latent.grad = grad + way

    @torch.no_grad()
    def coded(self, slot: Slot) -> CodebookWeight:
        """See :meth:`Latent.coded`; centers that no code has are left out."""
        used = self._counts(self.places) > 0
        number = used.cumsum(0).sub_(1).clamp_min_(0)
        k = int(used.sum())
        return CodebookWeight(
            codes=self._codes(number[self.places.long()]).to(torch_code_dtype(k)),
            codebooks=round_centers(
                self.centers.detach()[None, None, :, used], self._scheme.codebook_dtype
            ),
            scale=None,
            scheme=self._scheme,
            shape=self._geometry.shape,
            dtype=slot.value.dtype,
        )

    @torch.no_grad()
    def _assign(self) -> None:
        importance = None if self._importance is None else self._importance.cpu()
        points = Batch(self.latent.detach().cpu(), importance)
        self.places.copy_(best_kernels().assign(points, self.centers.detach().cpu()))

    def _points(self, parameter: Tensor) -> Batch:
        geometry = self._geometry
        pieces = geometry.pieces(geometry.matrix(self._view.weight(parameter)))
        return sub_vectors(pieces, None, geometry)

    def _codes(self, places: Tensor) -> Tensor:
        geometry = self._geometry
        pieces = codes_by_row(places.unsqueeze(0), geometry.subspaces // geometry.positions)
        return pieces.reshape(geometry.code_shape)

    def _counts(self, places: Tensor) -> Tensor:
        return torch.bincount(places.flatten().int(), minlength=self.centers.shape[1]).double()

    def _short(self, limit: float) -> Tensor:
        """Which sub-vectors are; none that is zero already matters."""
        lengths = self.centers.detach().square().sum(2)
        kept = chosen(lengths.unsqueeze(2), self.places)[self.places > 0]
        step = 0.5 * float(kept.double().mean().sqrt()) if len(kept) else 1.0
        return self.latent.detach().square().sum(2) < (limit * step) ** 2
