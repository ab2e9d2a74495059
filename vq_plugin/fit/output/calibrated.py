"""Codes and codebooks for the inputs that a layer really meets."""

from __future__ import annotations

from vq_plugin.fit.output.feedback import Factor, descend, feedback
from vq_plugin.fit.output.objective import Fitted, Objective
from vq_plugin.fit.output.refit import refit
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
    factor = Factor.of(objective, start)
    least = factor.value(objective, start)
    placed = feedback(objective, start, factor)
    if objective.value(placed) > least:
        placed = objective.place(start)
    for _ in range(_ROUNDS):
        placed = descend(objective, refit(objective, placed))
    placed = refit(objective, placed)
    rounded = round_centers(placed.fitted.codebooks, codebook_dtype)
    if not bool(rounded.isfinite().all()):
        return fitted
    placed = descend(objective, objective.place(Fitted(placed.fitted.codes, rounded.float())))
    if objective.value(placed) >= least:
        return fitted
    return Fitted(placed.fitted.codes, rounded)
