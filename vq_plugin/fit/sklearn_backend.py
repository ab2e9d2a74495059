"""The same fits by scikit-learn's ``KMeans``: slower, independent, for comparison."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vq_plugin.fit.assignment import Batch


def fit_scalar(
    values: Tensor, k: int, *, importance: Tensor | None, keep_zeros: bool, seed: int
) -> Tensor:
    """As :func:`vq_plugin.fit.scalar.fit_scalar`.

    Raises:
        ValueError: If ``keep_zeros`` is set: scikit-learn cannot pin a center.
    """
    if keep_zeros:
        raise ValueError("backend='sklearn' cannot pin a center at 0; use keep_zeros=False")
    mass = None if importance is None else importance.unsqueeze(1)
    return _kmeans(values.unsqueeze(1), mass, k, seed)[0].flatten().sort().values.double()


def fit_vector(batch: Batch, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """As :func:`vq_plugin.fit.vector.fit_vector`.

    Raises:
        ValueError: If importance differs within a sub-vector: scikit-learn weighs whole points.
    """
    centers, codes = [], []
    for book, x in enumerate(batch.x):
        importance = None if batch.importance is None else batch.importance[book]
        found, labels = _kmeans(x, importance, k, seed)
        centers.append(found)
        codes.append(labels)
    widest = max(len(found) for found in centers)
    padded = [torch.cat([c, c[-1:].expand(widest - len(c), -1)]) for c in centers]
    return torch.stack(padded), torch.stack(codes)


def _kmeans(x: Tensor, importance: Tensor | None, k: int, seed: int) -> tuple[Tensor, Tensor]:
    from sklearn.cluster import KMeans

    mass = None
    if importance is not None:
        if bool((importance != importance[:, :1]).any()):
            raise ValueError(
                "backend='sklearn' weighs whole sub-vectors; importance must not differ within one"
            )
        mass = importance[:, 0].numpy()
    points = x.numpy()
    distinct = len(np.unique(points, axis=0))
    model = KMeans(min(k, distinct), n_init=1, random_state=seed).fit(points, sample_weight=mass)
    return torch.from_numpy(model.cluster_centers_), torch.from_numpy(model.labels_)
