"""Mask R-CNN on the miniature, in the shape of arXiv:2111.11429 with everything small.

detectron2 reads this file as a LazyConfig; `mae-bench` reads only the two literals.
"""

recipe = {
    "data": {
        # Large-scale jitter, scaled crop and flip as in the paper (0.1-2.0 at 1024 px there): the
        # images are 96 px, where a tenth of the size would leave nothing of an object.
        "image_size": 96,
        "min_scale": 0.7,
        "max_scale": 1.4,
        "flip": 0.5,
        # Of the pixels beside the image; None for the mean colour.
        "pad_value": 128.0,
        "num_workers": 0,
        # Unreadable training images that are reported and left out.
        "max_broken": 10,
    },
    "model": {
        "strides": [4, 8, 16],
        # "taps": a block for each level, None for the ends of the quarters, and an FPN on top;
        # "last": all levels from the last block (ViTDet).
        "pyramid": "taps",
        "taps": None,
        "pyramid_norm": "GN",
        # Of the encoder, None for its own: patches in pixels, attention windows in patches (0 for
        # none), blocks without windows, absolute and relative positions, ...
        "patch_size": None,
        "window_size": 0,
        "global_blocks": None,
        "positions": None,
        "relative_positions": None,
        "layer_scale": None,
        "qkv_bias": None,
        "initialisation": None,
        "drop_path": 0.0,
        "fpn_channels": 64,
        "fpn_norm": "",
        # A further level, the coarsest one subsampled by two.
        "top_level": False,
        # One size per level, as in FPN; three aspect ratios each.
        "anchor_sizes": [12, 24, 48],
        "aspect_ratios": [0.5, 1.0, 2.0],
        "rpn_convs": 1,
        "rpn_norm": "",
        "rpn_samples": 64,
        "pre_nms": 200,
        "post_nms": 100,
        "roi_samples": 32,
        # Three stages of boxes (Cascade R-CNN) instead of one.
        "cascade": False,
        # Boxes of this size are pooled from the coarsest level.
        "roi_canonical_size": 64,
        "box_resolution": 7,
        "box_convs": 0,
        "box_fc": 256,
        # Masks come out at twice this resolution; objects here are 10 to 40 px.
        "mask_resolution": 8,
        "mask_convs": 3,
        "head_norm": "",
    },
    "solver": {
        "iterations": 500,
        # Small batches and more steps: at equal cost no worse than batches of 8, and less memory.
        "batch_size": 4,
        # Micro-batches per step.
        "accumulation": 1,
        "lr": 1e-3,
        "schedule": "cosine",
        "warmup_iterations": 40,
        "weight_decay": 0.05,
        # 1 for none, as in the paper.
        "layer_decay": 1.0,
        # What has no weight decay: a rule of `backbones.groups`.
        "decay_rule": "mae-finetune",
        # None, "bfloat16" or "float16" (GPU only).
        "amp": None,
        # Gradients in fp16 between processes: half the traffic.
        "fp16_compression": False,
        "activation_checkpointing": False,
        "save_every": 100,
    },
    "test": {
        "pre_nms": 200,
        "post_nms": 100,
        "score_threshold": 0.05,
        "nms": 0.5,
        "detections_per_image": 100,
        # Evaluate on that many images only; None for all.
        "max_images": None,
        # Score the validation images every so many steps, too; None for at the end only.
        "validate_every": None,
    },
}

variants = [
    # Its own relative positions go on; its files have no absolute ones, which start at zero.
    (
        {"init": "beit"},
        {
            "model.positions": "zeros",
            "model.relative_positions": "shared",
            "model.qkv_bias": "qv",
            "model.layer_scale": 0.1,
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

_config = lazy_config(recipe, backbone="vit_mini_patch8", dataset="mini-coco")
model, dataloader, optimizer = _config["model"], _config["dataloader"], _config["optimizer"]
lr_multiplier, train = _config["lr_multiplier"], _config["train"]
