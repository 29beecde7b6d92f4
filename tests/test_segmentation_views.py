"""Several scales and flips on real images, through mmcv's pipeline and our sum."""

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmseg.models import SegTTAModel
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from mae_bench.recipes import load_recipe
from tasks.segmentation import build_segmentor, building, mmseg_config
from tasks.segmentation.scores import evaluate

pytestmark = pytest.mark.mmseg


def test_views_of_an_image_equal_mmsegs_and_keep_its_labels(tmp_path):
    labels = np.repeat(np.arange(40)[:, None] // 14, 60, axis=1).astype(np.uint8)
    labels[:, :10] = 1  # no mirror image of itself
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (tmp_path / "set" / kind / split).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / "images" / split / "a.jpg")
        Image.fromarray(labels).save(tmp_path / "set" / "annotations" / split / "a.png")
    (tmp_path / "set" / "classes.txt").write_text("one\ntwo\n")
    views = {"test.scales": [1.0, 1.5], "test.flip": True}
    sizes = {"data.image_size": 32, "data.crop_size": 32, "model.channels": 8}
    config = mmseg_config(
        load_recipe("segmentation/own_data", {**views, **sizes}, backbone="vit_mini_patch8"),
        dataset=f"ade20k-format:{tmp_path / 'set'}",
        backbone="vit_mini_patch8",
    )
    config["val_dataloader"]["dataset"]["pipeline"] = config["tta_pipeline"]
    with building():
        model = build_segmentor(config["model"], 0).eval()
        validation = DATASETS.build(config["val_dataloader"]["dataset"])
        ours = MODELS.build({**config["tta_model"], "module": model})
    batch = pseudo_collate([validation[0]])
    assert len(batch["inputs"]) == 4
    with torch.no_grad():
        expected = SegTTAModel(module=model).eval().test_step(batch)[0].pred_sem_seg.data
        found = ours.eval().test_step(batch)[0].pred_sem_seg.data
    assert torch.equal(found.view(40, 60), expected.view(40, 60))
    model.train()
    _, (example,) = evaluate(ours.train(), validation)
    assert np.array_equal(example.truth, np.where(labels == 0, 255, labels - 1))
    assert np.array_equal(example.prediction, found.view(40, 60).numpy())
    assert model.training, "a training that scores on the way goes on"
