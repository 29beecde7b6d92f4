"""The same image and weights give the same features in timm, detectron2 and mmseg, and in theirs.

All comparisons in fp32, differences as a share of the largest value.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch import nn

import backbones.mmseg  # noqa: F401 (registers)
from backbones import create_backbone, detectron2
from backbones.checkpoints import fingerprint, read_checkpoint
from backbones.positions import resize_positions

# isort: split
from detectron2.modeling import GeneralizedRCNN

pytestmark = [pytest.mark.detectron2, pytest.mark.mmseg]
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
DEPTH, TAPS = 4, (0, 1, 2, 3)
MAIN = os.environ.get("MAE_BENCH_DETECTRON2")
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope("mmseg"):
        torch.manual_seed(0)
        yield


def randomise(model):
    """No parameter stays at a value that would hide its being left out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def difference(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def in_detectron2(image, checkpoint, tap):
    """One map of our encoder in a detector, from a picture (H, W, 3) in RGB."""
    backbone = detectron2.vit_features(
        "vit_tiny_patch16", [16], checkpoint=checkpoint, taps=[tap], depth=DEPTH
    )
    detector = GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=nn.Identity(),
        roi_heads=nn.Identity(),
        pixel_mean=MEAN,
        pixel_std=STD,
    ).eval()
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    batch = detector.preprocess_image([{"image": pixels}])
    return detector.backbone(batch.tensor)["s16"], backbone.encoder


def in_mmseg(image, checkpoint):
    """All maps of our encoder in mmseg, from the same picture as OpenCV reads it."""
    config = dict(type="MAEBenchViT", arch="vit_tiny_patch16", depth=DEPTH, out_indices=TAPS)
    backbone = MODELS.build({**config, "scales": [1] * 4, "checkpoint": str(checkpoint)}).eval()
    backbone.init_weights()
    preprocessor = MODELS.build(
        dict(type="SegDataPreProcessor", mean=MEAN, std=STD, bgr_to_rgb=True, test_cfg={})
    )
    pixels = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())
    return backbone(preprocessor({"inputs": [pixels]})["inputs"]), backbone.encoder


def in_timm(image, weights):
    """All maps of timm's own ViT.

    At other sizes it gets resized positions: its own interpolation is antialiased, with another
    kernel than MAE's, detectron2's and mmseg's.
    """
    size = image.shape[:2]
    options = dict(num_classes=0, depth=DEPTH, img_size=size)
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    grid = (size[0] // 16, size[1] // 16)
    positions = resize_positions(weights["pos_embed"], (14, 14), grid)
    model.load_state_dict({**weights, "pos_embed": positions})
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    pixels = (torch.from_numpy(image.transpose(2, 0, 1).copy()).float() - mean) / std
    return model.forward_intermediates(pixels[None], indices=TAPS, intermediates_only=True)


@pytest.mark.parametrize("size", [(224, 224), (256, 320)])
@torch.no_grad()
def test_timm_detectron2_and_mmseg_see_the_same(size, tmp_path):
    """From one file in MAE's layout and one picture, through each library's own preprocessing."""
    encoder = randomise(create_backbone("vit_tiny_patch16", depth=DEPTH))
    file = tmp_path / "mae.pth"
    torch.save({"model": encoder.state_dict()}, file)
    expected = fingerprint(read_checkpoint(file).weights)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    theirs = in_timm(image, encoder.state_dict())
    segmented, in_segmentor = in_mmseg(image, file)
    assert fingerprint(in_segmentor.state_dict()) == expected
    for tap in TAPS:
        detected, in_detector = in_detectron2(image, file, tap)
        assert fingerprint(in_detector.state_dict()) == expected
        assert difference(detected, theirs[tap]) < 1e-5
        assert difference(segmented[tap], theirs[tap]) < 1e-5
    # The comparison would see exchanged colours.
    assert difference(in_mmseg(image[..., ::-1], file)[0][0], theirs[0]) > 1e-2


SEGMENTORS = {
    "MAE": dict(positions="learned", relative_positions="per-block", layer_scale=1.0),
    "BEiT": dict(positions=None, relative_positions="per-block", layer_scale=0.1, qkv_bias="qv"),
}


@pytest.mark.parametrize("kind", SEGMENTORS)
@torch.no_grad()
def test_mmsegs_own_backbones(kind, tmp_path):
    """mmseg's MAE and BEiT against ours, loaded from a segmentor's checkpoint."""
    sizes = dict(embed_dims=192, num_layers=DEPTH, num_heads=3, patch_size=16, img_size=(64, 64))
    norm = dict(type="LN", eps=1e-6)
    theirs = MODELS.build(dict(type=kind, out_indices=TAPS, norm_cfg=norm, **sizes))
    randomise(theirs)
    file = tmp_path / "segmentor.pth"
    state = {f"backbone.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"state_dict": state, "meta": {}}, file)
    ours = MODELS.build(
        dict(
            type="MAEBenchViT",
            arch="vit_tiny_patch16",
            depth=DEPTH,
            img_size=64,
            out_indices=TAPS,
            scales=[1] * 4,
            checkpoint=str(file),
            format="mmseg",
            **SEGMENTORS[kind],
        )
    ).eval()
    images = torch.randn(2, 3, 64, 64)
    for mine, other in zip(ours(images), theirs(images), strict=True):
        assert difference(mine, other) < 1e-5
    report = ours.load_report
    assert not report.resized and set(report.new) == {"norm.weight", "norm.bias"}
    with torch.no_grad():
        ours.encoder.blocks[0].attn.relative_position_bias_table[5] += 3
    assert difference(ours(images)[0], theirs(images)[0]) > 1e-4


@pytest.mark.skipif(not MAIN, reason="MAE_BENCH_DETECTRON2 names no checkout of detectron2's main")
def test_detectron2s_own_vitdet():
    """Its ViT and pyramid (windows, decomposed relative positions, any size) against ours."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "vitdet_reference.py"],
        env={**os.environ, "PYTHONPATH": f"{MAIN}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    differences = json.loads(done.stdout)
    assert len(differences) == 19
    assert max(differences.values()) < 1e-5, differences
