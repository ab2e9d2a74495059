"""What the inputs of weights are like, from unlabelled data."""

from vq_plugin.calibration.attach import INPUT_STATS, attach_moments, detach_moments
from vq_plugin.calibration.run import Calibration, input_moments, run_calibration
from vq_plugin.calibration.statistics import (
    MOST_INPUTS,
    InputMoments,
    InputSquares,
    named_moments,
)

__all__ = [
    "INPUT_STATS",
    "MOST_INPUTS",
    "Calibration",
    "InputMoments",
    "InputSquares",
    "attach_moments",
    "detach_moments",
    "input_moments",
    "named_moments",
    "run_calibration",
]
