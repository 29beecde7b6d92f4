"""The task that pretrains a masked autoencoder, and what it scores and shows."""

from __future__ import annotations

import torch

from backbones.checkpoints import save_backbone
from mae_bench.job import Job
from mae_bench.records import Metric, Outcome, Picture
from tasks import engine
from tasks.data.images import ImageDataset, labelled_sets
from tasks.pretraining.checkpoints import save_pretrained
from tasks.pretraining.mae import MaskedAutoencoder, build
from tasks.pretraining.pictures import NUM_SHOWN, image_grid, spread
from tasks.pretraining.tokenizer import load_tokenizer


def run(job: Job) -> Outcome:
    """Pretrain an encoder; score the loss on validation images under fixed masks."""
    data = job.recipe["data"]
    engine.seed_all(job.run.seed, 0)
    tokenizer = load_tokenizer(job.upstream["tokenizer"]) if "tokenizer" in job.upstream else None
    mae = build(job.run.backbone, data, job.recipe["model"], tokenizer)
    train_set, val_set, _ = labelled_sets(job.run.dataset, job.data_root, data)
    # The paper decays the class and mask tokens: they are 3-D, and its list of exceptions is empty.
    trained = engine.fit(job, mae, mae.encoder, train_set, decay_rule="mae-pretrain")
    about = engine.header(job)
    save_backbone(mae.encoder, job.folder / "backbone.safetensors", about)
    save_pretrained(mae, job.folder / "mae.safetensors", about)
    loss, pictures = _score(mae.eval(), val_set, job)
    return Outcome(
        metrics={"val_loss": Metric(value=loss, unit="loss", higher_is_better=False)},
        checkpoint="backbone.safetensors",
        pictures=pictures,
        images_per_second=trained.images_per_second,
        facts=engine.pretraining_facts(job, mae.encoder, train_set, trained),
    )


@torch.no_grad()
def _score(
    mae: MaskedAutoencoder, val_set: ImageDataset, job: Job
) -> tuple[float, tuple[Picture, ...]]:
    device = mae.encoder.pos_embed.device
    images = torch.stack([val_set[i]["images"] for i in range(len(val_set))]).to(device)
    # The same masks for every run, so that their losses and pictures can be compared.
    noise = torch.rand(len(images), mae.num_patches, generator=torch.Generator().manual_seed(0)).to(
        device
    )
    loss = mae(images, noise=noise)["loss"].item()
    some = spread(len(images), NUM_SHOWN)
    shown = mae.reconstruct(images[some], noise[some])
    image_grid(list(shown.values()), list(shown), job.folder / "reconstructions.png")
    caption = f"Validation images, {mae.mask_ratio:.0%} of the patches removed ({job.run.init})"
    return loss, (Picture(path="reconstructions.png", caption=caption),)
