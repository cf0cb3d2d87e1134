# SPDX-License-Identifier: Apache-2.0
"""Networks, and their training from labels or from a teacher."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - as everyone calls it
from torch import Tensor, nn

import fastkd
from examples.data import Images
from examples.recipes import Network

CLASSES = 10

# Loss of a batch: the network's outputs, and the positions of its images in the data.
BatchLoss = Callable[[Tensor, Tensor], Tensor]


class UnitLength(nn.Module):
    """Scales the rows of [N, D] to length 1."""

    def forward(self, rows: Tensor) -> Tensor:
        """Scale them."""
        return F.normalize(rows, dim=1)


def hard_label_loss(images: Images) -> BatchLoss:
    """Cross-entropy with the labels."""
    return lambda logits, index: F.cross_entropy(logits, images.labels[index])


def distillation_loss(
    images: Images, teacher: nn.Module, temperature: float, alpha: float
) -> BatchLoss:
    """Soft targets of a teacher, and the labels. The teacher's logits are computed once."""
    teacher_logits = logits_of(teacher, images)
    kd_loss = fastkd.KDLoss(temperature=temperature, alpha=alpha)
    return lambda logits, index: kd_loss(logits, teacher_logits[index], images.labels[index])


def train(
    network: Network,
    images: Images,
    batch_loss: BatchLoss,
    *,
    epochs: int,
    seed: int,
    after_epoch: Callable[[], None],
) -> nn.Module:
    """Train from scratch. The seed sets weights, dropout, shifts and the order of images.

    Two losses with one seed start at the same weights and see the same batches.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(images.pixels[0].numel(), network)
        optimizer = torch.optim.Adam(model.parameters(), lr=network.learning_rate, fused=True)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for start in range(0, len(order), network.batch_size):
                index = order[start : start + network.batch_size]
                pixels = images.pixels[index]
                if network.shift:
                    pixels = shift_randomly(pixels, network.shift, generator)
                optimizer.zero_grad()
                batch_loss(model(pixels), index).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            after_epoch()
    return model.eval()


def logits_of(model: nn.Module, images: Images) -> Tensor:
    """The logits, [N, 10]."""
    with torch.no_grad():
        logits: Tensor = model(images.pixels)
    return logits


def shift_randomly(pixels: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Move each of [N, H, W] images by -limit..limit pixels along both axes, filling with 0."""
    count, height, width = pixels.shape
    padded = F.pad(pixels, (limit,) * 4)
    offsets = torch.randint(0, 2 * limit + 1, (2, count, 1), generator=generator)
    rows = offsets[0] + torch.arange(height)  # [N, H]
    columns = offsets[1] + torch.arange(width)  # [N, W]
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use this many threads inside; None: leave it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _build(inputs: int, network: Network) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for width in network.hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        if network.dropout:
            layers.append(nn.Dropout(network.dropout))
        inputs = width
    layers.append(nn.Linear(inputs, network.outputs))
    if network.unit_length:
        layers.append(UnitLength())
    return nn.Sequential(*layers)
