"""KM, PQ and RQ as algorithms of Intel Neural Compressor (INC) 3.x.

Importing this module registers them; INC's own algorithms and default searches stay as they are.
Every import of INC is inside this package; ``import vq_plugin`` needs none of it.
"""

try:
    import neural_compressor.torch.quantization  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"vq_plugin.inc needs Intel Neural Compressor ({error}): pip install 'vq-plugin[inc]'"
    ) from error

from vq_plugin.inc.config import VQConfig
from vq_plugin.inc.engine import compress_in_place
from vq_plugin.inc.files import load
from vq_plugin.inc.methods import KMConfig, PQConfig, RQConfig
from vq_plugin.inc.registry import register
from vq_plugin.inc.tuning import tuning_config

register((VQConfig, KMConfig, PQConfig, RQConfig), compress_in_place)

__all__ = ["KMConfig", "PQConfig", "RQConfig", "VQConfig", "load", "tuning_config"]
