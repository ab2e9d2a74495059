"""English sentences out of documentation that packages ship, in three sets of other sources."""

import re
from collections.abc import Callable, Iterable

from integration.workloads.zoo.network import Split, package_file

_DATA_SETS = (
    "breast_cancer", "california_housing", "covtype", "diabetes", "digits", "iris", "kddcup99",
    "lfw", "linnerud", "olivetti_faces", "rcv1", "species_distributions", "twenty_newsgroups",
    "wine_data",
)  # fmt: skip


def _of_torch() -> list[str]:
    """Sentences of the documentation of torch, its layers and its functions."""
    import torch
    from torch import nn

    return split(_documentation(nn) + _documentation(nn.functional) + _documentation(torch))


def _of_data() -> list[str]:
    """Sentences about the data sets of scikit-learn, and of the documentation of NumPy."""
    import numpy as np

    paths = (f"datasets/descr/{name}.rst" for name in _DATA_SETS)
    data = [package_file("sklearn", path).read_text("utf-8") for path in paths]
    return split(data + _documentation(np))


def _of_python() -> list[str]:
    """Sentences of Python's language reference."""
    from pydoc_data import topics

    return split(topics.topics[name] for name in sorted(topics.topics))


def _documentation(module: object) -> list[str]:
    found = (getattr(module, name).__doc__ for name in sorted(dir(module)) if name[0] != "_")
    return [text for text in found if isinstance(text, str)]


def split(texts: Iterable[str]) -> list[str]:
    """Sentences of 6 to 40 words, plain prose only, each once and in order."""
    found: dict[str, None] = {}
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            prose = " ".join(paragraph.split())
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", prose):
                words = sentence.split()
                plain = re.fullmatch(r"[A-Z][\w\s,;:'\"()/.\-]+[.!?]", sentence)
                if 6 <= len(words) <= 40 and plain:
                    found[sentence] = None
    return list(found)


SENTENCES: dict[Split, Callable[[], list[str]]] = {
    "calibration": _of_torch,
    "selection": _of_data,
    "untouched": _of_python,
}
