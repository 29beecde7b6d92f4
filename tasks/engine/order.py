"""The order of training and its random numbers, as functions of (seed, position).

Nothing random is a state that would have to be replayed: the order of an epoch follows from (seed,
epoch), a sample's augmentation from (seed, position of the sample in training), masks and drop path
from (seed, step). Sample p of step s stands at position s * batch + p, however the batch is divided
over processes and micro-batches.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler


def seed_all(*parts: int) -> int:
    """Seed Python, NumPy and torch from a tuple of whole numbers, each tuple its own stream.

    Called for every sample and every step, hence the short way round `torch.manual_seed`, which
    visits all kinds of devices.

    Returns:
        torch's seed.
    """
    digest = hashlib.blake2b(struct.pack(f"{len(parts)}q", *parts), digest_size=12).digest()
    first, second, third = struct.unpack("3I", digest)
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(third)
    return third


@dataclass
class _Piece:
    """The piece of a batch that is being computed, and the generator of its whole batch."""

    index: int
    count: int
    seed: int
    generator: torch.Generator | None = None


_piece: _Piece | None = None


def seed_step(seed: int, step: int, index: int = 0, count: int = 1) -> None:
    """Seed what a model draws in a step, for one of the equal pieces its batch is divided into.

    The first piece draws as a whole batch would, the others have streams of their own (so that two
    processes do not drop the same paths).
    """
    global _piece
    whole = seed_all(seed, 2, step)
    _piece = _Piece(index, count, whole)
    if index:
        seed_all(seed, 2, step, index)


def end_steps() -> None:
    """Let `batch_rand` draw from torch's own generator again."""
    global _piece
    _piece = None


def batch_rand(batch: int, *size: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers (batch, *size) of the samples at hand.

    In a training step they are the same for a sample however the batch is divided, as long as the
    model draws them before anything else: masks do not depend on the number of processes.
    """
    return _draw(batch, *size, device=device)


def keep_out_of_graphs() -> None:
    """Have `batch_rand` draw the same for a compiled model as for one that is not.

    Compiled, it would have other random numbers, and be compiled anew for the seed of each step.
    """
    global _draw
    _draw = torch.compiler.disable(_draw)


def _rand(batch: int, *size: int, device: torch.device | str) -> Tensor:
    if _piece is None or _piece.count == 1:
        return torch.rand(batch, *size, device=device)
    if _piece.generator is None:
        _piece.generator = torch.Generator(device).manual_seed(_piece.seed)
    whole = torch.rand(batch * _piece.count, *size, generator=_piece.generator, device=device)
    return whole[batch * _piece.index : batch * (_piece.index + 1)]


_draw: Callable[..., Tensor] = _rand


class PositionSampler(Sampler[tuple[int, int]]):
    """Endless (position, index) pairs; each epoch is a permutation of its own.

    Of every batch, process `rank` of `world_size` gets the consecutive positions that are its
    share. Has mmengine's `skip`, so that a resumed loop starts anywhere at once.
    """

    def __init__(
        self, size: int, seed: int, batch_size: int = 1, rank: int = 0, world_size: int = 1
    ):
        self.size, self.seed, self.start = size, seed, 0
        self.batch_size, self.share = batch_size, batch_size // world_size
        self.offset = rank * self.share

    def skip(self, num_samples: int) -> None:
        """Start after this many samples of this process."""
        self.start = num_samples

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, np.empty(0, dtype=int)
        for number in itertools.count(self.start):
            step, place = divmod(number, self.share)
            position = step * self.batch_size + self.offset + place
            if position // self.size != epoch:
                epoch = position // self.size
                order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            yield position, int(order[position % self.size])


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
