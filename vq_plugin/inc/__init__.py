"""KM, PQ, RQ and every other scheme as algorithms of Intel Neural Compressor (INC) 3.x.

Importing this module registers them; INC's own algorithms and default searches stay as they are.
Every import of INC is inside this package; ``import vq_plugin`` needs none of it.
"""

try:
    import neural_compressor.torch.quantization  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"vq_plugin.inc needs Intel Neural Compressor ({error}): pip install 'vq-plugin[inc]'"
    ) from error

from neural_compressor.torch.utils.utility import register_algo

from vq_plugin.inc.config import VQConfig
from vq_plugin.inc.engine import compress_in_place
from vq_plugin.inc.files import load
from vq_plugin.inc.schemes import register_known, scheme_config
from vq_plugin.inc.tuning import tuning_config
from vq_plugin.schemes import KM, PQ, RQ, Binary, Signs, Uniform

register_algo(VQConfig.name)(compress_in_place)
register_known()

KMConfig = scheme_config(KM)
PQConfig = scheme_config(PQ)
RQConfig = scheme_config(RQ)
BinaryConfig = scheme_config(Binary)
UniformConfig = scheme_config(Uniform)
SignsConfig = scheme_config(Signs)

__all__ = [
    "BinaryConfig",
    "KMConfig",
    "PQConfig",
    "RQConfig",
    "SignsConfig",
    "UniformConfig",
    "VQConfig",
    "load",
    "scheme_config",
    "tuning_config",
]
