"""The budget tuner."""

from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.candidates import LADDER
from vq_plugin.tuning.search import Trial, TuneResult, tune

__all__ = ["LADDER", "LossBudget", "Trial", "TuneResult", "tune"]
