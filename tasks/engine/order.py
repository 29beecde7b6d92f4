"""The order of training and its random numbers, as functions of (seed, position).

Nothing random is a state that would have to be replayed: the order of an epoch follows from (seed,
epoch), a sample's augmentation from (seed, position of the sample in training), masks and drop path
from (seed, step).
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler


def seed_all(*parts: int) -> None:
    """Seed Python, NumPy and torch from a tuple of whole numbers, each tuple its own stream.

    Called for every sample and every step, hence the short way round `torch.manual_seed`, which
    visits all kinds of devices.
    """
    digest = hashlib.blake2b(struct.pack(f"{len(parts)}q", *parts), digest_size=12).digest()
    first, second, third = struct.unpack("3I", digest)
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(third)


class PositionSampler(Sampler[tuple[int, int]]):
    """Endless (position, index) pairs; each epoch is a permutation of its own.

    Has mmengine's `skip`, so that a resumed loop starts anywhere at once.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.start = size, seed, 0

    def skip(self, num_samples: int) -> None:
        """Start after this many samples."""
        self.start = num_samples

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start
        while True:
            epoch, offset = divmod(position, self.size)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            for index in order[offset:]:
                yield position, int(index)
                position += 1


class PositionSeeded(Dataset):
    """A dataset whose random draws depend on the sample's position in training only."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, item: tuple[int, int]) -> Any:
        position, index = item
        seed_all(self.seed, 1, position)
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]
