"""Smaller float layers, made before anything is coded: products of two, and fewer neurons."""

from vq_plugin.factorize.empty import first_channels, remove_empty_channels
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
    "first_channels",
    "merge_neurons",
    "parse_factor",
    "remove_empty_channels",
]
