"""What is done to the dense layers: the methods of Gong et al. 2014, and what came since."""

from __future__ import annotations

import vq_plugin as vq
from vq_plugin.select import Form

#: A factor alone leaves float32 layers.
Setting = vq.SVD | Form

SETTINGS: dict[str, tuple[Setting, ...]] = {
    "SVD": tuple(vq.SVD(rate=rate) for rate in (2, 4, 8, 16, 32)),
    "binary": (vq.Binary(),),
    "KM": tuple(vq.KM(k=k) for k in (1, 2, 4, 8, 16, 32)),
    "PQ, x axis": tuple(vq.PQ(k=k, dim=dim, axis="in") for k in (4, 8, 16) for dim in (1, 2, 3, 4)),
    "RQ": tuple(vq.RQ(k=256, stages=stages) for stages in (2, 3)),
    "PQ, longer": (
        vq.PQ(k=8, dim=8, axis="out"),
        vq.PQ(k=16, dim=8, axis="out"),
        vq.PQ(k=64, dim=8, codebooks="tensor"),
    ),
    "SVD, coded": (
        *(vq.Factored(vq.SVD(rate=rate), vq.KM(k=16)) for rate in (2, 4, 8, 16)),
        *(vq.Factored(vq.SVD(rate=rate), vq.Uniform(step=1.0)) for rate in (4, 8, 16, 32)),
    ),
    "PQ, y axis": tuple(
        vq.PQ(k=k, dim=dim, axis="out") for k in (4, 8, 16) for dim in (1, 2, 3, 4)
    ),
}
# With whole rows as sub-vectors a calibrated fit takes minutes.
PLAIN_ONLY = ("float", "RQ")
QUICK: dict[str, tuple[Setting, ...]] = {
    "SVD": (vq.SVD(rate=4),),
    "KM": (vq.KM(k=4),),
    "SVD, coded": (vq.Factored(vq.SVD(rate=4), vq.KM(k=16)),),
}
