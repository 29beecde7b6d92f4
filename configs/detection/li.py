"""Mask R-CNN on COCO as in Li et al., the protocol behind MAE's Table 4.

Source: arXiv:2111.11429 Sec. 2 and 4, to which arXiv:2111.06377 A.3 refers. The authors' code was
never published; `protocol` says what the paper leaves open and what stands here. Length: the
longest of the paper's three (25, 50, 100 epochs; from random 100, 200, 400), whose best it reports.

detectron2 reads this file as a LazyConfig; `mae-bench` reads only the literals.
"""

recipe = {
    "data": {
        "image_size": 1024,
        "min_scale": 0.1,
        "max_scale": 2.0,
        "flip": 0.5,
        "pad_value": 128.0,
        "num_workers": 8,
        # Unreadable training images that are reported and left out.
        "max_broken": 10,
    },
    "model": {
        "strides": [4, 8, 16, 32],
        "pyramid": "taps",
        "taps": None,
        "pyramid_norm": "GN",
        # Patches of 14 px (ViT-H) are resampled to 16 px; None for the encoder's own.
        "patch_size": None,
        "window_size": 14,
        "global_blocks": None,
        # None: the encoder's own, resampled for the image at hand and trained.
        "positions": None,
        "relative_positions": "shared",
        "layer_scale": None,
        "qkv_bias": None,
        "initialisation": None,
        "drop_path": 0.1,
        "fpn_channels": 256,
        "fpn_norm": "SyncBN",
        "top_level": True,
        "anchor_sizes": [32, 64, 128, 256, 512],
        "aspect_ratios": [0.5, 1.0, 2.0],
        "rpn_convs": 2,
        "rpn_norm": "",
        "rpn_samples": 256,
        "pre_nms": 2000,
        "post_nms": 1000,
        "roi_samples": 512,
        "cascade": False,
        # Boxes of 224 px are pooled from stride 16, so those of 448 px from stride 32.
        "roi_canonical_size": 448,
        "box_resolution": 7,
        "box_convs": 4,
        "box_fc": 1024,
        "mask_resolution": 14,
        "mask_convs": 4,
        "head_norm": "SyncBN",
    },
    "solver": {
        "epochs": 100,
        "iterations": None,
        "batch_size": 64,
        "accumulation": 1,
        "lr": 8e-5,
        "schedule": "cosine",
        "warmup_epochs": 0.25,
        "warmup_iterations": None,
        "weight_decay": 0.1,
        "layer_decay": 1.0,
        "decay_rule": "detectron2",
        "amp": "float16",
        "fp16_compression": False,
        "activation_checkpointing": False,
        "save_every": 1000,
    },
    "test": {
        "pre_nms": 1000,
        "post_nms": 1000,
        "score_threshold": 0.05,
        "nms": 0.5,
        "detections_per_image": 100,
        "max_images": None,
        # Score the validation images every so many steps, too; None for at the end only.
        "validate_every": None,
    },
}

variants = [
    ({"backbone": "*large*"}, {"model.drop_path": 0.3}),
    # Not in the paper: as for ViT-L.
    ({"backbone": "*huge*"}, {"model.drop_path": 0.3}),
    ({"backbone": "*_patch14"}, {"model.patch_size": 16}),
    (
        {"init": "random"},
        {
            "model.initialisation": "beit",
            "solver.lr": 1.6e-4,
            "solver.weight_decay": 0.2,
            "solver.epochs": 400,
        },
    ),
    ({"init": "moco-v3"}, {"solver.lr": 1.6e-4}),
    # Its own relative positions go on; its files have no absolute ones, which start at zero.
    (
        {"init": "beit"},
        {"model.positions": "zeros", "model.qkv_bias": "qv", "model.layer_scale": 0.1},
    ),
    ({"init": "beit", "backbone": "*large*"}, {"model.layer_scale": 1e-5}),
]

smoke = {
    "solver.iterations": 2,
    "solver.warmup_iterations": 1,
    "solver.batch_size": 2,
    "solver.amp": None,
    "data.image_size": 256,
    "model.roi_samples": 16,
    "test.detections_per_image": 10,
    "test.max_images": 4,
}

protocol = {
    "paper": "arXiv:2111.11429 Sec. 2.1-2.5, 4.1, 4.2",
    # hustvl/MIMDet rebuilt it, unofficially; what is taken from there says so.
    "code": None,
    "lr_trials": {
        "paper": "3x3 grid of lr and weight decay, then 4 drop path rates, per init (ViT-B)",
        "ours": 1,
    },
    "settings": {
        "image size": {"key": "data.image_size", "paper": 1024},
        "large-scale jitter, from": {"key": "data.min_scale", "paper": 0.1},
        "large-scale jitter, to": {"key": "data.max_scale", "paper": 2.0},
        "padding of images": {
            "ours": "right and bottom to 1024x1024, grey (128) in training, mean colour in tests",
            "paper": "to 1024x1024",
        },
        "batch": {"key": "solver.batch_size", "paper": 64},
        "epochs": {
            "key": "solver.epochs",
            "paper": {"random": "best of 100, 200, 400", "*": "best of 25, 50, 100"},
        },
        "images per epoch": {"ours": "117,266: those with annotations (118,000 in detectron2)"},
        "optimizer": {"ours": "AdamW 0.9 / 0.999", "paper": "AdamW 0.9 / 0.999"},
        "learning rate": {
            "key": "solver.lr",
            "paper": {"random": 1.6e-4, "moco-v3": 1.6e-4, "*": 8e-5},
        },
        "schedule": {"key": "solver.schedule", "paper": "cosine"},
        "warm-up, epochs": {"key": "solver.warmup_epochs", "paper": 0.25},
        "warm-up, from": {"ours": "lr / 1000 (detectron2's default)"},
        "weight decay": {"key": "solver.weight_decay", "paper": {"random": 0.2, "*": 0.1}},
        "no weight decay": {"ours": "norms, absolute positions, relative tables (as MIMDet)"},
        "layer-wise lr decay": {"key": "solver.layer_decay", "paper": 1.0},
        "drop path": {"key": "model.drop_path", "paper": {"*base*": 0.1, "*large*": 0.3}},
        "gradient clipping": {"ours": "none", "paper": "none"},
        "precision": {"ours": "float16, or bfloat16 with solver.amp", "paper": "PyTorch AMP"},
        "fp16 gradient compression": {"key": "solver.fp16_compression"},
        "attention": {
            "ours": "14x14 windows, global after each quarter",
            "paper": "14x14 windows, global after each quarter",
        },
        "grid of 64, windows of 14": {"ours": "padded to 70 inside attention, keys unmasked"},
        "class token": {"ours": "left out"},
        "absolute positions": {
            "ours": {
                "beit": "zero at start",
                "*": "from pretraining, resampled bicubically on the fly, trained",
            },
            "paper": {"beit": "random at start"},
        },
        "relative positions": {
            "ours": "a table shared by windowed blocks, one by global blocks",
            "paper": "a table shared by windowed blocks, one by global blocks",
        },
        "relative positions at start": {
            "ours": {"beit": "BEiT's, resampled", "*": "zero"},
            "paper": {"beit": "BEiT's, resampled", "*": "zero"},
        },
        "random init": {"ours": "as in BEiT's code", "paper": "as in BEiT's code"},
        "layer scale": {
            "ours": {"beit": "as in its file", "*": "none"},
            "paper": {"beit": "as in its file", "*": "none"},
        },
        "pyramid": {
            "ours": "taps after each quarter, x4 x2 x1 x0.5, FPN",
            "paper": "taps after each quarter, x4 x2 x1 x0.5, FPN",
        },
        "norm on the taps": {"ours": "none (as MIMDet)"},
        "norm inside the x4 level": {
            "ours": "GroupNorm, 32 groups (as MIMDet)",
            "paper": "GroupNorm",
        },
        "norm in FPN": {"key": "model.fpn_norm", "paper": "SyncBN"},
        "norm in box and mask heads": {"key": "model.head_norm", "paper": "SyncBN"},
        "norm in RPN": {"ours": "none; SyncBN with model.rpn_norm", "paper": None},
        "convolutions in RPN": {"key": "model.rpn_convs", "paper": 2},
        "convolutions in box head": {"key": "model.box_convs", "paper": 4},
        "anchors, RoI sampling, NMS": {"ours": "detectron2's defaults (as MIMDet)"},
        "model selection": {"ours": "last weights", "paper": "best of three lengths on val2017"},
    },
}

from tasks.detection import lazy_config  # noqa: E402

_config = lazy_config(recipe, backbone="vit_base_patch16", dataset="coco")
model, dataloader, optimizer = _config["model"], _config["dataloader"], _config["optimizer"]
lr_multiplier, train = _config["lr_multiplier"], _config["train"]
