"""Scikit-learn's k-means, for comparison."""

import torch
from sklearn.cluster import KMeans
from torch import Tensor


def stage_by_stage(weight: Tensor, k: int, stages: int, dim: int) -> Tensor:
    """A weight after k-means of every subspace, each stage on what the ones before left.

    One stage is product quantization; more are Chen et al. 2010.
    """
    residual = weight.double().numpy().reshape(len(weight), -1, dim)
    for stage in range(stages):
        for s in range(residual.shape[1]):
            model = KMeans(k, n_init=1, random_state=stage).fit(residual[:, s])
            residual[:, s] -= model.cluster_centers_[model.labels_]
    return weight.double() - torch.from_numpy(residual).reshape(weight.shape)
