"""One small training loop for classifiers, and the accuracy that goes with it."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from vq_plugin.eval_mode import eval_mode
from vq_plugin.progress import progress
from vq_plugin.seeded import seeded
from vq_plugin.workloads.data import Batches, Samples


@contextmanager
def single_threaded() -> Iterator[None]:
    """Runs torch on one thread inside the block, for results that no core count changes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    model: nn.Module,
    samples: Samples,
    *,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    max_lr: float,
    epochs: int,
    batch_size: int = 128,
    augment: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> None:
    """Trains a classifier in place by cross-entropy under a one-cycle schedule.

    The same seed, thread count and machine give the same bytes. The caller's random state is left
    as it was. The rate peaks at ``max_lr`` (Smith & Topin 2018, "Super-convergence"); the rest of
    an epoch that fills no batch is dropped; ``augment`` maps a batch to one of the same shape, at
    random.
    """
    batches = Batches(samples, batch_size, labels=True, augment=augment)
    steps = epochs * len(batches)
    optimize = optimizer(model.parameters())
    schedule = OneCycleLR(optimize, max_lr=max_lr, total_steps=steps)
    model.train()
    every = itertools.chain.from_iterable(itertools.repeat(batches, epochs))
    # Whoever asks for a model without gradients may be the first to ask.
    with seeded(seed), torch.enable_grad():
        for inputs, labels in progress(every, desc="train", total=steps, unit="step"):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimize.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimize.step()
            schedule.step()


def correct(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> Tensor:
    """Which images `(N, C, H, W)` it classifies correctly in eval mode; bool `(N,)`, on the CPU."""
    device = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), None)
    with eval_mode(model), torch.no_grad():
        hits = [
            model(x.to(device=device)).argmax(1).cpu() == y
            for x, y in zip(
                torch.split(images, batch_size), torch.split(labels, batch_size), strict=True
            )
        ]
    return torch.cat(hits)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Fraction of the images that the model classifies correctly; see `correct`."""
    return correct(model, images, labels, batch_size).double().mean().item()
