"""Smaller float layers, made before anything is coded: low ranks and bases of kernels."""

from vq_plugin.factorize.factors import SVD, Basis, Factor, parse_factor
from vq_plugin.factorize.layers import FactorizedLayer, KernelBasis, LowRank
from vq_plugin.factorize.model import Factors, factorize

__all__ = [
    "SVD",
    "Basis",
    "Factor",
    "FactorizedLayer",
    "Factors",
    "KernelBasis",
    "LowRank",
    "factorize",
    "parse_factor",
]
