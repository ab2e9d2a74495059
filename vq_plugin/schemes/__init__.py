"""What to do to one weight: ``KM``, ``PQ``, ``RQ``, ``Uniform``, ``Binary``, ``Signs``, one's own.

The names follow Gong et al. 2014 (arXiv 1412.6115): k-means on single weights, product and residual
quantization, and binarization.
"""

from vq_plugin.schemes.geometry import Axis, CodebookDtype, CutAxis, Geometry, torch_code_dtype
from vq_plugin.schemes.preset import PRESETS, Preset
from vq_plugin.schemes.registry import (
    SCHEMES,
    Fit,
    fit_of,
    parse_scheme,
    register_scheme,
    scheme_from_dict,
)
from vq_plugin.schemes.scalar import KM, Binary, Uniform
from vq_plugin.schemes.scheme import Scheme
from vq_plugin.schemes.vector import PQ, RQ, Signs

__all__ = [
    "KM",
    "PQ",
    "PRESETS",
    "RQ",
    "SCHEMES",
    "Axis",
    "Binary",
    "CodebookDtype",
    "CutAxis",
    "Fit",
    "Geometry",
    "Preset",
    "Scheme",
    "Signs",
    "Uniform",
    "fit_of",
    "parse_scheme",
    "register_scheme",
    "scheme_from_dict",
    "torch_code_dtype",
]
