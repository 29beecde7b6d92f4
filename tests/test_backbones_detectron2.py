"""Our encoders inside detectron2: names, shapes, padding, taps, weights at step 0.

With MAE_BENCH_DETECTRON2=<checkout of detectron2's main branch>, all of it is tried there too.
"""

import os
import subprocess
import sys
from pathlib import Path

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
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from detectron2.structures import ImageList

pytestmark = pytest.mark.detectron2
SMALL = ("vit_mini_patch8", "vit_tiny_patch16")
STRIDES = {"vit_mini_patch8": [2, 4, 8, 16], "vit_tiny_patch16": [4, 8, 16, 32]}
# Li et al. and ViTDet, small.
LI = dict(window_size=4, relative_positions="shared", relative_img_size=64, drop_path_rate=0.1)
VITDET = dict(window_size=4, relative_positions="decomposed", relative_img_size=64)
MAIN = os.environ.get("MAE_BENCH_DETECTRON2")


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


@pytest.mark.parametrize("name", [*list_backbones(), "mae_bench"])
def test_every_backbone_is_in_detectron2s_registry(name):
    for suffix in ("", "_fpn", "_simple_pyramid"):
        assert callable(BACKBONE_REGISTRY.get(f"{name}{suffix}"))


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


BUILDERS = {
    "fpn": lambda **o: detectron2.vit_fpn("vit_mini_patch8", [4, 8, 16], 32, **o),
    "li": lambda **o: detectron2.vit_fpn("vit_mini_patch8", [4, 8, 16], 32, depth=8, **LI, **o),
    "vitdet": lambda **o: detectron2.vit_simple_pyramid(
        "vit_mini_patch8", [4, 8, 16], 32, depth=8, **VITDET, **o
    ),
    "unpadded windows": lambda **o: detectron2.vit_fpn(
        "vit_mini_patch8", [4, 8, 16], 32, window_size=3, window_pad=False, depth=8, **o
    ),
    "timm plain": lambda **o: detectron2.vit_fpn(
        "timm:deit_tiny_patch16_224", [4, 8, 16, 32], 32, depth=4, **o
    ),
    "timm hierarchical": lambda **o: detectron2.vit_fpn("timm:resnet18", [4, 8, 16, 32], 32, **o),
    "timm windows": lambda **o: detectron2.vit_fpn(
        "timm:swin_tiny_patch4_window7_224", [4, 8, 16], 32, **o
    ),
}
DIVISIBILITY = {
    "unpadded windows": 48,
    "timm plain": 32,
    "timm hierarchical": 32,
}


def detector(backbone):
    """A real GeneralizedRCNN around a backbone, for its preprocessing; the heads are never run."""
    mean = [123.675, 116.28, 103.53]
    return GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=torch.nn.Identity(),
        roi_heads=torch.nn.Identity(),
        pixel_mean=mean,
        pixel_std=mean,
    )


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("sizes", [[(50, 83)], [(33, 95), (71, 40)]])
def test_detectron2s_own_preprocessing_pads_what_the_backbone_needs(builder, sizes):
    """Odd sizes through GeneralizedRCNN: the least padding, and every level as it was promised."""
    model = detector(BUILDERS[builder]()).eval()
    divisor = DIVISIBILITY.get(builder, 16)
    assert model.backbone.size_divisibility == divisor
    images = [{"image": torch.rand(3, *size) * 255} for size in sizes]
    batch = model.preprocess_image(images)
    assert batch.image_sizes == sizes
    highest = [max(size[side] for size in sizes) for side in (0, 1)]
    assert list(batch.tensor.shape[-2:]) == [-(-side // divisor) * divisor for side in highest]
    with torch.no_grad():
        maps = model.backbone(batch.tensor)
    shapes = model.backbone.output_shape()
    assert list(maps) == list(shapes)
    for level, shape in shapes.items():
        grid = tuple(-(-side // shape.stride) for side in batch.tensor.shape[-2:])
        assert maps[level].shape == (len(sizes), shape.channels, *grid), level


@pytest.mark.parametrize("builder", ["fpn", "vitdet", "timm hierarchical"])
def test_square_padding(builder):
    """Release 0.6 reads only the divisibility, main both; either pads to the square."""
    model = detector(BUILDERS[builder](square_pad=128))
    assert model.backbone.size_divisibility == 128
    assert model.backbone.padding_constraints == {"size_divisibility": 128, "square_size": 128}
    assert BUILDERS[builder]().padding_constraints["square_size"] == 0
    for sizes in ([(50, 83)], [(33, 128), (71, 40)]):
        batch = model.preprocess_image([{"image": torch.rand(3, *size)} for size in sizes])
        assert batch.tensor.shape == (len(sizes), 3, 128, 128)


def test_the_least_padding_takes_patches_and_strides():
    assert small("vit_mini_patch8", [4, 8]).size_divisibility == 8
    assert small("vit_mini_patch8", [16]).size_divisibility == 16


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


@pytest.mark.parametrize("builder", BUILDERS)
def test_every_trainable_parameter_gets_a_gradient(builder):
    torch.manual_seed(0)
    model = BUILDERS[builder]().train()
    maps = model(torch.rand(2, 3, 96, 96))
    # Against noise: the mean of a normalised map is constant.
    sum((level * torch.rand_like(level)).sum() for level in maps.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    if builder in {"fpn", "li", "unpadded windows"}:
        assert frozen == {"bottom_up.encoder.norm.weight", "bottom_up.encoder.norm.bias"}


def test_taps_after_any_blocks():
    model = detectron2.vit_features("vit_mini_patch8", [4, 8], taps=[0, 2])
    frozen = {n.split(".")[2] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"3", "weight", "bias"}  # the last block and the norm
    images = torch.rand(1, 3, 32, 48)
    assert torch.equal(model(images)["s8"], model.encoder.forward_maps(images, [0, 2])[1])
    for taps, message in (([2, 0], "ascending"), ([0], "1 taps"), ([0, 4], "from 0 to 3")):
        with pytest.raises(UserError, match=message):
            detectron2.vit_features("vit_mini_patch8", [4, 8], taps=taps)


def test_levels_that_a_hierarchical_encoder_has_not():
    with pytest.raises(UserError, match=r"strides \[2, 4\]: this encoder has \[4, 8, 16, 32\]"):
        detectron2.vit_features("timm:resnet18", [2, 4])
    with pytest.raises(UserError, match=r"timm:resnet18 is hierarchical .* use vit_fpn"):
        detectron2.vit_simple_pyramid("timm:resnet18")
    unused = detectron2.vit_features("timm:resnet18", [4, 8])
    frozen = {n.split(".")[1] for n, p in unused.named_parameters() if not p.requires_grad}
    assert {"layer3", "layer4"} <= frozen and not frozen & {"conv1", "layer1", "layer2"}


@pytest.mark.parametrize("norm", ["", "LN", "GN", "BN"])
def test_norms_of_pyramid_and_fpn_by_name(norm):
    """ "LN" too, which release 0.6 does not know."""
    kinds = {"": 0, "LN": torch.nn.LayerNorm, "GN": torch.nn.GroupNorm, "BN": torch.nn.BatchNorm2d}
    fpn = detectron2.vit_fpn("vit_mini_patch8", [2, 4], 32, norm, pyramid_norm=norm)
    vitdet = detectron2.vit_simple_pyramid("vit_mini_patch8", [2, 4], 32, norm, embed_dim=192)
    for model in (fpn.bottom_up.pyramid, fpn.fpn_lateral1, vitdet.pyramid):
        found = [m for m in model.modules() if norm and isinstance(m, kinds[norm])]
        assert bool(found) == bool(norm)
        convolutions = [m for m in model.modules() if type(m).__name__ == "Conv2d"]
        assert all((c.bias is None) == bool(norm) for c in convolutions)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(5)
    encoder = create_backbone("vit_mini_patch8")
    save_backbone(encoder, tmp_path / "mini.safetensors", {"backbone": "vit_mini_patch8"})
    return tmp_path / "mini.safetensors", fingerprint(encoder.state_dict())


@pytest.mark.parametrize(
    "build", [detectron2.vit_fpn, detectron2.vit_features, detectron2.vit_simple_pyramid]
)
def test_weights_at_step_0_are_the_files(build, checkpoint, tmp_path):
    """Instantiated lazily, inside a detector, after detectron2's checkpointer had its turn."""
    path, expected = checkpoint
    config = LazyCall(build)(name="vit_mini_patch8", strides=[4, 8, 16], checkpoint=str(path))
    model = detector(instantiate(config))
    heads = {"model": {"roi_heads.box_predictor.weight": torch.rand(3, 3)}}
    torch.save(heads, tmp_path / "heads.pth")
    for file in ("", str(tmp_path / "heads.pth")):
        DetectionCheckpointer(model, str(tmp_path)).resume_or_load(file, resume=False)
        encoder = detectron2.encoder_of(model.backbone)
        assert fingerprint(encoder.state_dict()) == expected
    report = detectron2.load_report_of(model.backbone)
    assert report.fingerprint == expected and not report.resized
    report.check(encoder.state_dict())
    random = instantiate(LazyCall(build)(name="vit_mini_patch8", strides=[4, 8, 16]))
    assert fingerprint(detectron2.encoder_of(random).state_dict()) != expected
    assert detectron2.load_report_of(random) is None


def yacs(**vit):
    cfg = get_cfg()
    detectron2.add_vit_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.MASK_ON = True
    levels = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = levels
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.VIT.STRIDES = [4, 8, 16]
    for key, value in vit.items():
        cfg.MODEL.VIT[key] = value
    return cfg


@pytest.mark.parametrize(
    ("name", "vit"),
    [
        ("vit_mini_patch8_fpn", {}),
        ("vit_mini_patch8_simple_pyramid", {}),
        ("mae_bench_fpn", {"NAME": "vit_mini_patch8"}),
        ("mae_bench_fpn", {"NAME": "timm:resnet18", "STRIDES": [4, 8, 16, 32]}),
    ],
)
def test_yacs_builds_mask_rcnn_on_our_backbone(name, vit, checkpoint):
    path, expected = checkpoint
    ours = not vit.get("NAME", "").startswith("timm:")
    cfg = yacs(**vit, **({"CHECKPOINT": str(path), "FORMAT": "mae-bench"} if ours else {}))
    cfg.MODEL.BACKBONE.NAME = name
    cfg.freeze()
    model = build_model(cfg).eval()
    if ours:
        assert fingerprint(detectron2.encoder_of(model.backbone).state_dict()) == expected
    with torch.no_grad():
        output = model([{"image": torch.rand(3, 50, 70) * 255}])[0]["instances"]
    assert output.image_size == (50, 70)


def test_yacs_files_reach_every_option_of_the_encoder(tmp_path):
    cfg = yacs()
    file = tmp_path / "li.yaml"
    file.write_text(
        "MODEL:\n  BACKBONE:\n    NAME: vit_mini_patch8_fpn\n  VIT:\n    DROP_PATH: 0.1\n"
        "    OPTIONS:\n      window_size: 4\n      depth: 8\n      global_blocks: [3, 7]\n"
        "      relative_positions: shared\n"
    )
    cfg.merge_from_file(str(file))
    encoder = detectron2.encoder_of(build_model(cfg).backbone)
    sizes = [block.attn.window_size for block in encoder.blocks]
    assert sizes == [4, 4, 4, 0, 4, 4, 4, 0]
    assert encoder.blocks[7].drop_path.drop_prob == 0.1
    cfg.MODEL.BACKBONE.NAME = "mae_bench_fpn"
    with pytest.raises(UserError, match=r"MODEL\.VIT\.NAME is empty"):
        build_model(cfg)


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


@pytest.mark.slow
@pytest.mark.skipif(not MAIN, reason="MAE_BENCH_DETECTRON2 names no checkout of detectron2's main")
def test_all_of_this_holds_with_detectron2s_main_branch():
    """This file once more, with the checkout in place of the release (it needs no compiling)."""
    environment = {**os.environ, "PYTHONPATH": MAIN, "MAE_BENCH_DETECTRON2": ""}
    code = "import detectron2, sys; sys.exit(not detectron2.__file__.startswith(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, MAIN], env=environment, check=True)
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        tests,
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
