"""``rtn_autotune.py`` with codebooks: beside the imports, two lines differ."""

import tempfile

from neural_compressor.torch.quantization import autotune, save

from integration.inc.report import folder_bytes, report
from vq_plugin.inc import load, tuning_config
from vq_plugin.workloads import digits


def main() -> None:
    model = digits.model()
    # Layer by layer, from the recipe that `vq-plugin tune` runs as well.
    config = tuning_config(model, "recipes/inc_digits.yaml", tolerable_loss=0.01)
    small = autotune(model, config, eval_fn=digits.evaluate)
    with tempfile.TemporaryDirectory() as folder:
        save(small, folder)
        again = load(folder, original_model=digits.model())
        report(model, again, folder_bytes(folder))


if __name__ == "__main__":
    main()
