"""What learns: pruning, codebooks, norms, and layers that make up for others."""

from vq_plugin.training.compensate import compensate
from vq_plugin.training.finetune import finetune
from vq_plugin.training.loop import Loss, Stop
from vq_plugin.training.norms import reestimate_norms
from vq_plugin.training.prune import prune

__all__ = ["Loss", "Stop", "compensate", "finetune", "prune", "reestimate_norms"]
