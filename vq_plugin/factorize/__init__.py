"""Smaller float layers, made before anything is coded: products of two, and merged neurons."""

from vq_plugin.factorize.layers import FactorizedLayer, KernelBasis, LowRank, factorized_away
from vq_plugin.factorize.merge import merge_neurons
from vq_plugin.factorize.model import Factors, factorize
from vq_plugin.factors import SVD, Basis, Factor, parse_factor

__all__ = [
    "SVD",
    "Basis",
    "Factor",
    "FactorizedLayer",
    "Factors",
    "KernelBasis",
    "LowRank",
    "factorize",
    "factorized_away",
    "merge_neurons",
    "parse_factor",
]
