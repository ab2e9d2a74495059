"""The networks by name, each loaded when it is asked for."""

from collections.abc import Callable

from integration.workloads.zoo import (
    crepe_tiny,
    efficientnet_lite0,
    minilm,
    mtcnn,
    speaker_encoder,
    text_recognition,
    voice_activity,
)
from integration.workloads.zoo.network import Network

NETWORKS: dict[str, Callable[[], Network]] = {
    "efficientnet_lite0": efficientnet_lite0.load,
    "efficientnet_lite0_packaged": efficientnet_lite0.load_packaged,
    "minilm": minilm.load,
    "speaker_encoder": speaker_encoder.load,
    "crepe_tiny": crepe_tiny.load,
    "text_recognition": text_recognition.load,
    "mtcnn": mtcnn.load,
    "voice_activity": voice_activity.load,
}
