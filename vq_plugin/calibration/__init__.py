"""What the inputs of weights are like, from unlabelled data."""

from vq_plugin.calibration.run import Calibration, input_moments, run_calibration
from vq_plugin.calibration.statistics import (
    MOST_INPUTS,
    InputMoments,
    InputSquares,
    named_moments,
    read_rows,
)

__all__ = [
    "MOST_INPUTS",
    "Calibration",
    "InputMoments",
    "InputSquares",
    "input_moments",
    "named_moments",
    "read_rows",
    "run_calibration",
]
