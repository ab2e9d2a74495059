"""What the inputs of weights are like, from unlabelled data."""

from vq_plugin.calibration.run import (
    Calibration,
    CalibrationError,
    check_batches,
    input_moments,
    run_calibration,
    unfit_batch,
)
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
    "CalibrationError",
    "InputMoments",
    "InputSquares",
    "check_batches",
    "input_moments",
    "named_moments",
    "read_rows",
    "run_calibration",
    "unfit_batch",
]
