"""Compares our ViTDet backbone with detectron2's own; run with its main branch on the path.

Prints one JSON object: what was compared -> largest difference in fp32, as a share of the largest
value. Release 0.6 of detectron2 has no ViT, so this runs in a process of its own.
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT, get_vit_lr_decay_rate
from torch import nn

from backbones.detectron2 import vit_simple_pyramid
from backbones.groups import parameter_rules

SIZES = dict(patch_size=16, embed_dim=96, depth=8, num_heads=3)


def reference(square_pad: int) -> SimpleFeaturePyramid:
    net = ViT(
        img_size=128,
        drop_path_rate=0.0,
        window_size=3,
        window_block_indexes=[0, 2, 4, 6],
        use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        pretrain_img_size=64,
        **SIZES,
    )
    model = SimpleFeaturePyramid(
        net,
        in_feature="last_feat",
        out_channels=32,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=square_pad,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def ours(checkpoint: Path, square_pad: int) -> nn.Module:
    return vit_simple_pyramid(
        "vit_tiny_patch16",
        out_channels=32,
        checkpoint=checkpoint,
        format="detectron2",
        square_pad=square_pad,
        window_size=3,
        global_blocks=(1, 3, 5, 7),
        relative_positions="decomposed",
        img_size=64,
        relative_img_size=128,
        **SIZES,
    ).eval()


def copy_pyramid(theirs: SimpleFeaturePyramid, model: nn.Module) -> None:
    """Their stages into our levels, parameter by parameter in the order of definition."""
    for stage, level in zip(theirs.stages, model.pyramid.levels, strict=True):
        pairs = zip(stage.parameters(), level.parameters(), strict=True)
        with torch.no_grad():
            for source, target in pairs:
                target.copy_(source)


def main() -> None:
    torch.manual_seed(0)
    theirs = reference(square_pad=0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vitdet.pth"
        torch.save({"model": {f"backbone.{k}": v for k, v in theirs.state_dict().items()}}, file)
        model = ours(file, square_pad=0)
    copy_pyramid(theirs, model)
    differences = {}
    for size in ((128, 128), (160, 96), (64, 224)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected, got = theirs(images), model(images)
            (last,) = model.encoder.forward_maps(images, [7])
            net = theirs.net(images)["last_feat"]
        assert list(expected) == list(got)
        pairs = {"last map": (last, net), **{n: (got[n], expected[n]) for n in expected}}
        for name, (a, b) in pairs.items():
            differences[f"{name} {size}"] = ((a - b).abs().max() / b.abs().max()).item()
    for name, shape in theirs.output_shape().items():
        assert model.output_shape()[name] == shape, name
    rules = {r.name: r.lr_scale for r in parameter_rules(model, model.encoder, 0.1, 0.7, "vitdet")}
    differences["lr scale"] = max(
        abs(rules[f"encoder.{name}"] - get_vit_lr_decay_rate(f"backbone.net.{name}", 0.7, 8))
        for name, _ in theirs.net.named_parameters()
    )
    json.dump(differences, sys.stdout)


if __name__ == "__main__":
    main()
