"""A pipeline as INC's users run it: round-to-nearest, autotuned to a loss of 1 %.

``python -m integration.inc.rtn_autotune`` in the root of the repository runs it.
"""

import tempfile

from neural_compressor.torch.quantization import RTNConfig, TuningConfig, autotune, load, save

from integration.inc.report import folder_bytes, report
from vq_plugin.workloads import digits


def main() -> None:
    model = digits.model()
    # Without layer-wise loading, which is for models too large for memory.
    candidates = [RTNConfig(bits=bits, use_layer_wise=False) for bits in (2, 4, 8)]
    config = TuningConfig(candidates, tolerable_loss=0.01)
    small = autotune(model, config, eval_fn=digits.evaluate)
    with tempfile.TemporaryDirectory() as folder:
        save(small, folder)
        again = load(folder, original_model=digits.model())
        report(model, again, folder_bytes(folder))


if __name__ == "__main__":
    main()
