"""What learns: codes that pay for their bits, pruning, codebooks, norms, layers left in float."""

from vq_plugin.training.compensate import compensate
from vq_plugin.training.factors import prune_factors
from vq_plugin.training.finetune import finetune
from vq_plugin.training.learn import learn
from vq_plugin.training.loop import Loss, Stop
from vq_plugin.training.norms import reestimate_norms
from vq_plugin.training.prune import prune

__all__ = [
    "Loss",
    "Stop",
    "compensate",
    "finetune",
    "learn",
    "prune",
    "prune_factors",
    "reestimate_norms",
]
