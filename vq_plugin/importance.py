"""What the inputs of layers are like, from unlabelled data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from vq_plugin.eval_mode import eval_mode
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import deterministic_map, worker_pool
from vq_plugin.patches import input_patches

# Where a layer keeps its statistics between a host's prepare and its convert.
INPUT_STATS = "input_stats"

# Inputs that calibration never saw may still occur.
_FLOOR = 1e-3

# The second moments of so many inputs take 85 MB, and a fit by them seconds to minutes.
MOST_INPUTS = 4608
_ROWS = 512


class InputSquares(nn.Module):
    """Running mean square of a layer's input, feature by feature.

    Where inputs are uncorrelated the error of a layer's output is ``Σ_j E[x_j²]·(Δw_ij)²``, so
    that ``E[x_j²]`` is the importance of every weight that input j meets.

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
        weight = layer.weight
        assert isinstance(weight, Tensor)
        # Features come last for Linear, before the spatial dimensions for ConvNd.
        self._channel_dim = 1 - weight.dim()
        self._embedding = isinstance(layer, nn.Embedding)
        self._rows, self._groups = weight.shape[0], int(getattr(layer, "groups", 1))
        self.register_buffer("total", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def add(self, layer: nn.Module, value: Tensor) -> None:
        """Adds one batch of the input of ``layer``."""
        del layer  # what is added here has the same form for all of a kind
        if self._embedding:
            self.total += torch.bincount(value.flatten(), minlength=len(self.total))
            self.count += value.numel()
            return
        by_feature = value.detach().double().movedim(self._channel_dim, -1)
        by_feature = by_feature.reshape(-1, len(self.total))
        self.total += by_feature.square().sum(0)
        self.count += len(by_feature)

    def observe(
        self, layer: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]
    ) -> None:
        """A forward pre-hook, to be registered ``with_kwargs=True``."""
        self.add(layer, arguments[0] if arguments else keywords["input"])

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


class InputMoments(InputSquares):
    """Running first and second moments of a layer's input, beside its mean squares.

    The error of a layer's output is ``Σ_o Δw_o·E[x xᵀ]·Δw_oᵀ``, which takes second moments of all
    pairs of inputs. Inputs are features (Linear), or the patches under the kernel (ConvNd). Pairs
    are left out for Embedding, whose rows are never added up, and where there are more than
    :data:`MOST_INPUTS` inputs, which a warning says.

    Attributes:
        first: Float64 buffer, ``(groups, inputs)``: sums of the inputs; empty for Embedding.
        second: Float32 buffer, ``(groups, inputs, inputs)``: sums of products of two; empty where
            they are left out.
        patches: Float64 buffer, number of samples in ``first`` and ``second``.
    """

    first: Tensor
    second: Tensor
    patches: Tensor

    def __init__(self, layer: nn.Module) -> None:
        """Empty statistics for a Linear, ConvNd or Embedding layer."""
        super().__init__(layer)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        inputs = 0 if self._embedding else weight[0].numel()
        groups = 0 if self._embedding else self._groups
        known = groups
        if inputs > MOST_INPUTS:
            known = 0
            warnings.warn(
                f"{layer} has {inputs} inputs, more than {MOST_INPUTS}: its fit goes by their mean "
                "squares, not by how they go together",
                stacklevel=2,
            )
        double, single = torch.float64, torch.float32
        self.register_buffer("first", torch.zeros(groups, inputs, dtype=double))
        self.register_buffer("second", torch.zeros(known, inputs, inputs, dtype=single))
        self.register_buffer("patches", torch.zeros((), dtype=double))

    @torch.no_grad()
    def add(self, layer: nn.Module, value: Tensor) -> None:  # noqa: D102 - inherited
        super().add(layer, value)
        if self._embedding:
            return
        # A product may round differently on several threads: pieces of it, each on one.
        with worker_pool():
            for patches in input_patches(layer, value.detach()):
                self.patches += patches.shape[1]
                self.first += patches.sum(1, dtype=torch.float64)
                deterministic_map(partial(self._add_rows, patches), self._row_blocks())

    def _row_blocks(self) -> range:
        return range(0, self.second.shape[1] if len(self.second) else 0, _ROWS)

    def _add_rows(self, patches: Tensor, start: int) -> None:
        rows = slice(start, start + _ROWS)
        self.second[:, rows] += patches[:, :, rows].mT @ patches

    def moments(self, layer: nn.Module) -> Moments:
        """What the fit of ``layer.weight`` wants to know.

        Raises:
            ValueError: If no input was seen, or it was not finite.
        """
        importance = self.importance()
        if not len(self.first):
            return Moments(importance)
        has_bias = getattr(layer, "bias", None) is not None
        return Moments(
            importance,
            (self.second / self.patches.float()) if len(self.second) else None,
            (self.first / self.patches).float() if has_bias else None,
        )


def input_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calibration: Iterable[object] | Callable[[nn.Module], object],
) -> dict[str, Moments]:
    """Runs calibration data through a model and gathers the moments of its layers' inputs.

    Args:
        model: The float model; run in eval mode without gradients, then left as it was.
        layers: Layers of the model by name.
        calibration: Input batches, or a callable that runs the model it is given.

    Returns:
        Moments by layer name.

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
    return {name: named_moments(name, layers[name], moment) for name, moment in moments.items()}


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


def named_moments(name: str, layer: nn.Module, moments: InputMoments) -> Moments:
    """``moments.moments(layer)``; errors name the layer.

    Raises:
        ValueError: If no input was seen, or it was not finite.
    """
    try:
        return moments.moments(layer)
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
