"""How much each weight matters, from unlabelled inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from vq_plugin.eval_mode import eval_mode

# Where a layer keeps its statistics between a host's prepare and its convert.
INPUT_STATS = "input_stats"

# Inputs that calibration never saw may still occur.
_FLOOR = 1e-3


class InputMoments(nn.Module):
    """Running mean square of a layer's input, feature by feature.

    The error of a layer's output is ``Σ_j E[x_j²]·(Δw_ij)²`` where inputs are uncorrelated, so
    ``E[x_j²]`` is the importance of every weight that input j meets.

    Attributes:
        total: Float64 buffer, sum of squares per input feature (Linear), input channel (ConvNd)
            or count per row (Embedding).
        count: Float64 buffer, number of samples in ``total``.
    """

    total: Tensor
    count: Tensor

    def __init__(self, layer: nn.Module) -> None:
        """Empty statistics for a Linear, ConvNd or Embedding layer."""
        super().__init__()
        if isinstance(layer, nn.Linear):
            features = layer.in_features
        elif isinstance(layer, nn.Embedding):
            features = layer.num_embeddings
        else:
            features = int(layer.in_channels)  # type: ignore[arg-type]
        self._embedding = isinstance(layer, nn.Embedding)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        # Features come last for Linear, before the spatial dimensions for ConvNd.
        self._channel_dim = 1 - weight.dim()
        self._rows, self._groups = weight.shape[0], int(getattr(layer, "groups", 1))
        self.register_buffer("total", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def forward(self, value: Tensor) -> None:
        """Adds one batch of the layer's input."""
        if self._embedding:
            self.total += torch.bincount(value.flatten(), minlength=len(self.total))
            self.count += value.numel()
            return
        by_feature = value.detach().double().movedim(self._channel_dim, -1)
        by_feature = by_feature.reshape(-1, len(self.total))
        self.total += by_feature.square().sum(0)
        self.count += len(by_feature)

    def observe(
        self, _: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]
    ) -> None:
        """A forward pre-hook, to be registered ``with_kwargs=True``."""
        self(arguments[0] if arguments else keywords["input"])

    def importance(self) -> Tensor:
        """Importance of every element of the layer's weight; broadcasts to its shape.

        Raises:
            ValueError: If no input was seen, or it was not finite.
        """
        if self.count == 0:
            raise ValueError(
                "calibration never ran it: feed inputs that reach it, or leave it out where its "
                "owner only reads its weight, as MultiheadAttention does"
            )
        mean = self.total / self.count
        if not bool(mean.isfinite().all()):
            raise ValueError("calibration gave it NaN or infinite inputs")
        if not bool((mean > 0).any()):
            return torch.ones(1, device=mean.device)
        mean = (mean + _FLOOR * mean.mean()).float()
        if self._embedding:
            return mean.unsqueeze(1)
        if self._channel_dim == -1:
            return mean
        per_group = mean.reshape(self._groups, -1)
        per_row = per_group.repeat_interleave(self._rows // self._groups, 0)
        return per_row.reshape(*per_row.shape, *[1] * (-1 - self._channel_dim))


def input_importance(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calibration: Iterable[object] | Callable[[nn.Module], object],
) -> dict[str, Tensor]:
    """Runs calibration data through a model and weighs the weights of its layers.

    Args:
        model: The float model; run in eval mode without gradients, then left as it was.
        layers: Layers of the model by name.
        calibration: Input batches, or a callable that runs the model it is given.

    Returns:
        Importance by layer name, each broadcasting to the layer's weight.

    Raises:
        ValueError: If the calibration is empty or does not reach a layer (the message names it).
    """
    moments = {name: InputMoments(layer).to(_device(layer)) for name, layer in layers.items()}

    handles = [
        layers[name].register_forward_pre_hook(moment.observe, with_kwargs=True)
        for name, moment in moments.items()
    ]
    try:
        with eval_mode(model):
            run_calibration(model, calibration)
    finally:
        for handle in handles:
            handle.remove()
    return {name: named_importance(name, moment) for name, moment in moments.items()}


def attach_moments(layer: nn.Module) -> None:
    """Lets a layer gather the statistics of its inputs, as a submodule and a hook of its own.

    They survive deep copies and are part of the ``state_dict``, as hosts expect of observers.

    Args:
        layer: Linear, ConvNd or Embedding layer; changed in place.
    """
    layer.add_module(INPUT_STATS, InputMoments(layer).to(_device(layer)))
    layer.register_forward_pre_hook(_observe, with_kwargs=True)


def detach_moments(layer: nn.Module) -> InputMoments | None:
    """Takes the statistics of :func:`attach_moments` off a layer.

    Args:
        layer: Any layer; changed in place.

    Returns:
        The statistics, or ``None`` if it has none.
    """
    moments = getattr(layer, INPUT_STATS, None)
    if not isinstance(moments, InputMoments):
        return None
    delattr(layer, INPUT_STATS)
    for key, hook in list(layer._forward_pre_hooks.items()):
        if hook is _observe:
            del layer._forward_pre_hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)
    return moments


def _observe(layer: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
    # A plain function: deep copies of the hook must find the statistics of the copied layer.
    getattr(layer, INPUT_STATS).observe(layer, arguments, keywords)


def named_importance(name: str, moments: InputMoments) -> Tensor:
    """``moments.importance()``; errors name the layer.

    Raises:
        ValueError: If no input was seen, or it was not finite.
    """
    try:
        return moments.importance()
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from None


def _device(layer: nn.Module) -> torch.device:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.device


@torch.no_grad()
def run_calibration(
    model: nn.Module, calibration: Iterable[object] | Callable[[nn.Module], object]
) -> None:
    """Runs batches through a model, or a callable on it, without gradients."""
    if not isinstance(calibration, Iterable):
        calibration(model)
        return
    if isinstance(calibration, Mapping | Tensor):
        raise ValueError("calibration is an iterable of batches: put a single batch into a list")
    for batch in calibration:
        match batch:
            case Mapping():
                model(**batch)
            case tuple() | list():
                _run_arguments(model, batch)
            case _:
                model(batch)


def _run_arguments(model: nn.Module, batch: tuple[object, ...] | list[object]) -> None:
    try:
        model(*batch)
    except TypeError as error:
        raise ValueError(
            f"the model does not take a batch of calibration: {error}; the items of a tuple or "
            "list are its positional arguments, so leave the labels out"
        ) from error
