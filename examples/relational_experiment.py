# SPDX-License-Identifier: Apache-2.0
"""What one seed shows of relational distillation: a teacher's embedding, and four students."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import fastkd
from examples import training
from examples.data import Images, Split, split
from examples.recipes import RKD_LEARNING_RATE, Network, Recipe

MARGIN = 0.5  # of the triplet loss, between embeddings of length 1
PIXELS, TEACHER = "pixels", "teacher"
# The students, by loss and by what they learn from. "Few" images are the same for both losses.
TRIPLET_FEW, RKD_FEW, RKD_ALL, TRIPLET_ALL = "triplet few", "RKD few", "RKD all", "triplet all"
NETWORKS = (TEACHER, TRIPLET_FEW, RKD_FEW, RKD_ALL, TRIPLET_ALL)

Progress = Callable[[str, int], None]  # told the network and how many batches it has seen


@dataclass(frozen=True)
class RelationalResult:
    """One seed: recall@1 on the test images, by network and of the pixels, and the embeddings."""

    seed: int
    recall: dict[str, float]  # from 0 to 1
    embeddings: dict[str, Tensor]  # of the test images, [N, D]


def run_seed(images: Images, recipe: Recipe, seed: int, progress: Progress) -> RelationalResult:
    """Train the five networks of a seed; each sees as many batches as the others."""
    parts = split(images, recipe, seed)
    everything, few = parts.train, parts.transfer
    batches = batches_of_network(parts, recipe)

    def fit(name: str, images: Images, loss: training.BatchLoss) -> nn.Module:
        network = recipe.teacher if name == TEACHER else recipe.student
        if name in (RKD_FEW, RKD_ALL):
            network = replace(network, learning_rate=RKD_LEARNING_RATE)
        per_epoch = _batches(images, network)
        return training.train(
            network, images, loss, epochs=batches // per_epoch, seed=seed,
            after_epoch=lambda: progress(name, per_epoch),
        )  # fmt: skip

    with training.threads(recipe.threads):
        teacher = fit(TEACHER, everything, metric_loss(everything))
        networks = {
            TEACHER: teacher,
            TRIPLET_FEW: fit(TRIPLET_FEW, few, metric_loss(few)),
            RKD_FEW: fit(RKD_FEW, few, relational_loss(few, teacher)),
            RKD_ALL: fit(RKD_ALL, everything, relational_loss(everything, teacher)),
            TRIPLET_ALL: fit(TRIPLET_ALL, everything, metric_loss(everything)),
        }
        embeddings = {name: embed(model, parts.test) for name, model in networks.items()}
        embeddings[PIXELS] = parts.test.pixels.flatten(1)
        recall = {name: recall_at_1(of, parts.test.labels) for name, of in embeddings.items()}
    return RelationalResult(seed, recall, embeddings)


def metric_loss(images: Images) -> training.BatchLoss:
    """The triplet loss with the labels."""
    return lambda embeddings, index: triplet_loss(embeddings, images.labels[index], MARGIN)


def relational_loss(images: Images, teacher: nn.Module) -> training.BatchLoss:
    """RKD with the authors' weights. It sees no label, only the teacher's embedding."""
    teacher_embeddings = embed(teacher, images)
    rkd_loss = fastkd.RKDLoss(distance_weight=25.0, angle_weight=50.0)
    return lambda embeddings, index: rkd_loss(embeddings, teacher_embeddings[index])


def triplet_loss(embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean of max(0, d(a, p) - d(a, n) + margin) over the triplets of a batch where it is not 0.

    Args:
        embeddings: [N, D].
        labels: [N]; an anchor a and its positive p share one, the negative n has another.
        margin: by which the negative should be farther.
    """
    distances = _distances(embeddings)
    same = labels[:, None] == labels
    anchor, positive = (same & ~torch.eye(len(labels), dtype=torch.bool)).nonzero(as_tuple=True)
    negatives = ~same[anchor]  # [pairs, N]
    terms = distances[anchor, positive][:, None] - distances[anchor] + margin
    terms = terms.relu() * negatives
    return terms.sum() / (terms > 0).sum().clamp(min=1)


def recall_at_1(embeddings: Tensor, labels: Tensor) -> float:
    """Share of rows whose nearest other row, by Euclidean distance, has the same label.

    Args:
        embeddings: [N, D], N > 1.
        labels: [N].
    """
    nearest = _distances(embeddings).fill_diagonal_(torch.inf).argmin(dim=1)
    return (labels[nearest] == labels).to(torch.float64).mean().item()


def embed(model: nn.Module, images: Images) -> Tensor:
    """The embeddings, [N, D]."""
    with torch.no_grad():
        embeddings: Tensor = model(images.pixels)
    return embeddings


def _distances(embeddings: Tensor) -> Tensor:
    # Through a matrix product close rows would come out equal: their squares cancel.
    return torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")


def batches_of_network(parts: Split, recipe: Recipe) -> int:
    """How many batches every network sees, of few images or of all."""
    return recipe.epochs * _batches(parts.train, recipe.teacher)


def _batches(images: Images, network: Network) -> int:
    return -(-len(images) // network.batch_size)
