"""A first recipe, with a comment for every key."""

from __future__ import annotations

from pathlib import Path

from vq_plugin.recipe.fields import check_reference

_MODEL, _EVALUATE = "my_package:model", "my_package:evaluate"

_TEXT = """\
# A recipe of vq_plugin: what to compress, on which data, within which budget.
# Check it:  vq-plugin recipe check {path}
# Run it:    vq-plugin tune {path}
# Editors complete and check the keys with the schema that `vq-plugin recipe schema` prints.
version: 1

# Function without arguments that returns the trained float model.
model: {model}

quantization:
  approach: post_training_weight_only
  # Function without arguments that returns unlabelled input batches as a list. Optional, but a few
  # hundred inputs make the search much better: they show what each layer costs.
  {calibration}

  # What each layer may become. A list is searched layer by layer, one scheme is fixed, null leaves
  # the layers in float. Without any of the three keys below, a built-in list is searched, which is
  # a good start.
  # model_wise:
  #   scheme: [pq(k=16,dim=8,axis=out), pq(k=16,dim=4,codebooks=tensor), km(k=4), km(k=16), null]
  # optype_wise:
  #   Conv2d: {{scheme: [km(k=16), km(k=256), null]}}
  # op_wise:
  #   classifier.6: {{scheme: km(k=16)}}
  #   "re:features.*": {{scheme: null}}

# Zeros in the float model before the search, and training of settings past the budget after it. The
# loader is a function without arguments that returns training batches, labels not needed.
# pruning: {{loader: my_package:training_batches, sparsity: 0.9, epochs: 3}}
# recovery: {{loader: my_package:training_batches, epochs: 1}}

# Biases, norms and layers left as they are take half the bytes in the file.
# rest: float16

evaluation:
  # Function of a model that returns the metric on the data that settings are chosen by.
  tuning: {evaluate}
  # The same on data that the search never sees. Optional; with it, this metric gives the verdict.
  {test}

tuning:
  accuracy_criterion:
    # Largest loss as a part of the float model's metric; or `absolute`, in the metric's own unit.
    relative: 0.01
    # false for a metric that falls as the model gets better, such as a loss or a perplexity.
    higher_is_better: true
    # How sure that must be; the functions above then return one result per sample.
    # confidence: 0.95
  # exit_policy: {{max_trials: 100, timeout: 3600}}
  random_seed: 0

# Folder of model.vq and report.json.
output: runs/{stem}
"""


def write_starter(
    path: Path,
    *,
    model: str | None = None,
    evaluate: str | None = None,
    test: str | None = None,
    calibration: str | None = None,
) -> None:
    """Writes a commented recipe to start from.

    Args:
        path: The new file.
        model: Reference ``"module:function"`` of the model; a placeholder if ``None``.
        evaluate: Of the metric on the tuning split; a placeholder if ``None``.
        test: Of the metric on the untouched split; a comment if ``None``.
        calibration: Of the calibration batches; a comment if ``None``.

    Raises:
        FileExistsError: If the file exists; it stays as it is.
        ValueError: If a reference is not of the form ``"module:function"``.
    """
    for reference in filter(None, (model, evaluate, test, calibration)):
        check_reference(reference)
    text = _TEXT.format(
        path=path,
        stem=path.stem,
        model=model or _MODEL,
        evaluate=evaluate or _EVALUATE,
        test=f"test: {test}" if test else "# test: my_package:test",
        calibration=f"calibration: {calibration}"
        if calibration
        else "# calibration: my_package:calibration",
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise FileExistsError(f"{path} exists and stays as it is; name another file") from None
