"""A first recipe, with a comment for every key; ``starter.yaml`` beside this file is its text."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from string import Template

from vq_plugin.atomic import write_atomically
from vq_plugin.recipe.fields import check_reference
from vq_plugin.workloads.recipes import read_shipped


def write_starter(
    path: Path,
    *,
    model: str | None = None,
    evaluate: str | None = None,
    test: str | None = None,
    calibration: str | None = None,
) -> None:
    """Writes a commented recipe to start from; FileExistsError if there is one.

    References ``"module:function"`` that are ``None`` become placeholders (``model``, ``evaluate``)
    or comments; others raise ValueError if they are not of that form.
    """
    for reference in filter(None, (model, evaluate, test, calibration)):
        check_reference(reference)
    template = resources.files(__package__).joinpath("starter.yaml").read_text(encoding="utf-8")
    text = Template(template).substitute(
        path=path,
        stem=path.stem,
        model=model or "my_package:model",
        evaluate=evaluate or "my_package:evaluate",
        test=f"{'' if test else '# '}test: {test or 'my_package:test'}",
        calibration=f"{'' if calibration else '# '}calibration: "
        f"{calibration or 'my_package:calibration'}",
    )
    _write_new(path, text)


def write_shipped(path: Path, name: str) -> None:
    """Writes a copy of a recipe that comes with the package; FileExistsError if there is one."""
    _write_new(path, read_shipped(name))


def _write_new(path: Path, text: str) -> None:
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists and stays as it is; name another file")
    write_atomically(path, text.encode())
