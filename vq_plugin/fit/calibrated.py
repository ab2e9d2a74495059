"""Codes and codebooks for the inputs that a layer really meets."""

from __future__ import annotations

from vq_plugin.fit.feedback import descend, feedback
from vq_plugin.fit.objective import Fitted, Objective
from vq_plugin.fit.refit import refit
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import CodebookDtype

_ROUNDS = 1


def calibrate(objective: Objective, fitted: Fitted, codebook_dtype: CodebookDtype) -> Fitted:
    """Lowers the error of a layer's output, from a fit that knows no correlations.

    Error feedback gives the first codes. Then codebooks are refitted to the codes and codes
    re-assigned to the codebooks, in turn, as in Lloyd's algorithm, and a last time after the
    centers are rounded.

    Args:
        objective: The error of the output.
        fitted: Where to start, with rounded codebooks.
        codebook_dtype: What they are rounded to.

    Returns:
        Codes and rounded codebooks of the same shapes; ``fitted`` where nothing is better.
    """
    start = Fitted(fitted.codes.long(), fitted.codebooks.float())
    found = feedback(objective, start)
    if _value(objective, found) > _value(objective, start):
        found = start
    for _ in range(_ROUNDS):
        found = descend(objective, refit(objective, found))
    found = refit(objective, found)
    rounded = round_centers(found.codebooks, codebook_dtype)
    if not bool(rounded.isfinite().all()):
        return fitted
    found = descend(objective, Fitted(found.codes, rounded.float()))
    if _value(objective, found) >= _value(objective, start):
        return fitted
    return Fitted(found.codes, rounded)


def _value(objective: Objective, fitted: Fitted) -> float:
    error = objective.weight - objective.decode(fitted)
    return objective.value(error, objective.pull(error))
