"""A file written for Intel Neural Compressor is answered key by key with what to write here."""

import pytest

from vq_plugin.recipe import RecipeError
from vq_plugin.recipe.problems import key_text
from vq_plugin.recipe.reading import parse_recipe

# The keys of a post-training file of Intel Neural Compressor 1.x, and what the answer must name.
INC_FILE = """\
version: 1.0
model:                                        # 'module:function', no name
  name: resnet50
  framework: pytorch_fx
device: cpu                                   # the function under 'model'
quantization:
  approach: post_training_static_quant        # 'post_training_weight_only'
  recipes: {scale_propagation_concat: True}   # no int8 switches
  calibration:                                # 'module:function', list of unlabelled input batches
    sampling_size: 100
  model_wise:
    weight: {dtype: int8, scheme: asym}       # 'scheme: km(k=16)'
    activation: {dtype: uint8}                # activations stay in float
  op_wise:
    layer1.0.conv1:
      weight: {dtype: [fp32]}                 # 'scheme: null'
evaluation:
  accuracy: {metric: {topk: 1}}               # 'evaluation: {tuning: module:function}'
  performance: {warmup: 10}                   # module:function
tuning:
  strategy: {name: basic}                     # 'frontier', may be left out
  accuracy_criterion: {relative: 0.01}
  objective: performance                      # 'size'
  exit_policy:
    timeout: 0                                # above 0, leave the key out
    performance_only: False                   # remove it
  random_seed: 9527
  tensorboard: True                           # remove it, report.json
  workspace: {path: ./nc}                     # 'output: FOLDER'
"""


def test_every_foreign_key_is_answered_on_its_line() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(INC_FILE, "inc.yaml")
    answers = str(caught.value).splitlines()
    for number, line in enumerate(INC_FILE.splitlines(), start=1):
        _, _, comment = line.partition("# ")
        own = [answer for answer in answers if answer.startswith(f"inc.yaml:{number}: ")]
        for words in filter(None, comment.split(", ")):
            assert any(words in answer for answer in own), (line, own)


def test_keys_that_mean_the_same_are_taken() -> None:
    text = (
        "version: 1.0\nmodel: a:b\noutput: out\nevaluation: {tuning: a:c}\n"
        "tuning:\n  accuracy_criterion: {absolute: 0.01, higher_is_better: false}\n"
        "  exit_policy: {max_trials: 100, timeout: 3600}\n  random_seed: 9527\n"
    )
    recipe, _ = parse_recipe(text, "inc.yaml")
    assert recipe.version == 1
    assert not recipe.tuning.accuracy_criterion.budget().higher_is_better


def test_misspelt_values_get_no_advice_for_other_tools() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe("version: 1\nmodel: a.b\noutput: o\nevaluation: {tuning: a:c}\n", "r.yaml")
    assert (
        str(caught.value) == "r.yaml:2: model: expected a function as 'module:function', got 'a.b'"
    )


def test_places_are_shown_as_they_are_written() -> None:
    assert key_text(("quantization", "op_wise", "fc.1", "scheme", 0)) == (
        "quantization.op_wise.fc.1.scheme[0]"
    )
