"""The term of vector-quantized training that keeps weights by their centers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vq_plugin.arguments import check_at_least
from vq_plugin.hosting.follower import CodebookFollower
from vq_plugin.select import check_model


def commitment_loss(prepared: nn.Module, beta: float = 0.001) -> Tensor:
    """``beta`` times the squared distance of weights to what they decode to, to add to a loss.

    The third term of vector-quantized training (van den Oord et al. 2017, arXiv 1711.00937,
    equation 3): it pulls every sub-vector of a weight to its center, so that fewer change their
    code from step to step. Its gradient goes to the weights, and to the batch norms that are
    folded into them. The other two need nothing: the gradient of the loss goes straight through to
    the weights, and every pass in training mode moves the codebooks, as the second term would
    (appendix A.1). Sums, not means, as of a weight decay; how much helps depends on the gradients
    that the term meets, which are smaller the more weights a layer has.

    Args:
        prepared: A model in training, between ``prepare`` and ``convert``, *after* the forward pass
            whose loss the term is added to.
        beta: The weight of the term; 0 or more.

    Returns:
        A float32 scalar, over all layers that learn to be codebook layers, a shared weight once.
        Layers that run in float, as after ``disable_fake_quant``, count nothing.

    Raises:
        TypeError: If ``beta`` is no number.
        ValueError: If it is negative or not finite, no layer of the model is prepared for
            training, or none has run yet.

    Example:
        >>> import torch
        >>> import vq_plugin as vq
        >>> from torch.ao.quantization.quantize_fx import prepare_qat_fx
        >>> from vq_plugin.torch_ao import get_backend_config, get_qat_qconfig_mapping
        >>> model, batch = nn.Sequential(nn.Linear(64, 32)).train(), torch.randn(8, 64)
        >>> mapping = get_qat_qconfig_mapping(model, vq.PQ(k=16, dim=4))
        >>> backend = get_backend_config()
        >>> prepared = prepare_qat_fx(model, mapping, (batch,), backend_config=backend)
        >>> loss = prepared(batch).square().mean() + commitment_loss(prepared)
        >>> loss.backward()
    """
    check_model(prepared, "prepared")
    check_at_least("beta", beta, 0)
    followers = [each for each in prepared.modules() if isinstance(each, CodebookFollower)]
    if not followers:
        raise ValueError(
            "no layer of the model learns to be a codebook layer: prepare it for training with "
            "schemes that match its layers, and call this before converting"
        )
    active = [each for each in followers if each.quantizes]
    known = {id(each.latent): each for each in active if each.latent is not None}
    if active and not known:
        raise ValueError(
            "no layer has run with codebooks yet: add commitment_loss(prepared) after the forward "
            "pass of the same step"
        )
    total = next(prepared.parameters()).new_zeros((), dtype=torch.float32)
    for follower in known.values():
        total = total + follower.distance()
    return beta * total
