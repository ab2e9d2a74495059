"""Codes and codebooks for the inputs that a layer really meets."""

from __future__ import annotations

from vq_plugin.fit.output.feedback import Factor, descend, feedback
from vq_plugin.fit.output.objective import Objective, Quantized
from vq_plugin.fit.output.outputs_in_turn import outputs_in_turn
from vq_plugin.fit.output.refit import refit
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import CodebookDtype

# Iterations of a refit whose codebooks the next sweep chooses from, and the refit after it moves.
_FEW = 3


def calibrate(
    objective: Objective, quantized: Quantized, codebook_dtype: CodebookDtype
) -> Quantized:
    """Lowers the error of a layer's output, from a fit that knows no correlations.

    Error feedback gives codes, and codebooks are refitted to them; so again, since the second
    feedback starts from codebooks that know the inputs. Then codes are re-assigned to the codebooks
    and these refitted, in turn, as in Lloyd's algorithm, and a last time after the centers are
    rounded. Where it is known what outputs do together, they are assigned once more, one after the
    other. ``quantized`` itself where nothing is better.
    """
    start = Quantized(quantized.codes, quantized.codebooks.float())
    factor = Factor.of(objective, start)
    least = factor.value(objective, start)
    placed = feedback(objective, start, factor)
    if objective.value(placed) > least:
        placed = objective.place(start)
    placed = refit(objective, placed, iterations=_FEW)
    first, value = placed.quantized, objective.value(placed)
    # An error is as large as the weight: not of two fits at once.
    del placed
    placed = refit(objective, feedback(objective, first, factor), iterations=_FEW)
    if objective.value(placed) >= value:
        placed = objective.place(first)
    if objective.across is None:
        # It is as large as the second moments.
        del factor
    placed = refit(objective, descend(objective, placed))
    rounded = round_centers(placed.quantized.codebooks, codebook_dtype)
    if not bool(rounded.isfinite().all()):
        return quantized
    found = Quantized(placed.quantized.codes, rounded.float())
    del placed
    placed = descend(objective, objective.place(found))
    if objective.value(placed) >= least:
        return quantized
    found = placed.quantized
    if objective.across is not None:
        found = outputs_in_turn(objective, objective.across, found, factor)
    return Quantized(found.codes, rounded)
