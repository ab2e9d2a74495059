"""What all trainings are told, checked before any work is done."""

from __future__ import annotations

from vq_plugin.arguments import check_at_least, check_whole
from vq_plugin.select import check_model


def check_settings(
    *, epochs: object, lr: object, seed: object, teacher: object, loss: object
) -> None:
    """Checks what ``finetune``, ``prune``, ``prune_factors`` and ``learn`` are given alike.

    Raises:
        TypeError: If ``epochs`` or ``seed`` is no whole number, ``lr`` no number, ``teacher`` no
            module, or ``loss`` cannot be called.
        ValueError: If ``lr`` is negative or not finite.
    """
    for name, value in (("epochs", epochs), ("seed", seed)):
        check_whole(name, value)
    check_at_least("lr", lr, 0)
    if teacher is not None:
        check_model(teacher, "teacher")
    if loss is not None and not callable(loss):
        raise TypeError(
            f"loss must be a function of outputs and targets, got {type(loss).__name__}"
        )
