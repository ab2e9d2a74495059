"""One step of Lloyd's algorithm: what a ``CodebookWeight`` becomes when its weight has moved."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vq_plugin.codebook import CodebookWeight, decode
from vq_plugin.fit.batch import Batch, chosen
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.parallel import worker_pool
from vq_plugin.fit.scalar import assign_scalar
from vq_plugin.fit.schemes import codes_by_row, sub_vectors
from vq_plugin.fit.weight import (
    check_codebooks,
    check_range,
    check_weight,
    divide_rows,
    importance_view,
    quantize_weight,
)
from vq_plugin.rounding import round_centers


def nearest_codes(
    weight: Tensor, small: CodebookWeight, importance: Tensor | None = None
) -> CodebookWeight:
    """Codes of the nearest centers for a weight that has moved; codebooks and scales stay.

    With several stages each in turn is assigned to what the others leave, which never raises the
    error. Arguments and errors are those of :func:`lloyd_step`.

    Example:
        >>> import vq_plugin as vq
        >>> weight = torch.tensor([[0.0, 1.0], [0.9, 0.1]])
        >>> small = quantize_weight(weight, vq.KM(k=2))
        >>> nearest_codes(1 - weight, small).codes.tolist()
        [[[1, 0], [0, 1]]]
    """
    with torch.inference_mode(False), worker_pool():
        view = _View(weight, small, importance)
        return view.result(_assigned(view), view.centers)


def lloyd_step(
    weight: Tensor, small: CodebookWeight, importance: Tensor | None = None
) -> CodebookWeight:
    """Nearest codes for a weight that has moved, then the means of what each center got.

    One iteration of Lloyd 1982 ("Least squares quantization in PCM"). Row scales follow by least
    squares. A center without points stays, and so does the zero of ``KM(keep_zeros=True)``;
    ``Binary`` has a closed form. Rounding of the centers aside, the error never rises. Importance
    and errors are as in :func:`vq_plugin.quantize_weight`, the device is that of ``weight``.

    Example:
        >>> import vq_plugin as vq
        >>> weight = torch.tensor([[0.0, 1.0], [0.75, 0.25]])
        >>> small = quantize_weight(weight, vq.KM(k=2))
        >>> lloyd_step(weight + 0.125, small).codebooks.flatten().tolist()
        [0.25, 1.0]
    """
    if not small.scheme.calibrates:
        return quantize_weight(weight, small.scheme, importance)
    with torch.inference_mode(False), worker_pool():
        view = _View(weight, small, importance)
        codes = _assigned(view)
        moved = view.result(codes, _means(view, codes))
        if moved.scale is None:
            return moved
        return replace(moved, scale=_row_scales(view, moved, moved.scale))


class _View:
    """A weight as points, with the codes and centers of ``small`` beside them.

    ``matrix`` is not divided by row scales, as the points of ``groups`` are, one for every group of
    rows. ``codes``, ``(books, n)``, and ``centers``, ``(books, k, dim)``, are by group and stage.
    """

    def __init__(self, weight: Tensor, small: CodebookWeight, importance: Tensor | None) -> None:
        check_weight(weight)
        self.small, self._device = small, weight.device
        geometry = small.geometry
        self.matrix = geometry.matrix(weight.detach().cpu().float())
        self.importance = None if importance is None else importance_view(importance, geometry)
        points, masses = self.matrix, self.importance
        if small.scale is not None:
            points, masses = divide_rows(points, masses, small.scale.cpu())
        check_range(points)
        self.geometry = geometry
        rows = geometry.group or geometry.rows
        groups = [slice(start, start + rows) for start in range(0, geometry.rows, rows)]
        self.groups = [
            sub_vectors(
                geometry.pieces(points[group]),
                None if masses is None else geometry.pieces(masses[group]),
                geometry,
            )
            for group in groups
        ]
        self.codes = [
            list(
                group.reshape(len(group), 1, -1)
                if geometry.shared
                else group.reshape(len(group), -1, geometry.books).transpose(1, 2)
            )
            for group in torch.split(small.codes.cpu(), rows, 1)
        ]
        self.centers = [list(tables) for tables in small.codebooks.cpu().float().unbind(1)]

    def result(self, codes: list[list[Tensor]], centers: list[list[Tensor]]) -> CodebookWeight:
        """Codes and centers by group and stage as the weight that they make."""
        small, scheme = self.small, self.small.scheme
        geometry = self.geometry
        subspaces = geometry.subspaces // geometry.positions
        grid = torch.cat([codes_by_row(torch.stack(group), subspaces) for group in codes], 1)
        grid = grid.reshape(geometry.code_shape)
        tables = torch.stack([torch.stack(group) for group in centers], 1)
        tables = round_centers(tables, scheme.codebook_dtype)
        check_codebooks(tables, self.matrix, scheme)
        return replace(
            small,
            codes=grid.to(small.codes.dtype).to(self._device),
            codebooks=tables.to(self._device),
            scale=None if small.scale is None else small.scale.to(self._device),
        )


def _residual(batch: Batch, codes: list[Tensor], centers: list[Tensor], stage: int) -> Batch:
    """What the stages other than ``stage`` leave."""
    residual = batch.x
    for other, (stage_codes, table) in enumerate(zip(codes, centers, strict=True)):
        if other != stage:
            residual = residual - chosen(table, stage_codes)
    return Batch(residual, batch.importance)


def _assigned(view: _View) -> list[list[Tensor]]:
    """Nearest codes by group and stage."""
    geometry = view.geometry
    scalar = geometry.dim == 1 and geometry.stages == 1 and geometry.shared
    by_group = []
    for batch, codes, centers in zip(view.groups, view.codes, view.centers, strict=True):
        group_codes = list(codes)
        for stage, table in enumerate(centers):
            residual = _residual(batch, group_codes, centers, stage)
            group_codes[stage] = (
                assign_scalar(residual.x.flatten(), table.flatten()).unsqueeze(0)
                if scalar and bool((table.diff(dim=1) >= 0).all())
                else best_kernels().assign(residual, table)
            )
        by_group.append(group_codes)
    return by_group


def _means(view: _View, codes: list[list[Tensor]]) -> list[list[Tensor]]:
    """Means of what every center got, by group and stage."""
    scheme = view.small.scheme
    by_group = []
    for batch, group_codes, centers in zip(view.groups, codes, view.centers, strict=True):
        moved = list(centers)
        for stage, table in enumerate(centers):
            residual = _residual(batch, group_codes, moved, stage)
            means, mass = best_kernels().means(residual, group_codes[stage], table.shape[1])
            stays = mass.amax(2, keepdim=True) == 0
            pinned = scheme.pinned(table)
            if pinned is not None:
                stays |= pinned
            moved[stage] = torch.where(stays, table, means)
        by_group.append(moved)
    return by_group


def _row_scales(view: _View, moved: CodebookWeight, before: Tensor) -> Tensor:
    """Scales that fit the rows best, ``<w, d> / <d, d>``; the old one where that is no scale."""
    cut = view.geometry
    codes, codebooks = moved.codes.cpu(), moved.codebooks.cpu().float()
    plain = decode(codes, codebooks, None, shape=cut.shape, axis=cut.axis, group=cut.group)
    plain = cut.matrix(plain)
    mass = 1.0 if view.importance is None else view.importance
    best = (view.matrix * plain * mass).sum(1) / (plain * plain * mass).sum(1)
    best = best.to(before.dtype).to(before.device)
    return torch.where((best > 0) & best.isfinite(), best, before)
