"""Codes and codebooks for the inputs that a layer really meets."""

from __future__ import annotations

from vq_plugin.fit.output.feedback import Factor, descend, feedback
from vq_plugin.fit.output.objective import Objective, Quantized
from vq_plugin.fit.output.refit import refit
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import CodebookDtype


def calibrate(
    objective: Objective, quantized: Quantized, codebook_dtype: CodebookDtype
) -> Quantized:
    """Lowers the error of a layer's output, from a fit that knows no correlations.

    Error feedback gives the first codes. Then codebooks are refitted to the codes and codes
    re-assigned to the codebooks, in turn, as in Lloyd's algorithm, and a last time after the
    centers are rounded. ``quantized`` itself where nothing is better.
    """
    start = Quantized(quantized.codes, quantized.codebooks.float())
    factor = Factor.of(objective, start)
    least = factor.value(objective, start)
    placed = feedback(objective, start, factor)
    # It is as large as the second moments.
    del factor
    if objective.value(placed) > least:
        placed = objective.place(start)
    placed = descend(objective, refit(objective, placed))
    placed = refit(objective, placed)
    rounded = round_centers(placed.quantized.codebooks, codebook_dtype)
    if not bool(rounded.isfinite().all()):
        return quantized
    placed = descend(objective, objective.place(Quantized(placed.quantized.codes, rounded.float())))
    if objective.value(placed) >= least:
        return quantized
    return Quantized(placed.quantized.codes, rounded)
