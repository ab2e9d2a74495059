"""The budget tuner."""

from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.recovery import Learning, Recovery
from vq_plugin.tuning.result import (
    Export,
    FrontierPoint,
    LayerCandidate,
    LayerLadder,
    Trial,
    TuneResult,
)
from vq_plugin.tuning.search import tune
from vq_plugin.tuning.space import FACTORS, LADDER

__all__ = [
    "FACTORS",
    "LADDER",
    "Export",
    "FrontierPoint",
    "LayerCandidate",
    "LayerLadder",
    "Learning",
    "LossBudget",
    "Recovery",
    "Trial",
    "TuneResult",
    "tune",
]
