"""Our encoders inside detectron2: names, shapes, padding, taps, weights at step 0."""

import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch

from backbones import create_backbone, detectron2, list_backbones
from backbones.checkpoints import fingerprint, save_backbone
from backbones.pyramid import TapPyramid
from backbones.vit import quarters
from mae_bench.errors import UserError

# isort: split
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from detectron2.structures import ImageList

pytestmark = pytest.mark.detectron2
SMALL = ("vit_mini_patch8", "vit_tiny_patch16")
STRIDES = {"vit_mini_patch8": [2, 4, 8, 16], "vit_tiny_patch16": [4, 8, 16, 32]}


def small(name, strides=None, **options):
    options = {"depth": 4, "img_size": 64, **options}
    return detectron2.vit_features(name, strides or STRIDES[name], **options)


def test_listing_backbones_loads_no_detectron2():
    code = "import sys, backbones; backbones.list_backbones(); print('detectron2' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_missing_names_are_restored_and_present_ones_left(monkeypatch):
    monkeypatch.setattr(PIL.Image, "LINEAR", "kept")
    monkeypatch.delattr(np, "int", raising=False)
    before = np.__dict__["bool"]
    detectron2.restore_names()
    assert PIL.Image.LINEAR == "kept"
    assert np.__dict__["int"] is int
    assert np.__dict__["bool"] is before
    monkeypatch.delattr(PIL.Image, "LINEAR")
    detectron2.restore_names()
    assert PIL.Image.LINEAR == PIL.Image.BILINEAR


@pytest.mark.parametrize("name", list_backbones())
def test_every_backbone_is_in_detectron2s_registry(name):
    assert callable(BACKBONE_REGISTRY.get(name))
    assert callable(BACKBONE_REGISTRY.get(f"{name}_fpn"))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(64, 64), (50, 83), (33, 129)])
def test_output_shape_holds_at_odd_sizes(name, size):
    """Padded as detectron2 pads; every level has its channels and exactly its stride."""
    for model in (small(name), detectron2.vit_fpn(name, STRIDES[name], 32, depth=4)):
        image = torch.rand(3, *size)
        batch = ImageList.from_tensors([image], model.size_divisibility)
        height, width = batch.tensor.shape[-2:]
        assert height - size[0] < model.size_divisibility
        maps, shapes = model(batch.tensor), model.output_shape()
        assert list(maps) == list(shapes)
        for level, shape in shapes.items():
            # The top level, subsampled, rounds up; all others divide evenly.
            rows, columns = (-(-side // shape.stride) for side in (height, width))
            assert maps[level].shape == (1, shape.channels, rows, columns)
            assert shape.stride > max(STRIDES[name]) or rows * shape.stride == height


def test_level_names_follow_the_strides():
    assert list(small("vit_mini_patch8").output_shape()) == ["s2", "s4", "s8", "s16"]
    fpn = detectron2.vit_fpn("vit_mini_patch8", [4, 8, 16], 32)
    assert {n: s.stride for n, s in fpn.output_shape().items()} == {
        "p2": 4,
        "p3": 8,
        "p4": 16,
        "p5": 32,
    }
    maps = fpn(torch.rand(1, 3, 64, 64))
    assert torch.equal(maps["p5"], maps["p4"][:, :, ::2, ::2])


def test_padding_constraints_are_spelt_as_detectron2_reads_them():
    free = small("vit_mini_patch8", [4, 8, 16])
    assert free.padding_constraints == {"size_divisibility": 16, "square_size": 0}
    assert small("vit_mini_patch8", [4, 8]).size_divisibility == 8
    fpn = detectron2.vit_fpn("vit_mini_patch8", [4, 8, 16], 32, square_pad=96)
    assert fpn.padding_constraints == {"size_divisibility": 96, "square_size": 96}
    batch = ImageList.from_tensors([torch.rand(3, 40, 70)], fpn.size_divisibility)
    assert batch.tensor.shape == (1, 3, 96, 96)


@pytest.mark.parametrize("strides", [[4, 8, 14], [3, 7], [64]])
def test_strides_that_the_patches_do_not_give_are_refused(strides):
    with pytest.raises(UserError, match=r"give 3.5, 7, 14, 28; choose .* patch_size=16"):
        small("vit_tiny_patch16", strides, patch_size=14, img_size=56)


def test_levels_are_the_encoders_own_taps_resampled():
    """The third quarter is passed on as it is; each level reads its quarter and nothing later."""
    torch.manual_seed(0)
    encoder = create_backbone("vit_mini_patch8", depth=8)
    model = detectron2.ViTFeatures(encoder, [2, 4, 8, 16]).eval()
    images = torch.rand(2, 3, 48, 80)
    before = model(images)
    shuffled = detectron2.ViTFeatures(encoder, [16, 2, 8, 4])
    shuffled.load_state_dict(model.state_dict())
    assert all(torch.equal(level, before[name]) for name, level in shuffled(images).items())
    taps = encoder.forward_maps(images, quarters(8))
    assert torch.equal(before["s8"], taps[2])
    assert torch.equal(before["s16"], torch.nn.functional.max_pool2d(taps[3], 2))
    with torch.no_grad():
        encoder.blocks[4].mlp.fc2.bias += 1.0  # the third quarter's first block
    after = model(images)
    same = [torch.equal(before[level], after[level]) for level in before]
    assert same == [True, True, False, False]


def test_every_trainable_parameter_gets_a_gradient():
    model = detectron2.vit_fpn("vit_mini_patch8", [2, 4, 8, 16], 32)
    sum(level.square().mean() for level in model(torch.rand(2, 3, 64, 64)).values()).backward()
    for name, parameter in model.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert has_gradient == parameter.requires_grad, name
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["bottom_up.encoder.norm.weight", "bottom_up.encoder.norm.bias"]


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(5)
    encoder = create_backbone("vit_mini_patch8")
    save_backbone(encoder, tmp_path / "mini.safetensors", {"backbone": "vit_mini_patch8"})
    return tmp_path / "mini.safetensors", fingerprint(encoder.state_dict())


def test_weights_at_step_0_are_the_files(checkpoint):
    path, expected = checkpoint
    config = LazyCall(detectron2.vit_fpn)(
        name="vit_mini_patch8", strides=[4, 8, 16], checkpoint=str(path), out_channels=32
    )
    model = instantiate(config)
    assert fingerprint(detectron2.encoder_of(model).state_dict()) == expected
    report = detectron2.load_report_of(model)
    assert report.fingerprint == expected and not report.resized
    random = instantiate(LazyCall(detectron2.vit_fpn)(name="vit_mini_patch8", strides=[4, 8, 16]))
    assert fingerprint(detectron2.encoder_of(random).state_dict()) != expected
    assert detectron2.load_report_of(random) is None


def test_yacs_builds_mask_rcnn_on_our_backbone(checkpoint):
    path, expected = checkpoint
    cfg = get_cfg()
    detectron2.add_vit_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "vit_mini_patch8_fpn"
    cfg.MODEL.VIT.STRIDES = [4, 8, 16]
    cfg.MODEL.VIT.CHECKPOINT = str(path)
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.MASK_ON = True
    levels = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = levels
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.freeze()
    model = build_model(cfg).eval()
    assert fingerprint(model.backbone.bottom_up.encoder.state_dict()) == expected
    with torch.no_grad():
        output = model([{"image": torch.rand(3, 50, 70) * 255}])[0]["instances"]
    assert output.image_size == (50, 70)


def test_the_pyramid_is_the_one_of_the_recipe():
    """Quarter to scale: the finest level has the norm between its two transposed convolutions."""
    pyramid = small("vit_tiny_patch16").pyramid
    assert isinstance(pyramid, TapPyramid)
    kinds = [[type(m).__name__ for m in level.modules()][:3] for level in pyramid.levels]
    assert kinds == [
        ["Sequential", "ConvTranspose2d", "GroupNorm"],
        ["ConvTranspose2d"],
        ["Identity"],
        ["MaxPool2d"],
    ]
