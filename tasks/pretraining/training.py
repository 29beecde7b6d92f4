"""The task that pretrains a masked autoencoder, and what it scores and shows.

Beside the recipe keys that are options of the model, `model` may have `pca_coefficients` and
`pca_images` (for the target pca: how many coefficients, fitted on how many training images), and
`solver` may have `picture_every`: steps between pictures of reconstructions, None for only one at
the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from backbones.checkpoints import save_backbone
from mae_bench.errors import UserError
from mae_bench.job import Job
from mae_bench.records import Metric, Outcome, Picture
from tasks import distributed, engine
from tasks.data.images import ImageDataset, labelled_sets
from tasks.pretraining.checkpoints import save_pretrained, save_torch_file, start_from
from tasks.pretraining.mae import MaskedAutoencoder, build
from tasks.pretraining.pictures import NUM_SHOWN, image_grid, spread
from tasks.pretraining.targets import Pca
from tasks.pretraining.tokenizer import load_tokenizer

# Images at a time in scoring and in fitting a target.
CHUNK = 128
PCA_IMAGES = 2048


def run(job: Job) -> Outcome:
    """Pretrain an encoder; score the loss on validation images under fixed masks."""
    data, model = job.recipe["data"], job.recipe["model"]
    engine.seed_all(job.run.seed, 0)
    tokenizer = load_tokenizer(job.upstream["tokenizer"]) if "tokenizer" in job.upstream else None
    mae = build(job.run.backbone, data, model, tokenizer)
    train_set, val_set, _ = labelled_sets(job.run.dataset, job.data_root, data)
    facts = {}
    if "start" in job.upstream:
        start_from(mae, job.upstream["start"], model["target"])
    elif isinstance(mae.target, Pca):
        mae.target.fit(_sample(train_set, model.get("pca_images", PCA_IMAGES), job.run.seed))
        facts["pca_variance_explained"] = float(mae.target.explained)
    # The paper decays the class and mask tokens: they are 3-D, and its list of exceptions is empty.
    trained = engine.fit(
        job, mae, mae.encoder, train_set, "mae-pretrain", _picture_hooks(job, mae, val_set)
    )
    about = engine.header(job)
    loss = _score(mae.eval(), val_set)
    if distributed.is_main():
        backbone = job.folder / "backbone.safetensors"
        save_backbone(mae.encoder, backbone, about)
        save_pretrained(mae, job.folder / "mae.safetensors", about)
        save_torch_file(backbone, job.folder / "backbone.pth")
        save_torch_file(backbone, job.folder / "mae.pth", mae.decoder)
        _draw(mae, *_shown(mae, val_set), job.folder / "reconstructions.png")
    facts |= engine.pretraining_facts(job, mae.encoder, train_set, trained)
    return Outcome(
        metrics={"val_loss": Metric(value=loss, unit="loss", higher_is_better=False)},
        checkpoint="backbone.safetensors",
        pictures=_pictures(job, mae),
        images_per_second=trained.images_per_second,
        data_time_share=trained.data_time_share,
        facts=facts,
    )


def _sample(dataset: ImageDataset, count: int, seed: int) -> Iterator[Tensor]:
    """Batches of images spread evenly over a training set, augmented as in training."""
    chosen = spread(len(dataset), count)
    for first in range(0, len(chosen), CHUNK):
        images = []
        for index in chosen[first : first + CHUNK]:
            engine.seed_all(seed, 3, index)
            images.append(dataset[index]["images"])
        yield torch.stack(images)


@torch.no_grad()
def _score(mae: MaskedAutoencoder, val_set: ImageDataset) -> float:
    """Mean loss; every image counts once."""
    device, total = mae.encoder.pos_embed.device, 0.0
    noise = _noise(mae, len(val_set))
    for indices in torch.arange(len(val_set)).split(CHUNK):
        images = torch.stack([val_set[int(i)]["images"] for i in indices])
        loss = mae(images.to(device), noise=noise[indices].to(device))["loss"]
        total += loss.item() * len(images)
    return total / len(val_set)


def _noise(mae: MaskedAutoencoder, count: int) -> Tensor:
    """The same masks for every run, so that their losses and pictures can be compared."""
    return torch.rand(count, mae.num_patches, generator=torch.Generator().manual_seed(0))


def _shown(mae: MaskedAutoencoder, val_set: ImageDataset) -> tuple[Tensor, Tensor]:
    """The validation images that are shown, (N, 3, H, W), and their noise (N, L)."""
    some = spread(len(val_set), NUM_SHOWN)
    images = torch.stack([val_set[i]["images"] for i in some])
    return images, _noise(mae, len(val_set))[some]


def _draw(mae: MaskedAutoencoder, images: Tensor, noise: Tensor, path: Path) -> None:
    device = mae.encoder.pos_embed.device
    shown = mae.reconstruct(images.to(device), noise.to(device))
    image_grid(list(shown.values()), list(shown), path)


class Reconstructions(Hook):
    """Draws the same images under the same masks every so many steps of a training.

    Attributes:
        FOLDER: below the run's folder; a file per drawing, named after its step.
    """

    FOLDER = "reconstructions"

    def __init__(
        self, mae: MaskedAutoencoder, images: Tensor, noise: Tensor, every: int, folder: Path
    ):
        self.mae, self.images, self.noise, self.every = mae, images, noise, every
        self.folder = folder / self.FOLDER

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        step = runner.iter + 1
        if step % self.every or not distributed.is_main():
            return
        self.folder.mkdir(exist_ok=True)
        self.mae.eval()
        _draw(self.mae, self.images, self.noise, self.folder / f"step-{step:07d}.png")
        self.mae.train()


def _picture_hooks(job: Job, mae: MaskedAutoencoder, val_set: ImageDataset) -> list[Hook]:
    every = job.recipe["solver"].get("picture_every")
    if every is None:
        return []
    if every < 1:
        raise UserError(f"solver.picture_every {every}: a number of steps, or none, is needed")
    return [Reconstructions(mae, *_shown(mae, val_set), every, job.folder)]


def _pictures(job: Job, mae: MaskedAutoencoder) -> tuple[Picture, ...]:
    what = f"{mae.mask_ratio:.0%} of the patches removed ({job.run.init})"
    earlier = sorted((job.folder / Reconstructions.FOLDER).glob("step-*.png"))
    return (
        Picture(path="reconstructions.png", caption=f"Validation images, {what}"),
        *(
            Picture(
                path=f"{Reconstructions.FOLDER}/{path.name}",
                caption=f"After {int(path.stem.removeprefix('step-'))} steps, {what}",
            )
            for path in earlier
        ),
    )
