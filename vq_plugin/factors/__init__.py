"""What may be done to a layer before it is coded, and to its factors."""

from vq_plugin.factors.factored import Factored
from vq_plugin.factors.factors import SVD, Basis, Factor, parse_factor

__all__ = ["SVD", "Basis", "Factor", "Factored", "parse_factor"]
