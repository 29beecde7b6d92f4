"""Mask R-CNN on a data set of one's own: a few hundred images, one GPU or a CPU.

No paper's: Li et al. in small. The image size follows the data, groups instead of batches are
normalised since the batch is small, lr falls towards the first layers as in ViTDet, and the jitter
is mild. Larger: `--set data.image_size=1024`; the whole protocol: `--recipe detection/li`.

detectron2 reads this file as a LazyConfig; `mae-bench` reads only the literals.
"""

recipe = {
    "data": {
        # None: the median of the training images' longer sides, from 96 to 512 px.
        "image_size": None,
        "min_scale": 0.5,
        "max_scale": 1.5,
        "flip": 0.5,
        "pad_value": 128.0,
        "num_workers": 2,
        # Unreadable training images that are reported and left out.
        "max_broken": 10,
    },
    "model": {
        "strides": [4, 8, 16, 32],
        "pyramid": "taps",
        "taps": None,
        "pyramid_norm": "GN",
        "patch_size": None,
        # 32 x 32 patches at most: windows would save nothing.
        "window_size": 0,
        "global_blocks": None,
        "positions": None,
        "relative_positions": None,
        "layer_scale": None,
        "qkv_bias": None,
        "initialisation": None,
        "drop_path": 0.1,
        "fpn_channels": 128,
        "fpn_norm": "GN",
        "top_level": True,
        # Four strides each: objects of 10 px are large in an image of 96.
        "anchor_sizes": [16, 32, 64, 128, 256],
        "aspect_ratios": [0.5, 1.0, 2.0],
        "rpn_convs": 1,
        "rpn_norm": "",
        "rpn_samples": 128,
        "pre_nms": 1000,
        "post_nms": 300,
        "roi_samples": 64,
        "cascade": False,
        "roi_canonical_size": 224,
        "box_resolution": 7,
        "box_convs": 0,
        "box_fc": 512,
        "mask_resolution": 14,
        "mask_convs": 2,
        "head_norm": "GN",
    },
    "solver": {
        "epochs": 50,
        "iterations": None,
        "batch_size": 4,
        "accumulation": 1,
        "lr": 4e-4,
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "warmup_iterations": None,
        "weight_decay": 0.05,
        "layer_decay": 0.75,
        "decay_rule": "mae-finetune",
        "amp": None,
        "fp16_compression": False,
        "activation_checkpointing": False,
        "save_every": 100,
    },
    "test": {
        "pre_nms": 1000,
        "post_nms": 300,
        "score_threshold": 0.05,
        "nms": 0.5,
        "detections_per_image": 100,
        "max_images": None,
        # Score the validation images every so many steps, too; None for at the end only.
        "validate_every": None,
    },
}

variants = [
    # Their finest level has stride 2, which nobody needs.
    (
        {"backbone": "*_patch8*"},
        {
            "model.strides": [4, 8, 16],
            "model.anchor_sizes": [16, 32, 64, 128],
            "model.roi_canonical_size": 112,
        },
    ),
    ({"backbone": "*_patch14"}, {"model.patch_size": 16}),
    # A small encoder with heads to match.
    (
        {"backbone": "*_mini_*"},
        {
            "model.drop_path": 0.0,
            "model.fpn_channels": 64,
            "model.box_fc": 256,
            "solver.lr": 1e-3,
            "solver.layer_decay": 1.0,
        },
    ),
]

smoke = {
    "solver.iterations": 2,
    "solver.warmup_iterations": 1,
    "solver.batch_size": 2,
    "test.max_images": 4,
}

from tasks.detection import lazy_config  # noqa: E402

_config = lazy_config(recipe, backbone="vit_base_patch16", dataset="mini-coco")
model, dataloader, optimizer = _config["model"], _config["dataloader"], _config["optimizer"]
lr_multiplier, train = _config["lr_multiplier"], _config["train"]
