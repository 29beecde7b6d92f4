"""A discrete VAE that turns patches into ids, and the task that trains it.

Shapes: B batch, K codes, s stride (pixels per id along a side), h = H/s, w = W/s.

Source: arXiv:2102.12092 Sec. 2.1 (Gumbel-softmax relaxation, temperature annealed to 1/16).
Differs: reconstruction by mean squared error instead of the logit-Laplace likelihood, and a prior
weight that is small from the start; both as in public re-implementations of BEiT's tokenizer.

Another tokenizer than the one trained here is DALL-E's encoder (`dalle.py`). Both have `stride`,
`num_codes`, `sizes`, `encode` and `decodes`: whether ids can be turned back into pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from backbones.checkpoints import read_tensors, write_tensors
from mae_bench.errors import UserError
from mae_bench.job import Job
from mae_bench.records import Metric, Outcome, Picture
from tasks import distributed, engine
from tasks.data.images import ImageDataset, denormalise, labelled_sets
from tasks.pretraining.dalle import LAYOUT, DalleEncoder, load_dalle
from tasks.pretraining.pictures import NUM_SHOWN, image_grid, spread

FORMAT = "mae-bench-tokenizer"
# What builds a tokenizer, in recipes and in headers.
SIZES = ("stride", "num_codes", "width", "depth")


class Residual(nn.Module):
    """x + a 3x3 and a 1x1 convolution of it."""

    def __init__(self, width: int):
        super().__init__()
        self.path = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return x + self.path(x)


class Tokenizer(nn.Module):
    """Convolutional encoder to K logits per s x s pixels, codebook, convolutional decoder.

    Works on images in [0, 1].

    Args:
        depth: residual blocks at the width of the codes, in the encoder and in the decoder each.
    """

    decodes = True

    def __init__(self, *, stride: int, num_codes: int, width: int, depth: int = 0):
        super().__init__()
        if stride < 2 or stride & (stride - 1):
            raise UserError(f"tokenizer stride {stride} is not a power of two of at least 2")
        if num_codes < 2:
            raise UserError(f"a tokenizer of {num_codes} codes says nothing; it needs at least 2")
        self.stride, self.num_codes, self.width, self.depth = stride, num_codes, width, depth
        halvings = int(math.log2(stride))
        widths = [max(16, width >> (halvings - 1 - i)) for i in range(halvings)]
        down: list[nn.Module] = []
        for before, after in zip([3, *widths], widths, strict=False):
            down += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
        self.encoder = nn.Sequential(
            *down,
            *(Residual(width) for _ in range(depth)),
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, num_codes, 1),
        )
        self.codebook = nn.Embedding(num_codes, width)
        up: list[nn.Module] = []
        for before, after in zip(widths[::-1], [*widths[-2::-1], widths[0]], strict=True):
            up += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.ReLU()]
        inner = (Residual(width) for _ in range(depth))
        self.decoder = nn.Sequential(*inner, *up, nn.Conv2d(widths[0], 3, 1))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K, h, w)."""
        return self.encoder(images * 2 - 1)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> ids (B, h, w), int64."""
        return self.logits(images).argmax(dim=1)

    def decode(self, one_hot: Tensor) -> Tensor:
        """(B, K, h, w) weights over codes -> images (B, 3, H, W) in [0, 1] (not clipped)."""
        z = torch.einsum("bkhw,kd->bdhw", one_hot, self.codebook.weight)
        return self.decoder(z)

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Ids (B, h, w) -> images (B, 3, H, W) in [0, 1] (not clipped)."""
        return self.decode(F.one_hot(ids, self.num_codes).permute(0, 3, 1, 2).float())

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images through their ids and back."""
        return self.decode_ids(self.encode(images))

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments that build it again."""
        return {name: getattr(self, name) for name in SIZES}


class TokenizerTraining(BaseModel):
    """Gumbel-softmax training of a tokenizer inside mmengine's loop.

    Args:
        prior: weight of the KL term.

    Attributes:
        temperature: of the relaxation; `Cooling` sets it before each step.
    """

    def __init__(self, tokenizer: Tokenizer, prior: float):
        super().__init__()
        self.tokenizer, self.prior, self.temperature = tokenizer, prior, 1.0

    def forward(self, images: Tensor, labels: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        """Losses of a batch of normalised images (B, 3, H, W)."""
        images = denormalise(images)
        logits = self.tokenizer.logits(images).float()
        soft = F.gumbel_softmax(logits, tau=self.temperature, dim=1)
        reconstruction = F.mse_loss(self.tokenizer.decode(soft).float(), images)
        log_q = logits.log_softmax(dim=1)
        # KL of the posterior from the uniform prior, per id.
        kl = (log_q.exp() * (log_q + math.log(self.tokenizer.num_codes))).sum(1).mean()
        return {"loss_reconstruction": reconstruction, "loss_prior": self.prior * kl}


class Cooling(Hook):
    """Lowers the temperature exponentially, from 1 at step 0 to `final` after the last."""

    def __init__(self, training: TokenizerTraining, iterations: int, final: float):
        self.training, self.rate = training, math.log(final) / iterations

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.training.temperature = math.exp(self.rate * runner.iter)


def save_tokenizer(tokenizer: Tokenizer, path: Path, about: Mapping[str, str]) -> None:
    """Write weights and sizes as safetensors, with what `about` says in the header."""
    sizes = json.dumps(tokenizer.sizes)
    write_tensors(tokenizer, path, {**about, "format": FORMAT, "sizes": sizes})


def build_tokenizer(sizes: Mapping[str, Any]) -> Tokenizer | DalleEncoder:
    """Build a tokenizer, weights random, from another one's `sizes`."""
    if sizes.get("layout") == LAYOUT:
        return DalleEncoder(**{name: value for name, value in sizes.items() if name != "layout"})
    return Tokenizer(**sizes)


def load_tokenizer(path: Path) -> Tokenizer | DalleEncoder:
    """Read what `save_tokenizer` wrote, or DALL-E's encoder.

    Raises:
        UserError: neither of them.
    """
    if path.suffix != ".safetensors":
        return load_dalle(path)
    header, weights = read_tensors(path)
    if header.get("format") != FORMAT:
        return load_dalle(path)
    tokenizer = build_tokenizer(json.loads(header["sizes"]))
    tokenizer.load_state_dict(weights)
    return tokenizer


def ids_of_patches(
    tokenizer: Tokenizer | DalleEncoder, images: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Ids of a grid of patches, whatever their size: the images are resized to fit the tokenizer.

    BEiT's way: 224 px images of 14 x 14 patches reach a tokenizer of stride 8 as 112 px.

    Args:
        images: (B, 3, H, W) in [0, 1]; `grid`: (h, w) patches.

    Returns:
        (B, h, w), int64.

    Source: microsoft/unilm beit/run_beit_pretraining.py, datasets.py. Differs: the 224 px crop is
    resized, not the part of the original image that it came from.
    """
    size = (grid[0] * tokenizer.stride, grid[1] * tokenizer.stride)
    if size != tuple(images.shape[-2:]):
        images = lanczos_resize(images, size).clamp(0, 1)
    return tokenizer.encode(images)


def lanczos_resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Lanczos-3 resampling, as Pillow's, of float images: (B, C, H, W) -> (B, C, *size)."""
    rows, columns = (
        _lanczos_weights(before, after).to(images)
        for before, after in zip(images.shape[-2:], size, strict=True)
    )
    return rows @ images @ columns.T


@cache
def _lanczos_weights(before: int, after: int) -> Tensor:
    """(after, before) matrix that resamples one axis; wider than one pixel where it shrinks."""
    scale = before / after
    stretch = max(scale, 1.0)
    centres = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(before, dtype=torch.float64) + 0.5
    distance = (pixels[None] - centres[:, None]) / stretch
    weights = torch.sinc(distance) * torch.sinc(distance / 3) * (distance.abs() < 3)
    return weights / weights.sum(dim=1, keepdim=True)


def run(job: Job) -> Outcome:
    """Train a tokenizer; score its reconstruction and how much of the codebook is in use."""
    data, model = job.recipe["data"], job.recipe["model"]
    engine.seed_all(job.run.seed, 0)
    train_set, val_set, _ = labelled_sets(job.run.dataset, job.data_root, data)
    tokenizer = Tokenizer(**{name: model[name] for name in SIZES})
    training = TokenizerTraining(tokenizer, model["prior"])
    iterations, _ = engine.duration(job.recipe["solver"], len(train_set))
    cooling = Cooling(training, iterations, model["final_temperature"])
    trained = engine.fit(job, training, None, train_set, hooks=[cooling])
    if distributed.is_main():
        save_tokenizer(tokenizer, job.folder / "tokenizer.safetensors", engine.header(job))
    metrics, picture = _score(tokenizer, val_set, job)
    return Outcome(
        metrics=metrics,
        checkpoint="tokenizer.safetensors",
        pictures=(picture,),
        images_per_second=trained.images_per_second,
        data_time_share=trained.data_time_share,
        facts={
            "parameters": sum(p.numel() for p in tokenizer.parameters()),
            "training_images": len(train_set),
            **trained.facts,
        },
    )


@torch.no_grad()
def _score(
    tokenizer: Tokenizer, val_set: ImageDataset, job: Job
) -> tuple[dict[str, Metric], Picture]:
    tokenizer.eval()
    images = torch.stack([val_set[i]["images"] for i in range(len(val_set))])
    images = denormalise(images.to(tokenizer.codebook.weight.device))
    ids = tokenizer.encode(images)
    rebuilt = tokenizer.reconstruct(images).clamp(0, 1)
    mse = F.mse_loss(rebuilt, images).item()
    shares = torch.bincount(ids.flatten(), minlength=tokenizer.num_codes).double()
    shares = shares[shares > 0] / shares.sum()
    perplexity = (-(shares * shares.log()).sum()).exp().item()
    some = spread(len(images), NUM_SHOWN)
    rows = [images[some], rebuilt[some]]
    if distributed.is_main():
        image_grid(rows, ["original", "from ids"], job.folder / "rebuilt.png")
    metrics = {
        "psnr": Metric(value=-10 * math.log10(mse), unit="dB"),
        "codes_used": Metric(value=100.0 * len(shares) / tokenizer.num_codes, unit="%"),
        "code_perplexity": Metric(value=perplexity, unit="codes"),
    }
    return metrics, Picture(path="rebuilt.png", caption="Images and their way through ids")
